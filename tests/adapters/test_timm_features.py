"""Refusals of timm's models name the true cause: small versions of real names, on the meta device where that builds."""

from typing import Any

import pytest
import torch
from torch import nn

from support.documents import documented
from vitquant.adapters.adapt import adapt
from vitquant.adapters.timm_bridge import read_timm
from vitquant.errors import ModelError, NumericsError

timm = pytest.importorskip("timm")

pytestmark = pytest.mark.timm

NO_DATA = "the model's parameters have no data"
TINY = {"depth": 2, "embed_dim": 48, "num_heads": 3}

CAUSES = {
    "vit_small_patch16_dinov3": "rotary positions",
    "vit_small_plus_patch16_dinov3": "rotary positions; an MLP of type SwiGLU",
    "vit_base_patch16_rope_224": "rotary positions",
    "eva02_tiny_patch14_224": "rotary positions; a gated MLP (GluMlp); the activation SiLU()",
    "vit_pe_core_tiny_patch16_384": "rotary positions; pooling 'map'",
    "eva_giant_patch14_224": "separate query and value biases (BEiT, EVA)",
    "eva02_enormous_patch14_clip_224": "residual post-norm (EvaBlockPostNorm)",
    "beit_base_patch16_224": "relative positions",
    "vit_relpos_small_patch16_224": "relative positions",
    "vit_srelpos_small_patch16_224": "relative positions",
    "vit_relpos_base_patch16_rpn_224": "relative positions; residual post-norm (ResPostRelPosBlock)",
    "vit_base_patch16_rpn_224": "residual post-norm (ResPostBlock)",
    "vit_tiny_r_s16_p8_224": "a convolutional stem (hybrid)",
    "vit_small_resnet26d_224": "a convolutional stem (hybrid)",
    "vit_base_patch16_xp_224": "attention and MLP in parallel (ParallelScalingBlock); a norm of type RmsNorm",
    "vit_small_patch16_18x2_224": "several attentions and MLPs in parallel (ParallelThingsBlock)",
    "vit_intern300m_patch14_448": "no final norm",
    "vit_base_patch16_clip_224": "a norm before the blocks (pre_norm)",
    "vit_base_patch16_siglip_gap_224": "the final norm before average pooling (fc_norm=False)",
}


@pytest.mark.parametrize("name", CAUSES)
def test_the_true_cause_is_named(name: str) -> None:
    settings: dict[str, Any] = TINY if "_r_" not in name and "resnet" not in name else {"depth": 1}
    with torch.device("meta"):
        model = timm.create_model(name, pretrained=False, **settings)
    with pytest.raises(ModelError) as caught:
        read_timm(model)
    assert f"parts that vitquant does not support: {CAUSES[name]}. Got " in str(caught.value)
    assert caught.value.exit_code == 2
    assert documented(caught.value) == (name == "vit_small_plus_patch16_dinov3")


def test_a_model_without_data() -> None:
    with torch.device("meta"):
        model = timm.create_model("vit_tiny_patch16_224", pretrained=False, **TINY)
    with pytest.raises(ModelError, match=NO_DATA):
        adapt(model)


@pytest.mark.parametrize("value", [torch.nan, -torch.inf])
def test_nan_in_a_model_object_names_the_tensor(value: float) -> None:
    model = timm.create_model("vit_tiny_patch16_224", pretrained=False, img_size=32, **TINY)
    nn.init.constant_(model.blocks[1].mlp.fc1.bias[2:3], value)
    with pytest.raises(NumericsError) as caught:
        adapt(model)
    assert documented(caught.value)
    assert caught.value.exit_code == 3
