"""``vitquant run`` and ``vitquant evaluate`` on what ``vitquant quantize`` wrote."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vitquant.program.ops import Linear
from vitquant.program.storage import load_program, save_program

pytestmark = pytest.mark.job


@pytest.fixture
def job(quantize: Callable[..., Any], folder: Path) -> Path:
    assert quantize(config="vit_int8.yaml").code == 0
    return folder


def test_quantize_writes_the_program(job: Path) -> None:
    summary = json.loads((job / "out" / "summary.json").read_text())
    assert summary["integer"]["first_divergence"] is None
    assert summary["integer"]["points_compared"] == 146
    assert summary["integer"]["to_simulated_db"] == 300
    assert summary["integer"]["top1"] == summary["quantized"]["top1"]
    program = load_program(job / "out")
    assert len(program.needed(["logits"])) == 12 * 14 + 6  # README: fourteen in a block
    assert [output.name for output in program.outputs] == ["logits", "class_token", "tokens"]


def test_a_configuration_that_cannot_ship_leaves_no_program(job: Path, quantize: Callable[..., Any]) -> None:
    outcome = quantize(config="linears_int8.yaml")
    assert outcome.code == 0
    assert "No integer program: pos_embed: integers cannot execute this: it stays float" in outcome.out
    assert not (job / "out" / "program.json").exists()
    assert "pos_embed" in json.loads((job / "out" / "summary.json").read_text())["integer"]["refused"]


def test_run_prints_a_line_an_image(job: Path, run: Callable[..., Any]) -> None:
    outcome = run("run", "out", "photos", "--top", "2", "--out", "logits.npz")
    lines = outcome.out.splitlines()
    assert [line.split()[0] for line in lines] == [f"{i}.png" for i in range(4)]
    with np.load("logits.npz") as arrays:
        codes, logits = arrays["codes"], arrays["logits"]
    assert codes.dtype == np.int32
    scale = load_program("out").values()["logits"].scale
    np.testing.assert_array_equal(logits, codes.astype(np.float32) * scale)
    assert f"{logits[0].argmax()} ({logits[0].max():.2f})" in lines[0]
    found = json.loads(run("run", "out/program.json", "photos", "--json", "--limit", "1").out)
    assert found[0]["top"][0][0] == logits[0].argmax()


def evaluate(run: Callable[..., Any], *flags: str) -> Any:
    argv = [
        "--model",
        "deit_tiny_patch16_224",
        "--weights",
        "deit.safetensors",
        "--img-size",
        "32",
        "--eval",
        "photos2",
    ]
    return run("evaluate", "out", *argv, *flags)


def test_evaluate_puts_three_models_side_by_side(job: Path, run: Callable[..., Any]) -> None:
    outcome = evaluate(run)
    assert outcome.code == 0, outcome.err
    assert "equals the simulation at all 146 points" in outcome.out
    assert "│ SQNR against simulated │         │           │ identical │" in outcome.out
    summary = json.loads((job / "out" / "summary.json").read_text())
    found = json.loads(evaluate(run, "--json").out)
    assert found["evaluation"]["quantized_top1"] == summary["quantized"]["top1"]
    assert found["evaluation"]["integer"]["sqnr_db"] == pytest.approx(summary["integer"]["sqnr_db"], abs=1e-3)


def test_another_program_is_found_out(job: Path, run: Callable[..., Any]) -> None:
    """The first point that differs, by how much, and a failing exit code."""
    program = load_program("out")
    for operation in program.operations:
        if isinstance(operation, Linear) and operation.out.name == "blocks.3.attn_k_out":
            operation.weight.setflags(write=True)
            operation.weight[:] = -operation.weight
    save_program(program, "out")
    outcome = evaluate(run)
    assert outcome.code == 3
    assert "first differs from the simulation at blocks.3.attn_k_out" in outcome.out
    assert "is not the model that was simulated" in outcome.error
    assert "at least 40 dB" in outcome.error


def test_programs_that_are_no_programs(job: Path, run: Callable[..., Any]) -> None:
    assert "cannot read the program" in run("run", "photos", "photos").error
    Path("out/program.json").write_text("{}")
    outcome = run("run", "out", "photos")
    assert (outcome.code, "not an integer program" in outcome.error) == (2, True)
