"""``vitquant quantize`` on a checkpoint and pictures: the printed result and the results folder."""

import csv
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import vitquant
from support.documents import FAILURES
from vitquant.cli.main import main
from vitquant.config import BiasCorrectionSettings, point_names

pytestmark = pytest.mark.job

MODEL = "deit_tiny_patch16_224"


def documented(message: str) -> bool:
    return f"```text\n{message}\n```" in FAILURES


@pytest.mark.filterwarnings("ignore::vitquant.calibration.repair.run.RepairWarning")
def test_repair_steps_are_in_the_results(quantize: Callable[..., Any], folder: Path) -> None:
    shipped = vitquant.ModelConfig.from_yaml("vit_int8.yaml").resolve(point_names(12)).to_yaml()
    (folder / "repair.yaml").write_text(f"{shipped}repair:\n  - bias_correction: {{images: 3}}\n")
    outcome = quantize("--config", "repair.yaml", "--ignore-labels")
    assert outcome.code == 0, outcome.err
    summary = json.loads((folder / "out" / "summary.json").read_text())
    (record,) = summary["repair"]
    assert (record["step"], record["settings"], record["images"]) == ("bias_correction", {"images": 3}, 3)
    assert len(record["changed"]) == 4 * 12 + 2
    assert re.search(r"bias_correction\W+50\W+3\W+[\d.]+ dB\W+[\d.]+ dB", outcome.out)
    assert summary["config"] == (folder / "out" / "config.resolved.yaml").read_text()
    assert vitquant.load_run("out").config.to_yaml() == summary["config"]
    assert (folder / "out" / "config.resolved.yaml").read_text().endswith("repair:\n- bias_correction: {images: 3}\n")
    assert summary["integer"]["first_divergence"] is None
    assert vitquant.load("out").config.repair == (BiasCorrectionSettings(images=3),)


def test_results_are_those_of_the_library(quantize: Callable[..., Any], folder: Path) -> None:
    outcome = quantize("--json")
    assert outcome.code == 0, outcome.err
    summary = json.loads(outcome.out)
    assert summary == json.loads((folder / "out" / "summary.json").read_text())
    assert {path.name for path in (folder / "out").iterdir()} == {
        "summary.json",
        "points.csv",
        "config.resolved.yaml",
        "model.safetensors",
        "manifest.json",
        "program.json",
        "program.safetensors",
    }

    qmodel = vitquant.quantize(
        MODEL, "vit_int8.yaml", weights="deit.safetensors", img_size=32, calibration="photos", batch_size=16
    )
    found = vitquant.evaluate(qmodel, "photos2", batch_size=16)
    assert summary["model"] == MODEL
    assert summary["images"] == found.images == 6
    assert summary["fp32"] == {"top1": found.fp32_top1}
    assert summary["quantized"] == {"top1": found.quantized_top1, "agreement": found.agreement}
    assert summary["sqnr_db"] == round(found.sqnr_db, 3)
    assert summary["sqnr_final_norm_db"] == round(found.sqnr_final_norm_db, 3)
    assert summary["preprocessing"] == qmodel.preprocessing.to_dict()
    assert summary["profile_images"] == 2
    assert summary["seconds"]["total"] >= summary["seconds"]["calibrate"] > 0
    assert 50 < summary["peak_rss_mb"] < 100_000

    profiled = vitquant.profile(qmodel, "photos2", limit=2, batch_size=16)
    assert list(summary["points"]) == list(point_names(12)) == [point.name for point in profiled.points]
    for point in profiled.points:
        told = summary["points"][point.name]
        if point.active:
            assert told["sqnr_isolated_db"] == round(point.sqnr_isolated_db or 0, 3)
            assert told["sqnr_cumulative_db"] == round(point.sqnr_cumulative_db or 0, 3)
        else:
            assert (told["active"], told["sqnr_isolated_db"], told["sqnr_cumulative_db"]) == (False, None, None)

    run = vitquant.load_run(folder / "out")
    assert run.to_dict() == summary
    assert run.config == qmodel.config
    assert run.calibration_images == 4

    with (folder / "out" / "points.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["name"] for row in rows] == list(summary["points"])
    assert {row["name"]: row["bits"] for row in rows}["blocks.3.residual1"] == "16"
    assert all(bool(row["sqnr_isolated_db"]) == (row["active"] == "True") for row in rows)

    resolved = vitquant.ModelConfig.from_yaml(folder / "out" / "config.resolved.yaml").resolve(point_names(12))
    assert resolved == qmodel.config

    images = qmodel.preprocessing.normalize(torch.randint(0, 256, (3, 3, 32, 32), dtype=torch.uint8))
    assert torch.equal(vitquant.load(folder / "out")(images), qmodel(images))


def test_the_table_for_people(quantize: Callable[..., Any], folder: Path) -> None:
    outcome = quantize(config="linears_int8.yaml", calib_limit="2")
    assert outcome.code == 0, outcome.err
    for text in ("on 6 images", "top-1", "SQNR of the output", "The 5 points with the lowest", "Results in out/"):
        assert text in outcome.out
    assert "99 of 234 points are quantized" in outcome.out  # 12 * (4 weights + 4 inputs) + patches, norm, head
    told = next(line for line in outcome.out.splitlines() if "points are quantized" in line)
    assert documented(told)
    kept = json.loads((folder / "out" / "summary.json").read_text())["float"]
    assert len(kept["points"]) == 97
    assert f"{kept['multiplications']:.1%} of the multiplications" in told


def test_strict_accepts_a_whole_model_in_integers(quantize: Callable[..., Any], folder: Path) -> None:
    outcome = quantize("--strict", profile_images="1")
    assert outcome.code == 0, outcome.err
    assert "points are quantized; no point stays in floating point." in outcome.out
    assert json.loads((folder / "out" / "summary.json").read_text())["float"] == {"points": [], "multiplications": 0}
    assert outcome.err.splitlines()[1] == (
        "preprocessing  32x32 RGB, bicubic, crop 0.9, mean 0.485 0.456 0.406, std 0.229 0.224 0.225"
    )
    assert "Traceback" not in outcome.err
    assert "calibrating" not in outcome.err  # no bar where nobody watches


def test_the_seed_is_recorded_and_changes_nothing_else(
    quantize: Callable[..., Any], folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = []
    for seed in (1, 2):
        assert quantize(seed=str(seed), config="linears_int8.yaml", out=f"out{seed}").code == 0
        summary = json.loads((folder / f"out{seed}" / "summary.json").read_text())
        assert summary.pop("seed") == seed
        del summary["seconds"], summary["peak_rss_mb"]
        found.append((summary, (folder / f"out{seed}" / "model.safetensors").read_bytes()))
    assert found[0] == found[1]
    with pytest.raises(SystemExit):
        main(["quantize", "--help"])
    assert "recorded in summary.json; all steps are deterministic" in " ".join(capsys.readouterr().out.split())


def test_debug_shows_the_traceback(folder: Path, capsys: Any) -> None:
    argv = ["quantize", "--model", "nothing", "--weights", "deit.safetensors", "--calib", "photos", "--eval", "photos2"]
    assert main([*argv, "--debug"]) == 2
    captured = capsys.readouterr().err
    assert captured.startswith("Traceback")
    assert captured.rstrip().splitlines()[-1].startswith("error: model: unknown model name")
