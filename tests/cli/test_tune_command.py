"""``vitquant tune`` on the embedded model: what it writes is a configuration that keeps the budget."""

import json
from pathlib import Path
from typing import Any

import pytest

import vitquant
from support.documents import documented
from vitquant.cli.main import main
from vitquant.compiler.deployability import require_deployable
from vitquant.config import ModelConfig
from vitquant.measure.table import measure
from vitquant.report.tuning import TuneRecord
from vitquant.tuning.budget import Budget
from vitquant.workflows import tune as search
from vitquant.workflows.sensitivity import calibrated, hold_out
from vitquant.workflows.tune import tune

pytest.importorskip("scipy")

MODEL = ("--model", "fashion_vit", "--calib-limit", "16", "--draws", "2")
POINTS = ("--point", "blocks.{0..5}.mlp_{fc1,fc2}.weight", "--point", "blocks.*.mlp_gelu", "--point", "blocks.*.norm2")


@pytest.mark.job
def test_a_budget_of_bits(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    bits = ("--bits", "4,6,8", "--weight-bits", "4,6,8", "--observer", "minmax,omse")
    arguments = ["tune", *MODEL, *POINTS, *bits, "--budget", "W5", "--out", str(out)]
    assert main(arguments) == 0
    told = capsys.readouterr().out
    assert "fashion_vit, budget W5, on 4 held-out images" in told
    assert "Next: vitquant quantize --config" in told
    record = json.loads((out / "tune.json").read_text())
    best = record["trials"][record["best"]]
    assert best["fits"]
    assert best["costs"]["weight_bits"] <= 5
    assert best["costs"]["activation_bits"] <= record["trials"][0]["costs"]["activation_bits"]
    assert record["pareto_cost"] == "weight_bits"
    assert len(record["pareto"]) > 2

    pixels = vitquant.load_fashion_images()[0][:16, None]
    made = calibrated(vitquant.load_fashion(), out / "tuned.yaml", pixels)
    require_deployable(made)
    profiled = vitquant.profile(made, pixels[hold_out(16)])
    assert profiled.sqnr_db == pytest.approx(best["measured_db"], abs=1e-3)
    sizes = {
        linear.weight.name: linear.float_weight.numel() for linear in made.linears() if "mlp" in linear.weight.name
    }
    widths = {name: config.bit_type.bits for name in sizes if (config := made.config[name])}
    mean = sum(sizes[name] * widths[name] for name in sizes) / sum(sizes.values())
    assert mean == pytest.approx(best["costs"]["weight_bits"], abs=1e-3)

    text = (out / "tuned.yaml").read_text()
    start = ModelConfig.from_yaml("vit_int8.yaml").resolve(list(made.config))
    changed = [name for name in start if start[name] != made.config[name]]
    assert changed
    for name in changed:
        (line,) = (line for line in text.splitlines() if line.startswith(f"  {name}: "))
        assert "# alone " in line
        assert "was " in line

    before = {path: path.read_bytes() for path in out.iterdir() if path.is_file()}
    calls: list[int] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(search, "measure", lambda *a, **k: calls.append(1))
        assert main([*arguments, "--resume"]) == 0
    assert not calls
    assert {path: path.read_bytes() for path in before} == before


@pytest.mark.job
def test_the_smallest_model_with_an_sqnr(tmp_path: Path) -> None:
    found = run(tmp_path, "29dB", bits=(4, 6, 8))
    best = found.trials[found.best]
    assert best.fits
    assert best.measured_db >= 29
    fitting = [t.costs["mb"] for t in found.trials if t.fits]
    assert best.costs["mb"] == min(fitting)
    assert best.costs["mb"] < found.trials[0].costs["mb"]


@pytest.mark.job
def test_the_same_bits(tmp_path: Path) -> None:
    found = run(tmp_path, "best", observers=("minmax", "omse"), modes=("layer_wise", "channel_wise"))
    assert len({tuple(t.costs.values()) for t in found.trials}) == 1
    assert found.trials[found.best].measured_db >= found.trials[0].measured_db
    assert found.finished


def run(out: Path, budget: str, **candidates: Any) -> TuneRecord:
    images = vitquant.load_fashion_images()[0][:16, None]
    points = ("blocks.*.mlp_*.weight", "blocks.*.norm2", "blocks.*.mlp_gelu", "blocks.*.attn_*_out")
    chosen = vitquant.Candidates(points=points, **candidates)
    options: dict[str, Any] = {"candidates": chosen, "draws": 2, "out": out / "out"}
    return tune(vitquant.load_fashion(), "vit_int8.yaml", images, budget=Budget.parse(budget), **options)


@pytest.mark.job
def test_an_interrupted_search_leaves_the_best_so_far(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []

    def interrupted(*args: Any, **options: Any) -> float:
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return measure(*args, **options)

    monkeypatch.setattr(search, "measure", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, "W5,A7", bits=(4, 5, 6, 8), observers=("minmax", "omse"))
    record = json.loads((tmp_path / "out" / "tune.json").read_text())
    assert len(record["trials"]) == 2
    assert record["finished"] is None
    assert record["trials"][record["best"]]["fits"]
    ModelConfig.from_yaml(tmp_path / "out" / "tuned.yaml")


def test_time_is_up(tmp_path: Path) -> None:
    images = vitquant.load_fashion_images()[0][:4, None]
    chosen = vitquant.Candidates(bits=(4, 8), points=("blocks.0.norm2",))
    options: dict[str, Any] = {"candidates": chosen, "draws": 1, "out": tmp_path / "out", "max_minutes": 1e-9}
    found = tune(vitquant.load_fashion(), "vit_int8.yaml", images, budget="A4", **options)
    assert len(found.trials) == 1
    assert found.finished == "1e-09 minutes are over (--max-minutes)"


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["--budget", "small"], "budget: not a budget"),
        (["--resume"], "out: there is no search to resume"),
        (
            ["--budget", "W2", "--bits", "6", "--calib-limit", "4", "--draws", "1"],
            "no choice of settings keeps the budget",
        ),
        (["--observer", "mean"], "unknown observer"),
        (["--point", "nowhere", "--calib-limit", "4"], "no quantized point matches"),
        (["--bits", "8", "--calib-limit", "4"], "there is nothing to compare"),
        (["--calib-limit", "1"], "too few images"),
        (["--max-minutes", "soon"], None),
        (["--max-minutes", "0"], None),
        (["--weight-bits", "1"], None),
    ],
)
def test_what_is_wrong_is_told_in_one_line(
    arguments: list[str],
    problem: str | None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    points = () if "--point" in arguments else ("--point", "blocks.0.mlp_fc1.weight")
    assert main(["tune", "--model", "fashion_vit", *points, *arguments, "--out", "out"]) in (2, 3)
    told = capsys.readouterr().err.splitlines()[-1]
    if problem is None:
        assert told.startswith("error: ")
    else:
        assert problem in told
        assert documented(told)
