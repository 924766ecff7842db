"""LayerNorm with a quantized output."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vitquant.config import QuantConfig
from vitquant.layers.layer import entrance, owned
from vitquant.layers.point import Point
from vitquant.numerics.affine import QuantParams, dequantize
from vitquant.numerics.layernorm import integer_layernorm


class QuantNorm(Point):
    """LayerNorm over the last dimension, in integers where its input lies on one grid for all channels.

    The parameters are copies of those of ``norm``.
    """

    def __init__(self, norm: nn.LayerNorm, quant_config: QuantConfig | None, layer_name: str, *, head_dim: int) -> None:
        super().__init__(layer_name, quant_config, head_dim=head_dim)
        self.norm = own_norm(norm)

    @entrance
    def forward(self, x: Tensor, input_grid: QuantParams | None = None) -> Tensor:
        """Normalise ``[..., C]``. ``input_grid`` is the grid that ``x`` lies on, ``None`` while it is float."""
        norm, grid = self.norm, self.grid
        if grid is None or input_grid is None or not input_grid.is_scalar:
            y = F.layer_norm(x, norm.normalized_shape, norm.weight, norm.bias, norm.eps)
            self.observe(y)
            return self.emit(y, self.round(y))
        codes = (x / input_grid.scale).round_()  # the zero point cancels
        with self.named():
            integer = integer_layernorm(norm.weight, norm.bias, norm.eps, input_grid.scale.item(), grid)
        y = dequantize(integer(codes), grid)
        return self.emit(y, y)


def own_norm(norm: nn.LayerNorm) -> nn.LayerNorm:
    """A LayerNorm of the same parameters that shares no tensor with the given one, and is not trained."""
    own = nn.LayerNorm(norm.normalized_shape, eps=norm.eps, elementwise_affine=False)
    weight = torch.ones(norm.normalized_shape, dtype=torch.float32) if norm.weight is None else owned(norm.weight)
    bias = torch.zeros_like(weight) if norm.bias is None else owned(norm.bias)
    own.weight, own.bias = (nn.Parameter(t, requires_grad=False) for t in (weight, bias))
    return own
