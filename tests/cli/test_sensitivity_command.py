"""``vitquant sensitivity`` and ``sweep`` on the embedded model."""

import json
from pathlib import Path

import numpy as np
import pytest

import vitquant
from vitquant.cli.main import main

MODEL = ("--model", "fashion_vit", "--calib-limit", "8", "--draws", "2")


@pytest.mark.job
def test_a_table_of_all_points(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    assert main(["sensitivity", *MODEL, "--bits", "4,8", "--observer", "minmax", "--out", str(out)]) == 0
    told = capsys.readouterr().out
    assert "6 images to calibrate, 2 held out to choose on" in told
    assert "With fewer bits, these lose most" in told
    assert "Next: " in told
    assert {path.name for path in out.iterdir()} == {
        *("sensitivity.csv", "sensitivity.json", "sensitivity.npz"),
        "cache",
    }
    table = vitquant.load_sensitivity(out)
    assert len(table.points) == 100
    assert table.products.shape == (8, 2, len(table.settings))
    assert len((out / "sensitivity.csv").read_text().splitlines()) == 1 + len(table.settings)


@pytest.mark.job
def test_a_sweep_is_measured_on_demand(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    points = ("--point", "blocks.{0,1}.mlp_gelu", "--point", "head.weight")
    arguments = ["sweep", *MODEL, *points, "--bits", "6,8", "--observer", "minmax,omse", "--out", str(tmp_path / "out")]
    assert main([*arguments, "--json"]) == 0
    estimated = json.loads(capsys.readouterr().out)
    assert len(estimated["rows"]) == 12
    assert all(row["estimated"] for row in estimated["rows"])
    assert main([*arguments, "--exact", "--json"]) == 0
    exact = json.loads(capsys.readouterr().out)
    assert not any(row["estimated"] for row in exact["rows"])
    figures = np.array([[row["sqnr_isolated_db"] for row in found["rows"]] for found in (estimated, exact)])
    assert np.abs(figures[0] - figures[1]).max() < 6
    assert main(arguments) == 0
    told = capsys.readouterr().out
    assert "blocks.0.mlp_gelu" in told
    assert "now" in told
    assert "--exact measures instead of estimating" in told


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["sweep", "--bits", "4"], "--point: no points to compare"),
        (["sweep", "--point", "*"], "sweep: nothing to compare"),
        (["sweep", "--point", "(", "--bits", "4"], "regular expression"),
        (["sensitivity", "--bits", "4,x"], "--bits: not a whole number"),
        (["sensitivity", "--bits", "17"], "bits"),
        (["sensitivity", "--observer", "mean"], "observer: unknown observer. Got mean, expected minmax, percentile"),
        (["sensitivity", "--mode", "rows"], "mode"),
        (["sensitivity", "--percentile", "0.4", "--observer", "percentile"], "percentile"),
        (["sensitivity", "--calib-limit", "1"], "calibration: too few images"),
        (["sensitivity", "--config", "nowhere.yaml"], "nowhere.yaml"),
    ],
)
def test_what_is_wrong_is_told_in_one_line(
    arguments: list[str], problem: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command, *rest = arguments
    assert main([command, "--model", "fashion_vit", *rest, "--out", str(tmp_path / "out")]) in (2, 3)
    told = capsys.readouterr().err.splitlines()[-1]
    assert told.startswith("error: ")
    assert problem in told
    assert not (tmp_path / "out").exists()


def test_another_model_needs_weights_and_images(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["sensitivity", "--model", "vit_tiny_patch16_224"]) == 2
    assert "--weights: no weights" in capsys.readouterr().err
