"""``vitquant export`` on what ``vitquant quantize`` wrote."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")


def test_both_forms(quantize: Callable[..., Any], run: Callable[..., Any], folder: Path) -> None:
    assert quantize().code == 0
    outcome = run("export", "out", "--onnx-integer", "exported/int.onnx", "--images", "photos2")
    assert outcome.code == 0, outcome.err
    assert "against the reference executor, 6 images: equal, bit for bit" in outcome.out
    outcome = run("export", "out", "--onnx-qdq", "exported/qdq.onnx", "--images", "photos", "--json")
    assert outcome.code == 0, outcome.err
    found = json.loads(outcome.out)
    assert found["sqnr_db"] > 20
    assert set(json.loads((folder / "exported" / "verify.json").read_text())) == {"int.onnx", "qdq.onnx"}


def test_what_a_target_cannot_take_is_told(quantize: Callable[..., Any], run: Callable[..., Any]) -> None:
    assert quantize().code == 0
    outcome = run("export", "out", "--onnx-qdq", "rt.onnx", "--target", "tensorrt", "--json")
    assert outcome.code == 0, outcome.err
    notes = json.loads(outcome.out)["notes"]
    assert any(note.startswith("blocks.0.residual1: left float") for note in notes)
    assert "TensorRT itself was not run" in notes[-1]


def test_there_must_be_something_to_export(run: Callable[..., Any], folder: Path) -> None:
    outcome = run("export", "photos", "--onnx-integer", "int.onnx")
    assert (outcome.code, "cannot read the program" in outcome.error) == (2, True)
    assert not (folder / "int.onnx").exists()
