"""Exporting as a user does: the graph, and what came of comparing it."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import vitquant
from support.integer_models import pixels, quantized
from vitquant.errors import AgreementError, ConfigError
from vitquant.export.onnx.runtime import SESSIONS, Session
from vitquant.workflows import export as job
from vitquant.workflows.export import export_onnx_integer, export_onnx_qdq, made_up

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
    assert "synthetic" in entries(tmp_path)["int.onnx"]["source"]
    for name in ("int.onnx", "qdq.onnx"):
        onnx.checker.check_model(tmp_path / name, full_check=True)


def test_a_graph_that_disagrees_is_marked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other = vitquant.compile(quantized(seed=1))
    export: Callable[..., Any] = job.export_integer  # type: ignore[attr-defined]
    monkeypatch.setattr(job, "export_integer", lambda program, outputs: export(other, outputs))
    with pytest.raises(AgreementError, match="does not match the reference executor; it is marked as failed"):
        export_onnx_integer(vitquant.compile(quantized()), tmp_path / "m.onnx", count=3)
    assert entries(tmp_path)["m.onnx"]["ok"] is False


def test_the_report_tells_what_was_written(tmp_path: Path) -> None:
    model = quantized()
    export_onnx_integer(vitquant.compile(model), tmp_path / "int.onnx", count=1)
    found = export_onnx_qdq(model, tmp_path / "qdq.onnx", target="tensorrt", opset=19, packed=False, count=1)
    told = entries(tmp_path)
    assert [told["int.onnx"][key] for key in ("form", "target", "opset", "caveat")] == ["integer", None, 18, None]
    assert [told["qdq.onnx"][key] for key in ("form", "target", "opset")] == ["qdq", "tensorrt", 19]
    assert told["qdq.onnx"]["caveat"] == "compared in ONNX Runtime; TensorRT itself was not run"
    assert {note.partition(": ")[0] for note in found.notes} <= set(model.config)
    for name, entry in told.items():
        data = (tmp_path / name).read_bytes()
        assert onnx.load_from_string(data).opset_import[0].version == entry["opset"]
        assert (entry["bytes"], entry["sha256"]) == (len(data), hashlib.sha256(data).hexdigest())


def test_a_new_export_replaces_file_and_entry(tmp_path: Path) -> None:
    model = quantized()
    export_onnx_integer(vitquant.compile(model), tmp_path / "m.onnx", count=1)
    export_onnx_qdq(model, tmp_path / "m.onnx", count=1)
    assert entries(tmp_path)["m.onnx"]["form"] == "qdq"
    assert {path.name for path in tmp_path.iterdir()} == {"m.onnx", "verify.json"}


@pytest.mark.parametrize("broken", [float("nan"), float("inf")])
def test_a_graph_that_gives_no_numbers_is_marked(
    broken: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(
        SESSIONS, "onnxruntime", lambda _: Session(lambda x: [np.full((len(x), 5), broken, np.float32)])
    )
    with pytest.raises(AgreementError, match="the output contains NaN or Inf"):
        export_onnx_qdq(quantized(), tmp_path / "m.onnx", count=3)
    told = json.loads((tmp_path / "verify.json").read_text(), parse_constant=pytest.fail)["m.onnx"]
    assert [told[key] for key in ("ok", "largest_difference", "sqnr_db")] == [False, None, 0.0]


def test_a_graph_that_the_runtime_refuses_is_not_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: bytes) -> Callable[..., Any]:
        raise RuntimeError("[ONNXRuntimeError] : 9 : NOT_IMPLEMENTED\nat line 1")

    monkeypatch.setitem(SESSIONS, "onnxruntime", refuse)
    message = r"m\.onnx: onnxruntime \S+ cannot run the .* Got \[ONNXRuntimeError\] : 9 : NOT_IMPLEMENTED\. Fix: try"
    with pytest.raises(AgreementError, match=message):
        export_onnx_integer(vitquant.compile(quantized()), tmp_path / "m.onnx", count=3)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["program.json", "verify.json", "m", ".onnx", "", "folder.onnx"])
def test_other_files_are_not_overwritten(name: str, tmp_path: Path) -> None:
    (tmp_path / "program.json").write_text("{}")
    (tmp_path / "folder.onnx").mkdir()
    with pytest.raises(ConfigError, match=r"not an ONNX file name.*expected a file with the suffix \.onnx"):
        export_onnx_qdq(quantized(), tmp_path / name, count=1)
    assert (tmp_path / "program.json").read_text() == "{}"


@pytest.mark.parametrize("content", ["", "[1]", "what was here"])
def test_a_report_that_is_none_of_ours_is_left_alone(content: str, tmp_path: Path) -> None:
    (tmp_path / "verify.json").write_text(content)
    with pytest.raises(ConfigError, match=r"verify\.json: not a report of earlier exports.* Fix: move it"):
        export_onnx_qdq(quantized(), tmp_path / "m.onnx", count=1)
    assert [path.read_text() for path in tmp_path.iterdir()] == [content]


def test_made_up_images() -> None:
    images = made_up((3, 16, 16), 5)
    assert torch.equal(images, made_up((3, 16, 16), 5))
    assert (images.dtype, tuple(images.shape)) == (torch.uint8, (5, 3, 16, 16))
    assert (int(images[0].max()), int(images[1].min())) == (0, 255)
    assert len(images[2:].unique()) > 200
