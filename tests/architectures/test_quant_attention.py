"""The attention block of the specification: its eight layers, on our block and on timm's."""

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from vitquant.adapters.adapt import FloatModel, sqnr_db
from vitquant.architectures.float_vit import Block, VisionTransformer
from vitquant.architectures.vit import QuantAttention
from vitquant.calibration.calibrate import RangeWarning, calibrate_batches
from vitquant.config import POINT_KINDS, QuantConfig, load_config_from_yaml
from vitquant.errors import ConfigError, ModelError
from vitquant.layers import IntSoftmax, Mode, QAct, QuantLinear, points_of, set_mode
from vitquant.numerics.affine import quantize
from vitquant.numerics.pairing import product_per_head
from vitquant.numerics.quantized import real
from vitquant.numerics.tokens import split_heads

LINEARS = ("attn_qkv", "attn_proj")
ACTS = ("attn_q_out", "attn_k_out", "attn_v_input", "attn_kv_out", "attn_v_out")


@pytest.fixture(scope="module")
def attn_config() -> dict[str, Any]:
    return load_config_from_yaml("configs/attn_config.yaml")


@pytest.fixture(scope="module")
def block(fashion: FloatModel) -> Block:
    return fashion.vit.blocks[2]  # type: ignore[no-any-return]


@pytest.fixture(scope="module")
@torch.no_grad()
def tokens(fashion: FloatModel, fashion_images: Tensor) -> Tensor:
    """What the block's attention gets to see: ``[16, 50, 96]``."""
    x = fashion.vit.embed(fashion_images)
    for block in fashion.vit.blocks[:2]:
        x = block(x)
    return fashion.vit.blocks[2].norm1(x)  # type: ignore[no-any-return]


@torch.no_grad()
def test_the_specifications_usage(block: Block, attn_config: dict[str, Any], tokens: Tensor) -> None:
    attn = QuantAttention(block, attn_config)
    for name in LINEARS:
        layer = getattr(attn, name)
        assert isinstance(layer, QuantLinear)
        assert layer.weight.active
        assert not layer.output.active, "output_quant_enable: False"
    for name in ACTS:
        assert isinstance(getattr(attn, name), QAct)
        assert getattr(attn, name).config == attn_config[name]
    assert isinstance(attn.intSoft, IntSoftmax)
    assert sorted(p.name for p in points_of(attn)) == sorted(
        section for section in POINT_KINDS if section.startswith(("attn_", "intSoft"))
    )

    exact = block.attn(tokens)
    assert torch.equal(attn(tokens), exact)
    calibrate_batches(attn, tokens[:8].split(4))
    quantized = attn(tokens[8:])
    assert quantized.isfinite().all()
    assert 17 < sqnr_db(exact[8:], quantized) < 60
    set_mode(attn, Mode.FP32)
    assert torch.equal(attn(tokens), exact)


@pytest.mark.timm
@torch.no_grad()
def test_a_block_of_timms() -> None:
    import timm

    torch.manual_seed(0)
    settings = {"img_size": 32, "patch_size": 8, "embed_dim": 48, "depth": 1, "num_heads": 3}
    model = timm.models.vision_transformer.VisionTransformer(**settings).eval()
    for parameter in model.parameters():  # timm's own start makes all probabilities alike
        parameter.copy_(torch.randn(parameter.shape) * 0.2)
    attn = QuantAttention(model.blocks[0], load_config_from_yaml("configs/attn_config.yaml"))
    x = torch.randn(12, 17, 48)
    exact = model.blocks[0].attn(x)
    torch.testing.assert_close(attn(x), exact, rtol=1e-4, atol=1e-6)
    calibrate_batches(attn, [x[:8]])
    assert sqnr_db(exact[8:], attn(x[8:])) > 20


def test_a_norm_inside_the_attention_is_not_passed_over(make_vit: Callable[..., VisionTransformer]) -> None:
    block: Any = make_vit().blocks[0]
    block.attn.q_norm = nn.Identity()  # timm's attention has one, in most models
    QuantAttention(block, {"weight": {}})
    block.attn.q_norm = nn.LayerNorm(8)
    with pytest.raises(ModelError, match=r"normalises its queries or keys.*q_norm LayerNorm"):
        QuantAttention(block, {"weight": {}})


