"""Which points are named as having outliers: planted ones, and not those of a good configuration."""

import copy
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

import vitquant
from vitquant.adapters.adapt import FloatModel
from vitquant.architectures.float_vit import VisionTransformer
from vitquant.config import QuantConfig
from vitquant.measure.outliers import Outlier, RangeMeter, outlier_message, outlier_of
from vitquant.measure.profile import Profiler
from vitquant.numerics.affine import QuantParams

WHOLE: dict[str, Any] = {"weight": {}, "outputs": {"output_quant_enable": False}, "activation": {}}


@torch.no_grad()
def named(model: FloatModel, config: Any) -> dict[str, Outlier]:
    """What a profile names, without the runs of its single points."""
    images, _, test_images, _ = vitquant.load_fashion_images()
    profiler = Profiler(vitquant.quantize(model, config, calibration=images[:8, None]))
    profiler.chain(model.preprocessing.normalize(test_images[:4, None]))
    return {found.point: found for found in profiler.outliers()}


@pytest.fixture(scope="module")
def model() -> FloatModel:
    return vitquant.load_fashion()


def planted(model: FloatModel) -> tuple[FloatModel, VisionTransformer]:
    vit = copy.deepcopy(model.vit)
    return replace(model, vit=vit), vit


def test_the_embedded_model_has_none(model: FloatModel) -> None:
    assert named(model, "vit_int8.yaml") == {}
    assert named(model, WHOLE) == {}


@torch.no_grad()
def test_a_planted_channel_is_named_until_it_has_a_scale_of_its_own(model: FloatModel) -> None:
    changed, vit = planted(model)
    block: Any = vit.blocks[2]
    block.norm2.weight[5] *= 300
    block.norm2.bias[5] *= 300
    block.mlp.fc1.weight[:, 5] /= 300  # the model computes what it did
    found = named(changed, WHOLE)
    assert set(found) == {"blocks.2.norm2"}
    assert found["blocks.2.norm2"].ratio > 50
    assert found["blocks.2.norm2"].fix == "calibration_mode: channel_wise"
    assert named(changed, {**WHOLE, "norm2": {"calibration_mode": "channel_wise"}}) == {}


@torch.no_grad()
def test_a_planted_token_is_named_until_it_has_the_bits(model: FloatModel) -> None:
    changed, vit = planted(model)
    signs = torch.where(torch.arange(vit.spec.embed_dim) % 2 == 0, 1.0, -1.0)
    vit.pos_embed[0, 3] += 300 * signs
    found = named(changed, WHOLE)
    assert {"pos_embed", "blocks.0.residual1"} <= set(found)
    assert found["pos_embed"].fix == "bit_type: {bits: 16}"
    wide = {"bit_type": {"bits": 16}}
    assert not named(changed, {**WHOLE, **dict.fromkeys(("pos_embed", "residual1", "residual2"), wide)})


@torch.no_grad()
def test_a_planted_weight_is_named(model: FloatModel) -> None:
    changed, vit = planted(model)
    block: Any = vit.blocks[1]
    block.attn.proj.weight[4, 4] = 30.0
    found = named(changed, {"weight": {}})
    assert found["blocks.1.attn_proj.weight"].fix == "calibration_mode: channel_wise"
    assert not named(changed, {"weight": {"calibration_mode": "channel_wise", "observer_type": "OmseObserver"}})


def grid(high: float, bits: int = 8) -> QuantParams:
    top = 2 ** (bits - 1) - 1
    return QuantParams(torch.tensor(high / top), torch.tensor(0.0), -top - 1, top)


def meter(x: Tensor, params: QuantParams) -> RangeMeter:
    found = RangeMeter(params, channel_dim=-1)
    for batch in x.split(3):
        found.add(batch)
    return found


def test_a_few_values_by_hand() -> None:
    x = torch.ones(4, 50, 40)
    x[:, 0, 0] = 16.0  # one of 2,000 values, and the first token and channel
    found = meter(x, grid(127.0 * 16 / 128))  # integers reach 16
    assert (found.few, found.channels, found.tokens) == pytest.approx((16, 16, 16))
    assert found.ratio == pytest.approx(16)
    assert found.levels == pytest.approx(8)
    point = outlier_of("blocks.0.mlp_gelu", QuantConfig(calibration_mode="channel_wise"), found)
    assert point is not None
    assert point.fix == "observer_type: PercentileObserver with percentile_alpha: 0.9999"
    assert str(point) == f"blocks.0.mlp_gelu (16 times, try {point.fix})"


def test_clipping_and_bits_help() -> None:
    x = torch.ones(4, 50, 40)
    x[:, 0, 0] = 16.0
    assert outlier_of("blocks.0.norm1", QuantConfig(), meter(x, grid(1.0))) is None
    assert outlier_of("blocks.0.norm1", QuantConfig(), meter(x, grid(16.0, bits=16))) is None
    assert outlier_of("blocks.0.norm1", QuantConfig(), meter(x, grid(16.0, bits=4))) is not None


def test_neither_zeros_nor_the_cut_into_batches_matter() -> None:
    zeros = meter(torch.zeros(4, 5, 6), grid(1.0))
    assert (zeros.few, zeros.channels, zeros.tokens) == (1, 1, 1)
    x = torch.randn(7, 20, 6)
    whole = RangeMeter(grid(4.0), channel_dim=-1)
    whole.add(x)
    assert meter(x, grid(4.0)).ratio == pytest.approx(whole.ratio, rel=1e-6)


def test_the_message_names_the_worst_three() -> None:
    points = [Outlier(f"blocks.{i}.norm1", 10.0 + i, "bit_type: {bits: 16}") for i in range(5)]
    assert outlier_message(points) == (
        "outliers take up most of the range at 5 points: blocks.4.norm1 (14 times, try bit_type: {bits: 16}), "
        "blocks.3.norm1 (13 times, try bit_type: {bits: 16}), blocks.2.norm1 (12 times, try bit_type: {bits: 16}) "
        "and 2 more"
    )
