"""Rewrites of the float weights: the model computes the same, and what they are for holds."""

from __future__ import annotations

import hashlib
import json
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import Tensor

import vitquant
from support.integer_models import ARCHITECTURES, PREPROCESSING, SHIPPABLE, disagreements, merged, pixels, tiny_spec
from support.tensor_files import load_file
from vitquant.architectures.float_vit import VisionTransformer
from vitquant.architectures.model import QuantModel
from vitquant.architectures.vit import QuantViT
from vitquant.calibration.rewrite import REWRITES
from vitquant.calibration.rewrite.wiring import maker, readers
from vitquant.errors import ArtifactError, ConfigError
from vitquant.layers import Mode, QuantNorm, hooked, only
from vitquant.layers.graph import graph_of
from vitquant.numerics.quantized import real
from vitquant.numerics.sqnr import SqnrMeter

ALL = list(REWRITES)


def float_vit(seed: int = 0, **spec: Any) -> VisionTransformer:
    torch.manual_seed(seed)
    vit = VisionTransformer(tiny_spec(**spec)).eval()
    with torch.no_grad():
        for parameter in vit.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return vit.requires_grad_(False)


def model_of(vit: VisionTransformer, repair: list[Any], changes: dict[str, Any] | None = None) -> QuantModel:
    config = {**merged(SHIPPABLE, changes or {}), "repair": repair}
    return QuantViT(vit, vitquant.ModelConfig.from_dict(config), PREPROCESSING)


def in_float(model: QuantModel, images: Tensor) -> Tensor:
    with only([], model):
        return real(model(images))


def agreement(a: Tensor, b: Tensor) -> float:
    meter = SqnrMeter()
    meter.add(a, b)
    return meter.db


def keeping(points: list[Any], seen: dict[str, Tensor]) -> AbstractContextManager[None]:
    """Within the block, note what passes the points."""
    return hooked(points, lambda point, before, after: seen.__setitem__(point.name, real(after)))


@pytest.mark.parametrize("spec", ARCHITECTURES, ids=str)
@pytest.mark.parametrize("steps", [[name] for name in ALL] + [ALL], ids=str)
def test_the_float_model_computes_the_same(spec: dict[str, Any], steps: list[str]) -> None:
    vit = float_vit(**spec)
    model = vitquant.calibrate(model_of(vit, steps), pixels(8))
    images = pixels(4, seed=9)
    assert [applied.name for applied in model.rewrites] == steps
    assert agreement(vit(model.preprocessing.normalize(images)), in_float(model, images)) > 90


def test_norms_lose_their_parameters_but_for_the_one_that_is_an_output() -> None:
    model = vitquant.calibrate(model_of(float_vit(layer_scale=True), ["canonical_form"]), pixels(8))
    plain = {
        norm.name: bool((norm.norm.weight == 1).all() and (norm.norm.bias == 0).all())
        for norm in model.modules()
        if isinstance(norm, QuantNorm)
    }
    assert plain == {**{f"blocks.{i}.norm{j}": True for i in (0, 1) for j in (1, 2)}, "final_norm": False}
    assert all(linear.gain is None for linear in model.linears())


def test_keys_and_values_have_no_mean() -> None:
    images = pixels(8)
    model = vitquant.calibrate(model_of(float_vit(), [{"centring": {"images": 8}}]), images)
    seen: dict[str, Tensor] = {}
    points = [
        p for p in model.point_modules().values() if p.name.endswith(("attn_k_out", "attn_v_input", "attn_q_out"))
    ]
    with keeping(points, seen):
        in_float(model, images)
    for name, x in seen.items():
        mean, spread = x.mean((0, 1)), x.std((0, 1))
        assert bool((mean.abs() < 1e-4 * spread).all()) == (not name.endswith("attn_q_out")), name


def test_hidden_channels_are_in_the_order_of_their_magnitude() -> None:
    images = pixels(8)
    model = vitquant.calibrate(model_of(float_vit(), [{"sorted_channels": {"images": 8}}]), images)
    seen: dict[str, Tensor] = {}
    with keeping([p for p in model.point_modules().values() if p.name.endswith("mlp_gelu")], seen):
        in_float(model, images)
    for x in seen.values():
        peaks = x.abs().amax((0, 1))
        assert bool((peaks[1:] >= peaks[:-1] - 1e-5).all())


@pytest.mark.filterwarnings("ignore::vitquant.calibration.repair.run.RepairWarning")
def test_a_rewritten_model_ships_and_its_integers_equal_the_simulation() -> None:
    model = vitquant.calibrate(model_of(float_vit(layer_scale=True), [*ALL, "migration", "gptq"]), pixels(16))
    assert disagreements(model, vitquant.compile(model), pixels(4, seed=5)) == {}


