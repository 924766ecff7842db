"""What stays float and its share of the multiplications, against torch's own count."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

import vitquant
from vitquant.architectures.families import VIT
from vitquant.architectures.float_vit import VisionTransformer, ViTSpec
from vitquant.compiler.float_share import FloatShare, float_share, products
from vitquant.config import ModelConfig
from vitquant.errors import DeployabilityError

SPEC = ViTSpec(img_size=(16, 8), patch_size=(4, 4), embed_dim=8, depth=2, num_heads=2, mlp_hidden=12, num_classes=5)
WHOLE: dict[str, Any] = {"outputs": {}, "weight": {}}


def share(config: dict[str, Any], spec: ViTSpec = SPEC) -> FloatShare:
    return float_share(VIT.shapes_only(spec, ModelConfig.from_dict(config)))


@pytest.mark.parametrize(
    "changes",
    [{}, {"num_classes": 0}, {"dist_token": True}, {"reg_tokens": 3}, {"pool": "avg"}, {"in_chans": 1, "depth": 3}],
)
@torch.no_grad()
def test_the_products_are_those_that_torch_counts(changes: dict[str, Any]) -> None:
    spec = replace(SPEC, **changes)
    vit = VisionTransformer(spec).eval()
    with FlopCounterMode(display=False) as counter:
        vit(torch.zeros(1, spec.in_chans, *spec.img_size))
    model = VIT.shapes_only(spec, ModelConfig.from_dict({}))
    total = sum(product.multiplications for product in products(model))
    assert 2 * total == counter.get_total_flops()


def test_a_whole_model_in_integers() -> None:
    assert share(WHOLE) == FloatShare((), (), 0.0)
    # Outputs that go straight to another point need no integers of their own.
    assert not share(
        WHOLE | {name: {"output": {"output_quant_enable": False}} for name in ("attn_proj", "head")}
    ).points


def test_nothing_in_integers() -> None:
    found = share({})
    assert found.share == 1
    assert len(found.products) == 2 + 2 * 6
    assert {"head.weight", "final_norm", "blocks.1.intSoft", "pos_embed"} < set(found.points)
    assert "blocks.0.attn_qkv.output" not in found.points


# 9 tokens, 8 channels: embedding 8*48*8, per block qkv 9*8*24, scores and mix 9*9*8 each, proj 9*8*8, MLP twice 9*8*12.
TOTAL = 3072 + 2 * (1728 + 648 + 648 + 576 + 864 + 864) + 40


@pytest.mark.parametrize(
    ("point", "product", "multiplications"),
    [
        ("patch_embed.weight", "patch_embed", 3072),
        ("blocks.0.norm1", "blocks.0.attn_qkv", 1728),
        ("blocks.1.attn_k_out", "blocks.1.attn_kv_out", 648),
        ("blocks.0.intSoft", "blocks.0.attn_v_out", 648),
        ("blocks.0.attn_v_input", "blocks.0.attn_v_out", 648),
        ("blocks.1.attn_proj.weight", "blocks.1.attn_proj", 576),
        ("blocks.1.mlp_gelu", "blocks.1.mlp_fc2", 864),
        ("final_norm", "head", 40),
        ("blocks.0.attn_kv_out", None, 0),
        ("blocks.0.residual1", None, 0),
        ("pos_embed", None, 0),
    ],
)
def test_one_point_left_float(point: str, product: str | None, multiplications: int) -> None:
    found = share(WHOLE | {"overrides": {point: {"output_quant_enable": False}}})
    assert found == FloatShare((point,), (product,) if product else (), multiplications / TOTAL)


def test_strict_from_python() -> None:
    model = vitquant.load_fashion()
    never: Callable[[], Any] = lambda: pytest.fail("the refusal comes too late")  # noqa: E731
    with pytest.raises(DeployabilityError, match=r"strict: 49 points stay in .*, with .*pos_embed") as caught:
        vitquant.quantize(model, "linears_int8.yaml", calibration=(never() for _ in range(1)), strict=True)
    assert caught.value.exit_code == 2
    assert vitquant.prepare(model, "vit_int8.yaml", strict=True).config
