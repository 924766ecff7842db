"""Models, configurations and comparisons that the tests of the integer program share."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

import vitquant
from vitquant.architectures.float_vit import VisionTransformer, ViTSpec
from vitquant.architectures.model import QuantModel
from vitquant.architectures.vit import QuantViT
from vitquant.data import Preprocessing
from vitquant.executors.reference import Reference
from vitquant.measure.agreement import divergences
from vitquant.program.program import IntegerProgram

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


UNSIGNED = {"bit_type": {"signed": False}}

CONFIGS: dict[str, dict[str, Any]] = {
    "as shipped": {},
    "paired": {"attn_q_out": {"calibration_mode": "channel_wise"}, "attn_k_out": {"calibration_mode": "channel_wise"}},
    "paired, unsigned": {
        "attn_q_out": {"calibration_mode": "channel_wise", **UNSIGNED},
        "attn_k_out": {"calibration_mode": "channel_wise", **UNSIGNED},
    },
    "all unsigned": {"defaults": {"activation": UNSIGNED, "norm": UNSIGNED}},
    "unsigned stream": dict.fromkeys(("pos_embed", "residual1", "residual2"), UNSIGNED),
    "all layer_wise": {
        "defaults": {kind: {"calibration_mode": "layer_wise"} for kind in ("weight", "activation", "norm")}
    },
    "all channel_wise": {"defaults": {kind: {"calibration_mode": "channel_wise"} for kind in ("activation", "norm")}},
    "4 bits": {"defaults": {kind: {"bit_type": {"bits": 4}} for kind in ("weight", "activation", "norm")}},
    "4 bits in groups": {"defaults": {"weight": {"bit_type": {"bits": 4}, "weight_groups": 5}}},
    "2 bits in groups, layer_wise": {
        "defaults": {"weight": {"bit_type": {"bits": 2}, "weight_groups": 16, "calibration_mode": "layer_wise"}}
    },
    "16 bits": {"defaults": {"activation": {"bit_type": {"bits": 12}}, "norm": {"bit_type": {"bits": 16}}}},
    "wide weights": {"defaults": {"weight": {"bit_type": {"bits": 11}}}},
    "unsigned weights": {"defaults": {"weight": UNSIGNED}},
    "outputs too": {"defaults": {"outputs": {"output_quant_enable": True}}},
    "outputs too, unsigned, per channel": {
        "defaults": {"outputs": {"output_quant_enable": True, "calibration_mode": "channel_wise", **UNSIGNED}},
        "mlp_fc1": {"output": {"calibration_mode": "head_wise"}},
    },
    "power of two": {
        "defaults": {kind: {"quantization_method": "power_of_two"} for kind in ("weight", "activation", "norm")}
    },
    "uniform": {"intSoft": {"softmax": "uniform"}},
    "uniform per head": {
        "intSoft": {"softmax": "uniform", "calibration_mode": "channel_wise", "bit_type": {"bits": 12}}
    },
    "log2": {"intSoft": {"softmax": "log2"}},
    "log2, 3 bits": {"intSoft": {"softmax": "log2", "bit_type": {"bits": 3}}},
    "diffusion": {"intSoft": {"softmax": "diffusion"}},
    "diffusion, 12 bits, I-BERT": {
        "intSoft": {"softmax": "diffusion", "approximation": "ibert", "bit_type": {"bits": 12}}
    },
    "I-BERT": {"intSoft": {"approximation": "ibert"}},
    "Shiftmax": {"intSoft": {"approximation": "shiftmax", "softmax": "uniform"}},
    "row, 12 bits": {"intSoft": {"bit_type": {"bits": 12}}},
    "scores signed, per head": {"attn_kv_out": {"calibration_mode": "channel_wise", "bit_type": {"signed": True}}},
}

ARCHITECTURES: tuple[dict[str, Any], ...] = (
    {"num_classes": 0},
    {"dist_token": True},
    {"reg_tokens": 3, "pos_covers_prefix": False},
    {"layer_scale": True},
    {"pool": "avg"},
    {"pool": "avg", "class_token": False, "num_classes": 0},
    {"qkv_bias": False},
    {"num_heads": 1, "depth": 1},
)


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


def quantized(changes: dict[str, Any] | None = None, seed: int = 0, **spec: Any) -> QuantModel:
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


def disagreements(model: QuantModel, program: IntegerProgram, images: Tensor) -> dict[str, int]:
    """Points at which simulation and program differ, and by how many codes at most."""
    found, compared = divergences(model, program, Reference(program).run, images)
    assert compared >= 10 * model.spec.depth
    return {difference.point: difference.largest for difference in found}
