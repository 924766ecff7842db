"""Checkpoints and preprocessing on the command line: what is printed and stored, and the documented refusals."""

import json
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from support.documents import documented
from vitquant.artifact.manifest import read_manifest

MODEL = "deit_tiny_patch16_224"
FIELDS = ("--mean", "0.5", "--std", "0.25", "0.3", "0.35", "--crop-pct", "1", "--interpolation", "bilinear")
SHOWN = "32x32 RGB, bilinear, crop 1, mean 0.5 0.5 0.5, std 0.25 0.3 0.35"


@pytest.mark.job
def test_fields_of_the_preprocessing_are_used_and_stored(
    quantize: Callable[..., Any], run: Callable[..., Any], folder: Path
) -> None:
    outcome = quantize(*FIELDS, config="linears_int8.yaml")
    assert outcome.code == 0, outcome.err
    assert f"preprocessing  {SHOWN} (overridden: mean, std, crop_pct, interpolation)" in outcome.err.splitlines()
    assert str(read_manifest(Path("out")).preprocessing) == SHOWN
    stored = json.loads((folder / "out" / "summary.json").read_text())["preprocessing"]
    assert stored == json.loads((folder / "out" / "manifest.json").read_text())["preprocessing"]
    assert stored["std"] == [0.25, 0.3, 0.35]

    options = ("--model", MODEL, "--weights", "deit.safetensors", "--img-size", "32", "--eval", "photos2")
    again = run("evaluate", "out", *options, *FIELDS[:2])  # the saved model knows what it was quantized with
    assert f"preprocessing  {SHOWN} (overridden: mean, std, interpolation, crop_pct)" in again.err.splitlines()
    refused = run("evaluate", "out", *options, "--mean", "0.4")
    assert refused.code == 2
    assert documented(refused.error)


def test_evaluating_the_embedded_model_takes_its_own(run: Callable[..., Any], folder: Path) -> None:
    refused = run("evaluate", "nothere", "--model", "fashion_vit", "--mean", "0.4")
    assert refused.code == 2
    assert "nothere/manifest.json: cannot read the manifest" in refused.error


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mean": "grey"}, "error: --mean: not a number. Got 'grey', expected a number such as 0.5."),
        ({"crop_pct": ""}, "error: --crop-pct: not a number. Got '', expected a number such as 0.5."),
        ({"std": "0"}, "error: preprocessing std: bad value. Got (0.0, 0.0, 0.0), expected one positive value"),
        ({"std": "nan"}, "error: preprocessing std: bad value."),
        (
            {"crop_pct": "1.1"},
            "error: preprocessing crop_pct: bad value. Got 1.1, expected a number above 0 and at most 1.",
        ),
    ],
)
def test_bad_values(options: dict[str, str], message: str, refused: Callable[..., str]) -> None:
    found = refused(2, **options)
    assert found.startswith(message)
    assert "\n" not in found


def test_the_entry_of_the_checkpoint(quantize: Callable[..., Any], folder: Path, state: Mapping[str, Tensor]) -> None:
    averaged = {name: value + 0.01 for name, value in state.items()}
    torch.save({"model": dict(state), "model_ema": averaged, "epoch": 3}, folder / "my.pth.tar")
    notes = {}
    for entry in ("", "model"):
        options = {"weights_entry": entry} if entry else {}
        outcome = quantize(weights="my.pth.tar", calib="nowhere", **options)  # the model is printed before the images
        assert outcome.code == 3, outcome.err
        notes[entry] = [line for line in outcome.err.splitlines() if line.startswith("note  ")]
    assert "entry model_ema of the checkpoint; other entries: model (choose with weights_entry" in notes[""][0]
    assert "entry model of the checkpoint; other entries: model_ema (" in notes["model"][0]


def test_documented_refusals(
    refused: Callable[..., str], folder: Path, state: Mapping[str, Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.save({"model": dict(state), "model_ema": dict(state)}, folder / "my.pth")
    assert documented(refused(2, weights="my.pth", weights_entry="teacher"))
    torch.save({"left": dict(state), "right": dict(state)}, folder / "my.pth")
    assert documented(refused(2, weights="my.pth"))
    assert documented(refused(2, interpolation="lanczos"))

    (folder / "weights").mkdir()
    for name in ("model.safetensors", "pytorch_model.bin"):
        (folder / "weights" / name).write_bytes(b"not read")
    assert documented(refused(2, weights="weights"))
    (folder / "model-00001-of-00002.safetensors").write_bytes(b"not read")
    assert documented(refused(2, weights="model-00001-of-00002.safetensors"))

    save_file({"vit.encoder.layer.0.attention.attention.query.weight": torch.zeros(1)}, folder / "hf.safetensors")
    assert documented(refused(2, weights="hf.safetensors"))
    package = ModuleType("some.package")
    package.Config = type("Config", (), {"__module__": "some.package"})  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "some", ModuleType("some"))
    monkeypatch.setitem(sys.modules, "some.package", package)
    torch.save({"model": dict(state), "config": package.Config()}, folder / "whole.pth")
    assert documented(refused(2, weights="whole.pth"))
    name = "blocks.3.mlp.fc1.weight"
    save_file({**state, name: state[name].to(torch.float8_e4m3fn)}, folder / "small.safetensors")
    assert documented(refused(2, weights="small.safetensors"))
