"""What a saved model must hold: a quantized model of shapes and types, made from its specification alone.

torch's meta device computes shapes without data, so the shapes of all tensors come out of the model's own forward, and
nothing has to be written down a second time.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from vitquant.architectures.quant_vit import QuantViT
from vitquant.architectures.vit import VisionTransformer, ViTSpec
from vitquant.config import ModelConfig
from vitquant.data.preprocessing import Preprocessing
from vitquant.layers import Point, QuantLinear, points_of, tapped
from vitquant.layers.regrid import code_dtype
from vitquant.numerics.affine import QuantParams

INPUTS = {
    "patch_embed": "pixels",
    "attn_qkv": "norm1",
    "attn_proj": "attn_v_out",
    "mlp_fc1": "norm2",
    "mlp_fc2": "mlp_gelu",
    "head": "final_norm",
    "head_dist": "final_norm",
}
"""Linear layer -> what its input is: the point whose scales are folded into the weights, or the pixels."""


def outline(spec: ViTSpec, config: ModelConfig, preprocessing: Preprocessing) -> QuantViT:
    """A calibrated model without numbers: every tensor is on the meta device, in the shape and type it is to have.

    Raises:
        ConfigError: the settings do not fit the architecture.
        ModelError: scales per head, and a tensor that does not fall into heads.
    """
    with torch.device("meta"):
        model = QuantViT(VisionTransformer(spec).float(), config, preprocessing)
        tensors = tensors_at_points(model, preprocessing.shape)
        grids: dict[str, QuantParams | None] = {"pixels": model.patch_embed.pixel_grid()}
        for name, point in model.point_modules().items():
            outline_point(point, tensors[name])
            grids[name] = point.params
        for linear in linears_of(model):
            if linear.weight.active:
                prefix, dot, layer = linear.layer_name.rpartition(".")
                outline_linear(linear, grids[prefix + dot + INPUTS[layer]])
    return model


def linears_of(model: QuantViT) -> Iterator[QuantLinear]:
    """The linear layers of a model."""
    return (module for module in model.modules() if isinstance(module, QuantLinear))


def tensors_at_points(model: QuantViT, image: tuple[int, ...]) -> dict[str, Tensor]:
    """What passes each point for one image ``[C, H, W]``, and the weights themselves; all without numbers."""
    found: dict[str, Tensor] = {}

    def note(point: Point, _: Tensor, after: Tensor) -> None:
        found[point.name] = after

    with tapped(points_of(model), note):
        model(torch.empty(1, *image, dtype=torch.float32))
    return found | {linear.weight.name: linear.float_weight for linear in linears_of(model)}


def outline_point(point: Point, tensor: Tensor) -> None:
    """Give a point the shape of its tensor, and the grid that it will have if it needs one."""
    point.shape = point.shape or tuple(tensor.shape[1:])  # weights know theirs
    if point.active and point.observes:
        per_channel = torch.empty(point.layout.split(tensor).shape[1], dtype=torch.float32)
        point.params = point.grid_of(per_channel, per_channel)


def outline_linear(linear: QuantLinear, grid: QuantParams | None) -> None:
    """Give a linear layer codes for an input on ``grid``, ``None`` where that stays float."""
    rows, columns = linear.float_weight.shape
    params = linear.weight.require_params()
    codes = torch.empty(rows, columns, dtype=code_dtype(params.qmin, params.qmax))
    folded = grid is not None and not grid.is_scalar
    bias, input_scale = (torch.empty(n, dtype=torch.float32) for n in (rows, columns))
    linear.realize(codes, bias, input_scale if folded else None)
