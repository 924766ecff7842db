"""Exporting as a user does: the graph, and what came of comparing it."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from integer_models import pixels, quantized

import vitquant
from vitquant.errors import AgreementError
from vitquant.export import job
from vitquant.export.job import export_onnx_integer, export_onnx_qdq, made_up

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")


def entries(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "verify.json").read_text())
    return found


def test_the_embedded_model_on_a_hundred_images(tmp_path: Path) -> None:
    images, _, test_images, _ = vitquant.load_fashion_images()
    model = vitquant.quantize(vitquant.load_fashion(), "vit_int8.yaml", calibration=images[:64])
    found = export_onnx_integer(vitquant.compile(model), tmp_path / "m.onnx", images=test_images[:, None])
    assert found.equal
    assert found.ok
    assert found.images == 100
    assert entries(tmp_path)["m.onnx"]["equal"] is True
    assert entries(tmp_path)["m.onnx"]["bytes"] == (tmp_path / "m.onnx").stat().st_size


def test_both_forms_share_a_report(tmp_path: Path) -> None:
    model = quantized()
    export_onnx_integer(vitquant.compile(model), tmp_path / "int.onnx", count=9)
    found = export_onnx_qdq(model, tmp_path / "qdq.onnx", images=pixels(4))
    assert set(entries(tmp_path)) == {"int.onnx", "qdq.onnx"}
    assert found.sqnr_db > 20
    assert entries(tmp_path)["int.onnx"]["images"] == 9
    assert "made-up" in entries(tmp_path)["int.onnx"]["source"]
    for name in ("int.onnx", "qdq.onnx"):
        onnx.checker.check_model(tmp_path / name, full_check=True)


def test_a_graph_that_disagrees_is_marked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other = vitquant.compile(quantized(seed=1))
    export: Callable[..., Any] = job.export_integer
    monkeypatch.setattr(job, "export_integer", lambda program: export(other))
    with pytest.raises(AgreementError, match="disagrees with the reference executor; it is marked as failed"):
        export_onnx_integer(vitquant.compile(quantized()), tmp_path / "m.onnx", count=3)
    assert entries(tmp_path)["m.onnx"]["ok"] is False


def test_made_up_images() -> None:
    images = made_up((3, 16, 16), 5)
    assert torch.equal(images, made_up((3, 16, 16), 5))
    assert (images.dtype, tuple(images.shape)) == (torch.uint8, (5, 3, 16, 16))
    assert (int(images[0].max()), int(images[1].min())) == (0, 255)
    assert len(images[2:].unique()) > 200
