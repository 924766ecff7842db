"""Models, configurations and comparisons that the tests of the integer program share."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

import vitquant
from vitquant.data import Preprocessing
from vitquant.integer.agreement import divergences
from vitquant.integer.program import IntegerProgram
from vitquant.integer.reference import Reference
from vitquant.models.quant_vit import QuantViT
from vitquant.models.vit import VisionTransformer, ViTSpec

PREPROCESSING = Preprocessing((16, 16), (0.5, 0.4, 0.3), (0.2, 0.25, 0.3))

SHIPPABLE: dict[str, Any] = {
    "defaults": {
        "weight": {"calibration_mode": "channel_wise"},
        "outputs": {"output_quant_enable": False},
        "activation": {"calibration_mode": "head_wise"},
        "norm": {"calibration_mode": "channel_wise"},
    },
    **{
        point: {"calibration_mode": "layer_wise", "bit_type": {"bits": 16}}
        for point in ("pos_embed", "residual1", "residual2")
    },
    "attn_kv_out": {"bit_type": {"signed": False}},
    "intSoft": {"softmax": "row", "bit_type": {"signed": False}},
    "mlp_fc1": {"output": {"output_quant_enable": True}},
}
"""Every point in integers; a test changes what it is about."""


def merged(base: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """Nested settings with some of them changed."""
    out = dict(base)
    for key, value in changes.items():
        out[key] = merged(out.get(key, {}), value) if isinstance(value, dict) else value
    return out


def tiny_spec(**changes: Any) -> ViTSpec:
    """A ViT of a few thousand parameters."""
    sizes = {"img_size": (16, 16), "patch_size": (4, 4), "embed_dim": 24, "depth": 2, "num_heads": 3}
    return ViTSpec(**{**sizes, "mlp_hidden": 48, "num_classes": 5, **changes})


def pixels(count: int, seed: int = 0, shape: tuple[int, ...] = (3, 16, 16)) -> Tensor:
    """Images ``[count, 3, 16, 16]`` with some structure."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(count, shape[0], 4, 4, generator=generator)
    fine = torch.rand(count, *shape, generator=generator)
    smooth = torch.nn.functional.interpolate(coarse, shape[1:], mode="bilinear")
    return ((0.7 * smooth + 0.3 * fine) * 255).round().to(torch.uint8)


def quantized(changes: dict[str, Any] | None = None, seed: int = 0, **spec: Any) -> QuantViT:
    """A calibrated model: what of :data:`SHIPPABLE` and of the architecture is different."""
    torch.manual_seed(seed)
    vit = VisionTransformer(tiny_spec(**spec)).eval()
    with torch.no_grad():
        for name, parameter in vit.named_parameters():
            if parameter.ndim == 1:
                parameter.add_(0.1 * torch.randn_like(parameter))
            elif name.endswith("weight"):
                parameter.mul_(3)
    model = QuantViT(vit, vitquant.ModelConfig.from_dict(merged(SHIPPABLE, changes or {})), PREPROCESSING)
    return vitquant.calibrate(model, pixels(16))


def disagreements(model: QuantViT, program: IntegerProgram, images: Tensor) -> dict[str, int]:
    """Points at which simulation and program differ, and by how many codes at most."""
    found, compared = divergences(model, program, Reference(program).run, images)
    assert compared >= 10 * model.spec.depth
    return {difference.point: difference.largest for difference in found}
