"""With every point off, the quantized model is the float model, bit for bit."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from vitquant.adapters.adapt import FloatModel
from vitquant.architectures.float_vit import VisionTransformer
from vitquant.architectures.vit import QuantViT
from vitquant.config import ModelConfig
from vitquant.data import Preprocessing
from vitquant.layers import Mode

HALF = (0.5, 0.5, 0.5)
DISABLED = {section: {"output_quant_enable": False} for section in ("weight", "outputs", "activation")}
ARCHITECTURES: dict[str, dict[str, object]] = {
    "plain": {},
    "no class token": {"class_token": False, "pool": "avg"},
    "average pool": {"pool": "avg"},
    "average pool, registers": {"pool": "avg", "reg_tokens": 2},
    "layer scale, registers": {"layer_scale": True, "reg_tokens": 3},
    "registers without positions": {"reg_tokens": 3, "pos_covers_prefix": False},
    "distilled": {"dist_token": True},
    "distilled, no head": {"dist_token": True, "num_classes": 0},
    "no head": {"num_classes": 0},
    "no qkv bias": {"qkv_bias": False},
    "oblong": {"img_size": (8, 16), "patch_size": (4, 2)},
}


def images_for(vit: VisionTransformer) -> Tensor:
    pixels = torch.randint(
        0, 256, (5, vit.spec.in_chans, *vit.spec.img_size), generator=torch.Generator().manual_seed(1)
    )
    return pixels / 127.5 - 1


@pytest.mark.parametrize("document", [DISABLED, {"defaults": {}}], ids=["disabled", "empty"])
@pytest.mark.parametrize("name", list(ARCHITECTURES))
def test_every_architecture(name: str, document: dict[str, object], make_vit: Callable[..., VisionTransformer]) -> None:
    vit = make_vit(**ARCHITECTURES[name])
    model = QuantViT(vit, ModelConfig.from_dict(document), Preprocessing(vit.spec.img_size, HALF, HALF))
    x = images_for(vit)
    with torch.no_grad():
        expected = vit(x)
        if vit.spec.dist_token and not vit.spec.num_classes:
            assert torch.equal(model(x), vit.norm(features(vit, x))[:, 0])
            return
        for mode in Mode:
            model.set_mode(mode)
            assert torch.equal(model(x), expected), mode
    assert not any(info.active or info.params for info in model.points())


def features(vit: VisionTransformer, x: Tensor) -> Tensor:
    x = vit.embed(x)
    for block in vit.blocks:
        x = block(x)
    return x


def test_the_embedded_model(fashion: FloatModel, fashion_images: Tensor) -> None:
    model = QuantViT(fashion.vit, ModelConfig.from_dict(DISABLED), fashion.preprocessing)
    with torch.no_grad():
        for mode in Mode:
            model.set_mode(mode)
            assert torch.equal(model(fashion_images), fashion.vit(fashion_images))


def test_an_active_model_is_float_in_mode_fp32(fashion: FloatModel, fashion_images: Tensor) -> None:
    model = QuantViT(fashion.vit, ModelConfig.from_yaml("vit_int8.yaml"), fashion.preprocessing)
    assert model.mode is Mode.FP32
    with torch.no_grad():
        assert torch.equal(model(fashion_images), fashion.vit(fashion_images))


def test_one_point_alone_is_the_only_difference(fashion: FloatModel, fashion_images: Tensor) -> None:
    """Switched on one by one, each weight changes the output, and nothing else of the model does."""
    model = QuantViT(fashion.vit, ModelConfig.from_dict({"weight": {"bit_type": {"bits": 4}}}), fashion.preprocessing)
    points = model.point_modules()
    with torch.no_grad():
        expected = fashion.vit(fashion_images[:2])
        for name in ("patch_embed.weight", "blocks.0.attn_qkv.weight", "blocks.5.mlp_fc2.weight", "head.weight"):
            points[name].set_mode(Mode.QUANTIZED)
            assert not torch.equal(model(fashion_images[:2]), expected), name
            points[name].set_mode(Mode.FP32)
            assert torch.equal(model(fashion_images[:2]), expected)
