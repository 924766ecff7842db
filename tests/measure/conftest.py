"""The embedded model, quantized point by point, with the profiler on at one point of every kind."""

from dataclasses import dataclass

import pytest
from torch import Tensor

import vitquant
from vitquant.adapters.adapt import FloatModel

PROFILED = (
    "patch_embed.weight",
    "pos_embed",
    "blocks.1.norm1",
    "blocks.1.attn_qkv.weight",
    "blocks.1.attn_q_out",
    "blocks.1.intSoft",
    "blocks.1.mlp_fc1.output",
    "blocks.1.residual2",
    "head.output",
)


@dataclass(frozen=True)
class Quantized:
    """A float model, what became of it, and test images with labels."""

    original: FloatModel
    model: vitquant.QuantModel
    pixels: Tensor
    images: Tensor
    labels: Tensor


@pytest.fixture(scope="package")
def quantized() -> Quantized:
    original = vitquant.load_fashion()
    calibration, _, pixels, labels = vitquant.load_fashion_images()
    shipped = vitquant.load_config_from_yaml("vit_int8.yaml")
    overrides = {point: {"enable_profiler": True} for point in PROFILED}
    overrides["head.output"] |= {"output_quant_enable": True}
    model = vitquant.quantize(original, {**shipped, "overrides": overrides}, calibration=calibration[:16])
    images = original.preprocessing.normalize(pixels[:4, None])
    return Quantized(original, model, pixels[:4, None], images, labels[:4])