@torch.no_grad()
def test_q_and_k_are_paired(block: Block, attn_config: dict[str, Any], tokens: Tensor) -> None:
    """The scores come from integer products, and one constant a head."""
    attn = calibrate_batches(QuantAttention(block, attn_config), [tokens])
    q_params, k_params = attn.attn_q_out.require_params(), attn.attn_k_out.require_params()
    product = (q_params.scale * k_params.scale).reshape(3, 32)
    assert product.unique(dim=0).shape[0] == 3
    torch.testing.assert_close(product, product[:, :1].expand(3, 32), rtol=1e-6, atol=0)

    q, k, _ = attn.attn_qkv(tokens).chunk(3, dim=-1)
    peak_q, peak_k = q.abs().amax((0, 1)), k.abs().amax((0, 1))
    assert (q_params.scale >= peak_q / 128).all(), "nothing that calibration saw is clipped"
    assert (k_params.scale >= peak_k / 128).all()
    codes = [split_heads(quantize(t, p).double(), 3) for t, p in ((q, q_params), (k, k_params))]
    integers = (codes[0] @ codes[1].transpose(-2, -1)) * product[:, :1, None].double() * attn.scale
    seen: list[Tensor] = []
    attn.attn_kv_out.hook = lambda point, before, after: seen.append(real(after))
    attn(tokens)
    grid = attn.attn_kv_out.require_params()
    low, high = ((end - grid.zero_point) * grid.scale for end in (grid.qmin, grid.qmax))
    steps = (seen[0].double() - torch.clamp(integers, low, high)) / grid.scale
    assert steps.abs().max() <= 0.5 + 1e-4, "the scores are the integer products, rounded once"


@pytest.mark.parametrize(
    ("q", "k", "paired"),
    [
        ({}, {}, True),
        ({"bit_type": {"signed": False}}, {}, True),
        ({"calibration_mode": "layer_wise"}, {}, False),
        ({}, {"calibration_mode": "head_wise"}, False),
        ({"output_quant_enable": False}, {}, False),
    ],
)
@torch.no_grad()
def test_when_pairing_applies(q: dict[str, Any], k: dict[str, Any], paired: bool, block: Block, tokens: Tensor) -> None:
    base: dict[str, Any] = {"calibration_mode": "channel_wise"}
    configs = {"weight": base, "activation": base, "attn_q_out": base | q, "attn_k_out": base | k}
    attn = calibrate_batches(QuantAttention(block, configs), [tokens])
    products = (attn.attn_q_out.params, attn.attn_k_out.params)
    scales = [p.scale for p in products if p is not None]
    found = product_per_head(scales[0], scales[1], attn.num_heads) if len(scales) == 2 else None
    assert isinstance(found, Tensor) is paired
    k_scale = attn.attn_k_out.require_params().scale
    tight = block.attn.qkv(tokens).chunk(3, -1)[1].abs().amax((0, 1)) / 127
    if paired:
        product = (attn.attn_q_out.require_params().scale * k_scale).reshape(3, -1)
        torch.testing.assert_close(product, product[:, :1].expand_as(product), rtol=1e-6, atol=0)
    elif "calibration_mode" not in k:
        torch.testing.assert_close(k_scale, tight)
    assert sqnr_db(block.attn(tokens), attn(tokens)) > 20


@torch.no_grad()
def test_pairing_keeps_powers_of_two(block: Block, tokens: Tensor) -> None:
    base: dict[str, Any] = {"calibration_mode": "channel_wise"}
    configs = {"activation": base, "attn_k_out": base | {"quantization_method": "power_of_two"}}
    attn = calibrate_batches(QuantAttention(block, configs), [tokens])
    for point in (attn.attn_q_out, attn.attn_k_out):
        assert (torch.frexp(point.require_params().scale).mantissa == 0.5).all()


@torch.no_grad()
def test_v_out_is_folded_into_the_projection(block: Block, attn_config: dict[str, Any], tokens: Tensor) -> None:
    attn = QuantAttention(block, attn_config)
    before = attn.attn_proj.weight_codes
    calibrate_batches(attn, [tokens])
    scale = attn.attn_v_out.require_params().scale
    assert torch.equal(attn.attn_proj.input_scale, scale)  # type: ignore[arg-type]
    folded = block.attn.proj.weight * scale
    row = folded.abs().amax(1, keepdim=True) / 127
    assert torch.equal(attn.attn_proj.weight_codes.float(), (folded / row).round())
    assert not torch.equal(attn.attn_proj.weight_codes, before)
    assert attn.attn_qkv.input_scale is None


