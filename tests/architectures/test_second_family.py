"""A family that vitquant does not know goes the whole way, from settings to every runtime, by its own file alone."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import vitquant
from support.gated_windows import GATED_WINDOWS, GatedWindows, Spec
from support.integer_models import SHIPPABLE, disagreements, merged, pixels
from support.numpy_executor import NumpyExecutor
from vitquant.adapters.adapt import FloatModel
from vitquant.architectures import families
from vitquant.architectures.families import register
from vitquant.architectures.model import QuantModel
from vitquant.calibration.rewrite import REWRITES
from vitquant.compiler.deployability import verdicts
from vitquant.config import ModelConfig, catalogue
from vitquant.data import Preprocessing
from vitquant.errors import ConfigError, ModelError
from vitquant.executors.choose import open_executor
from vitquant.layers import QuantNorm, only
from vitquant.numerics.quantized import real
from vitquant.numerics.sqnr import SqnrMeter
from vitquant.program.storage import encode_program
from vitquant.workflows.export import export_onnx_integer, export_onnx_qdq

CHANGES: dict[str, dict[str, Any]] = {
    "one scale": {},
    "per channel": {f"attn_{x}_out": {"calibration_mode": "channel_wise"} for x in "qk"},
    "scores per head": {"attn_kv_out": {"calibration_mode": "channel_wise", "bit_type": {"signed": True}}},
    "product per channel": {"mlp_product": {"calibration_mode": "channel_wise"}},
    "uniform": {"intSoft": {"softmax": "uniform"}},
}


@pytest.fixture(autouse=True)
def registered() -> Iterator[None]:
    """The family is known to the tests of this file only."""
    known: list[dict[str, Any]] = [families._FAMILIES, catalogue._LAYERS, catalogue._KINDS]
    before = [dict(d) for d in known]
    register(GATED_WINDOWS)
    yield
    for d, old in zip(known, before, strict=True):
        d.clear()
        d.update(old)


@pytest.mark.filterwarnings("ignore::vitquant.calibration.repair.run.RepairWarning")
def test_repair_steps_know_its_blocks_and_layers() -> None:
    model, plain = quantized({"repair": ["bias_correction"]}), quantized()
    (record,) = vitquant.repair(model, pixels(16), ["bias_correction"])
    assert record.changed == ()
    moved = [
        a.layer_name for a, b in zip(model.linears(), plain.linears(), strict=True) if (a.bias_hat != b.bias_hat).any()
    ]
    assert moved == [linear.layer_name for linear in model.linears()]
    assert disagreements(model, vitquant.compile(model), pixels(5, seed=1)) == {}


def test_its_float_weights_are_rewritten_where_its_layers_allow_it() -> None:
    model, images = quantized({"repair": list(REWRITES)}), pixels(5, seed=1)
    found, same = float_model(), SqnrMeter()
    with only([], model), torch.no_grad():
        same.add(found.vit(found.preprocessing.normalize(images)), real(model(images)))
    assert same.db > 90
    norms = {m.name: bool((m.norm.weight == 1).all()) for m in model.modules() if isinstance(m, QuantNorm)}
    assert norms == {
        "blocks.0.norm1": False,
        "blocks.0.norm2": True,
        "blocks.1.norm1": False,
        "blocks.1.norm2": True,
        "final_norm": True,
    }
    assert disagreements(model, vitquant.compile(model), images) == {}


def float_model(seed: int = 0) -> FloatModel:
    torch.manual_seed(seed)
    model = GatedWindows(Spec())
    with torch.no_grad():
        for parameter in model.blocks.parameters():
            parameter.mul_(2)
    return vitquant.adapt(model.eval(), preprocessing=Preprocessing((16, 16), (0.4, 0.5, 0.6), (0.2, 0.3, 0.4)))


def quantized(changes: dict[str, Any] | None = None) -> QuantModel:
    config = merged(SHIPPABLE, {"mlp_gate": {"output": {"output_quant_enable": True}}, **(changes or {})})
    return vitquant.quantize(float_model(), config, calibration=pixels(16))


def test_without_rounding_it_is_the_float_model() -> None:
    model = float_model()
    images = model.preprocessing.normalize(pixels(4, seed=1))
    unrounded = vitquant.prepare(model, merged(SHIPPABLE, {}))
    with torch.no_grad():
        torch.testing.assert_close(unrounded(images), model.vit(images), rtol=1e-4, atol=1e-5)


def test_the_settings_are_read_by_name() -> None:
    config = ModelConfig.from_dict({"mlp_gate": {"weight": {"bit_type": {"bits": 4}}}, "mlp_product": {}})
    resolved = vitquant.prepare(float_model(), config).config
    gate = resolved["blocks.1.mlp_gate.weight"]
    assert gate is not None
    assert gate.bit_type.bits == 4
    assert resolved["blocks.0.mlp_product"] is not None
    assert resolved["blocks.0.mlp_fc1.weight"] is None


@pytest.mark.job
@pytest.mark.parametrize("changes", CHANGES.values(), ids=CHANGES.keys())
def test_integers_equal_the_simulation(changes: dict[str, Any]) -> None:
    model = quantized(changes)
    assert all(verdict.ships for verdict in verdicts(model))
    program = vitquant.compile(model)
    images = pixels(5, seed=1)
    assert disagreements(model, program, images) == {}
    names = ["logits", "tokens"]
    found = vitquant.Reference(program, outputs=names).all(images)
    independent = NumpyExecutor(*encode_program(program))
    for index, image in enumerate(images.numpy()):
        for name, codes in independent.outputs(image).items():
            np.testing.assert_array_equal(found[name].codes[index].numpy(), codes, err_msg=name)
    simulated = model.outputs(images, names)
    torch.testing.assert_close(found["tokens"].real(), simulated["tokens"], rtol=1e-5, atol=1e-6)
    assert {op.kind for op in program.operations} >= {"gather", "multiply", "scores", "mix", "pool"}


@pytest.mark.native
def test_the_native_executor_gives_the_same_integers() -> None:
    program, images = vitquant.compile(quantized()), pixels(5, seed=2)
    names = ["logits", "tokens"]
    reference = open_executor(program, "reference", outputs=names).all(images)
    native = open_executor(program, "native", outputs=names).all(images)
    assert all(torch.equal(native[name].codes, reference[name].codes) for name in names)


@pytest.mark.job
def test_both_onnx_forms(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    model = quantized()
    assert export_onnx_integer(vitquant.compile(model), tmp_path / "integer.onnx", count=5).equal
    for target in ("onnxruntime", "tensorrt"):
        assert export_onnx_qdq(model, tmp_path / f"{target}.onnx", target=target, images=pixels(5, seed=1)).sqnr_db > 25


@pytest.mark.job
def test_it_is_measured_saved_and_read(tmp_path: Path) -> None:
    model, images = quantized(), pixels(6, seed=3)
    evaluation, profile = vitquant.evaluate(model, images), vitquant.profile(model, images)
    assert evaluation.sqnr_db > 15
    assert {p.name for p in profile.points} == set(model.config)
    vitquant.save(model, tmp_path)
    again = vitquant.load(tmp_path, vit=float_model().vit)
    assert torch.equal(again(images), model(images))
    assert encode_program(vitquant.compile(vitquant.load(tmp_path))) == encode_program(vitquant.compile(model))
    with pytest.raises(Exception, match="not the one that was quantized"):
        vitquant.load(tmp_path, vit=GatedWindows(Spec(hidden=64)))


def test_names_are_taken_once() -> None:
    register(GATED_WINDOWS)
    other = families.Family("gated_windows", Spec, GatedWindows, QuantModel, {})
    with pytest.raises(ModelError, match="two families have the same name"):
        register(other)
    layer = catalogue.LayerSection("mlp_fc1", "mlp", catalogue.PointKind.NORM, "another")
    with pytest.raises(ConfigError, match="two layers have the same name"):
        register(families.Family("other", Spec, GatedWindows, QuantModel, {}, (layer,)))