@pytest.mark.parametrize(
    "changes", [{}, {"head": {"weight": {"output_quant_enable": False}}}], ids=["integers", "float head"]
)
def test_a_saved_model_is_loaded_beside_its_float_model(tmp_path: Path, changes: dict[str, Any]) -> None:
    vit = float_vit(layer_scale=True)
    model = vitquant.calibrate(model_of(vit, ALL, changes), pixels(8))
    vitquant.save(model, tmp_path)
    images = pixels(4, seed=5)
    alone, beside = vitquant.load(tmp_path), vitquant.load(tmp_path, vit=vit)
    assert torch.equal(alone(images), model(images))
    assert torch.equal(beside(images), model(images))
    assert agreement(in_float(model, images), in_float(beside, images)) > 90
    for linear, other in zip(model.linears(), beside.linears(), strict=True):
        assert agreement(linear.effective()[0], other.effective()[0]) > 90  # in the same order
    vitquant.save(beside, tmp_path / "again")
    assert (tmp_path / "again/model.safetensors").read_bytes() == (tmp_path / "model.safetensors").read_bytes()


def test_a_saved_model_with_a_damaged_order_is_refused(tmp_path: Path) -> None:
    vitquant.save(vitquant.calibrate(model_of(float_vit(), ["sorted_channels"]), pixels(8)), tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    tensors["rewrite.0.blocks.0.mlp_gelu"][0] = tensors["rewrite.0.blocks.0.mlp_gelu"][1]
    save_file(tensors, tmp_path / "model.safetensors")
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    blob = (tmp_path / "model.safetensors").read_bytes()
    manifest["tensors"] |= {"sha256": hashlib.sha256(blob).hexdigest(), "bytes": len(blob)}
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(ArtifactError, match="not an order of channels"):
        vitquant.load(tmp_path)


def test_a_failure_leaves_the_float_weights_as_they_were(monkeypatch: pytest.MonkeyPatch) -> None:
    model = model_of(float_vit(), ALL)
    before = [linear.effective()[0].clone() for linear in model.linears()]

    def fail(*_: object) -> None:
        raise RuntimeError("stop")

    monkeypatch.setattr("vitquant.workflows.quantize.calibrate_batches", fail)
    with pytest.raises(RuntimeError, match="stop"):
        vitquant.calibrate(model, pixels(8))
    assert all(torch.equal(a, linear.effective()[0]) for a, linear in zip(before, model.linears(), strict=True))
    assert model.rewrites == ()
    assert model.mode is Mode.FP32


def test_a_second_calibration_rewrites_again() -> None:
    model = vitquant.calibrate(model_of(float_vit(), ALL), pixels(8))
    first = in_float(model, pixels(4))
    vitquant.calibrate(model, pixels(8, seed=3))
    assert len(model.rewrites) == 2 * len(ALL)
    assert agreement(first, in_float(model, pixels(4))) > 90


def test_images_that_can_be_read_once_are_enough() -> None:
    once, often = (model_of(float_vit(), ["augmentation", *ALL]) for _ in range(2))
    images = pixels(12)
    vitquant.calibrate(once, (batch for batch in images.split(3)), batch_size=4)
    vitquant.calibrate(often, images, batch_size=4)
    for a, b in zip(once.points(), often.points(), strict=True):
        assert (a.params is None) == (b.params is None)
        assert a.params is None or b.params is None or torch.equal(a.params.scale, b.params.scale), a.name


def test_one_image_is_not_taken_for_several_that_are_identical(recwarn: pytest.WarningsRecorder) -> None:
    vitquant.calibrate(model_of(float_vit(), ["centring"]), pixels(1))
    assert not [str(w.message) for w in recwarn if "identical" in str(w.message)]


def test_a_rewrite_after_the_calibration_is_refused() -> None:
    model = vitquant.calibrate(model_of(float_vit(), []), pixels(8))
    with pytest.raises(ConfigError, match="runs before the calibration"):
        vitquant.repair(model, pixels(8), ["centring"])
    with pytest.raises(ConfigError, match="centring runs before gptq"):
        model_of(float_vit(), ["gptq", "centring"])


def test_nothing_is_made_or_read_across_a_function_or_by_two_readers() -> None:
    graph = graph_of(model_of(float_vit(), []))
    steps = {step.name: step for step in graph.steps}
    made = maker(graph, steps["blocks.0.attn.attn_k_out"])
    assert made is not None
    assert (made[0].layer_name, made[1]) == ("blocks.0.attn_qkv", slice(24, 48))
    assert maker(graph, steps["blocks.0.mlp.mlp_gelu"]) is None  # GELU is between
    assert maker(graph, steps["blocks.0.residual1"]) is None
    behind = readers(graph, steps["blocks.0.norm1"])
    assert behind is not None
    assert [linear.layer_name for linear in behind] == ["blocks.0.attn_qkv"]
    assert readers(graph, steps["blocks.0.residual1"]) is None  # norm2 and residual2
    assert readers(graph, steps["final_norm"]) is None  # an output


@given(seed=st.integers(0, 2**16), heads=st.sampled_from([1, 2, 4]), dim=st.sampled_from([8, 16]))
def test_any_model_computes_the_same(seed: int, heads: int, dim: int) -> None:
    vit = float_vit(seed, num_heads=heads, embed_dim=dim, depth=1, mlp_hidden=2 * dim, layer_scale=bool(seed % 2))
    model = vitquant.calibrate(
        model_of(vit, ALL, {"defaults": {"activation": {"calibration_mode": "channel_wise"}}}), pixels(4, seed)
    )
    images = pixels(2, seed + 1)
    assert agreement(vit(model.preprocessing.normalize(images)), in_float(model, images)) > 85