@torch.no_grad()
def test_head_wise_everywhere(block: Block, tokens: Tensor) -> None:
    sections = ("weight", "outputs", "activation")
    attn = QuantAttention(block, {section: {"calibration_mode": "head_wise"} for section in sections})
    calibrate_batches(attn, [tokens])
    shapes = {p.name: tuple(p.require_params().scale.shape) for p in points_of(attn)}
    per_channel = dict.fromkeys(("attn_q_out", "attn_k_out", "attn_v_input", "attn_v_out", "attn_proj.output"), (96,))
    assert shapes == per_channel | {
        "attn_qkv.weight": (288, 1),
        "attn_qkv.output": (288,),
        "attn_proj.weight": (96, 1),
        "attn_kv_out": (3, 1, 1),
        "intSoft": (3, 1, 1),
    }
    for point in points_of(attn):
        assert point.require_params().scale.unique().numel() <= (9 if "qkv" in point.name else 3)
    assert sqnr_db(block.attn(tokens), attn(tokens)) > 20


@torch.no_grad()
def test_the_global_form_speaks_for_missing_layers(block: Block, tmp_path: Path) -> None:
    path = tmp_path / "global.yaml"
    path.write_text(
        "outputs: {bit_type: {bits: 7}, output_quant_enable: False}\n"
        "weight: {bit_type: {bits: 5}}\n"
        "activation: {bit_type: {bits: 6}}\n"
        "intSoft: {bit_type: {bits: 4, signed: False}}\n"
    )
    attn = QuantAttention(block, load_config_from_yaml(path))
    bits = {p.name: p.require_config().bit_type.bits for p in points_of(attn)}
    assert bits == dict.fromkeys(ACTS, 6) | {
        "attn_qkv.weight": 5,
        "attn_proj.weight": 5,
        "attn_qkv.output": 7,
        "attn_proj.output": 7,
        "intSoft": 4,
    }


def test_a_file_that_says_nothing_of_a_layer_leaves_it_float(block: Block) -> None:
    attn = QuantAttention(block, {"attn_qkv": {"weight": QuantConfig(), "output": None}})
    assert [p.name for p in points_of(attn) if p.active] == ["attn_qkv.weight"]


def test_a_name_that_is_no_layer_is_refused(block: Block) -> None:
    with pytest.raises(ConfigError, match="attn_qkw"):
        QuantAttention(block, {"attn_qkw": {"weight": QuantConfig()}})


@torch.no_grad()
def test_a_dead_head(make_vit: Callable[..., VisionTransformer]) -> None:
    """A head whose Q and K are all zero has scores without range; it must not disturb the other, in any form."""
    block: nn.Module = make_vit(embed_dim=16, num_heads=2).blocks[0]
    qkv = block.attn.qkv  # type: ignore[union-attr]
    for rows in (slice(0, 8), slice(16, 24)):
        qkv.weight[rows], qkv.bias[rows] = 0, 0  # type: ignore[union-attr, operator]
    x = torch.randn(6, 5, 16, generator=torch.Generator().manual_seed(0))
    every = {"calibration_mode": "channel_wise"}
    for form, approximation in itertools.product(("diffusion", "row"), ("table", "ibert", "shiftmax")):
        soft = {"bit_type": {"signed": False}, "softmax": form, "approximation": approximation}
        attn = QuantAttention(block, {"weight": every, "activation": every, "intSoft": soft})  # type: ignore[arg-type]
        with pytest.warns(RangeWarning, match="at 4 points"):
            calibrate_batches(attn, [x])
        assert attn.attn_q_out.no_range == attn.attn_k_out.no_range == 8
        assert attn.attn_kv_out.no_range == 1
        assert sqnr_db(block.attn(x), attn(x)) > 25  # type: ignore[operator]
    qkv.weight[0:8] = qkv.weight[8:16] * 1e-12  # type: ignore[union-attr, operator, index]
    qkv.weight[16:24] = qkv.weight[24:32] * 1e-12  # type: ignore[union-attr, operator, index]
    attn = QuantAttention(block, {"weight": every, "activation": every, "intSoft": soft})  # type: ignore[arg-type]
    calibrate_batches(attn, [x])
    assert sqnr_db(block.attn(x), attn(x)) > 25  # type: ignore[operator]
