"""``vitquant export`` on what ``vitquant quantize`` wrote."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import vitquant
from support.integer_models import quantized
from vitquant.program.storage import save_program

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")


@pytest.mark.job
def test_both_forms(quantize: Callable[..., Any], run: Callable[..., Any], folder: Path) -> None:
    assert quantize().code == 0
    outcome = run("export", "out", "--onnx-integer", "exported/int.onnx", "--images", "photos2")
    assert outcome.code == 0, outcome.err
    assert "compared with the reference executor on 6 images: identical" in outcome.out
    outcome = run("export", "out", "--onnx-qdq", "exported/qdq.onnx", "--images", "photos", "--json")
    assert outcome.code == 0, outcome.err
    found = json.loads(outcome.out)
    assert found["sqnr_db"] > 20
    assert set(json.loads((folder / "exported" / "verify.json").read_text())) == {"int.onnx", "qdq.onnx"}


@pytest.fixture
def results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder; in ``out`` a tiny model with weights of 4 bits, and its program."""
    monkeypatch.chdir(tmp_path)
    model = quantized({"defaults": {"weight": {"bit_type": {"bits": 4}}}})
    vitquant.save(model, "out")
    save_program(vitquant.compile(model), "out")
    return tmp_path


def contents(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.usefixtures("results")
def test_what_a_target_cannot_take_is_told(run: Callable[..., Any]) -> None:
    command = ("export", "out", "--onnx-qdq", "rt.onnx", "--target", "tensorrt")
    outcome = run(*command, "--json")
    assert outcome.code == 0, outcome.err
    found = json.loads(outcome.out)
    assert any(note.startswith("blocks.0.residual1: left float") for note in found["notes"])
    outcome = run(*command)
    assert "Note: compared in ONNX Runtime; TensorRT itself was not run." in outcome.out
    assert f"{len(found['notes'])} points differ from the simulation, such as pos_embed: left float" in outcome.out


def test_opset_and_int4(run: Callable[..., Any], results: Path) -> None:
    types = {}
    for name, opset, *flags in (("packed", 21), ("plain", 21, "--no-packed"), ("old", 19)):
        outcome = run("export", "out", "--onnx-qdq", f"{name}.onnx", "--opset", str(opset), "--json", *flags)
        assert outcome.code == 0, outcome.err
        assert json.loads(outcome.out)["opset"] == opset
        stored = {t.name: t.data_type for t in onnx.load(results / f"{name}.onnx").graph.initializer}
        types[name] = stored["blocks.0.mlp_fc1.weight/codes"]
    assert types == {"packed": onnx.TensorProto.INT4, "plain": onnx.TensorProto.INT8, "old": onnx.TensorProto.INT8}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            ("--onnx-qdq", "m.onnx", "--opset", "17", "--target", "tensorrt"),
            "opset: ONNX is not written in this opset. Got 17, expected 18 to 21. "
            "Fix: leave it out for 20, which tensorrt takes.",
        ),
        (
            ("--onnx-integer", "m.onnx", "--target", "tensorrt", "--no-packed"),
            "--target --no-packed: not available for the integer form, which is the same for all runtimes. "
            "Fix: omit it, or use --onnx-qdq.",
        ),
        (
            ("--onnx-integer", "out/program.json"),
            "out/program.json: not an ONNX file name. Got .json, expected a file with the suffix .onnx.",
        ),
    ],
    ids=["opset", "integer form", "another file"],
)
def test_what_is_refused(options: tuple[str, ...], message: str, run: Callable[..., Any], results: Path) -> None:
    before = contents(results)
    outcome = run("export", "out", *options)
    assert (outcome.code, outcome.error) == (2, f"error: {message}")
    assert contents(results) == before


@pytest.mark.parametrize(
    ("package", "options", "fix"),
    [
        ("onnx", ["--onnx-integer"], "'vitquant[export]'"),
        ("onnxruntime", ["--onnx-qdq"], "'vitquant[export]'"),
        ("openvino", ["--target", "openvino", "--onnx-qdq"], "openvino"),
    ],
)
def test_a_missing_package_is_told(
    package: str, options: list[str], fix: str, run: Callable[..., Any], results: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    before = contents(results)
    outcome = run("export", "out", *options, "m.onnx", "--count", "1")
    assert outcome.code == 4
    assert outcome.error.startswith(f"error: export: {package} is needed for this and cannot be imported")
    assert outcome.error.endswith(f"Fix: pip install {fix}.")
    assert contents(results) == before


def test_there_must_be_something_to_export(run: Callable[..., Any], folder: Path) -> None:
    outcome = run("export", "photos", "--onnx-integer", "int.onnx")
    assert (outcome.code, "cannot read the program" in outcome.error) == (2, True)
    assert not (folder / "int.onnx").exists()
