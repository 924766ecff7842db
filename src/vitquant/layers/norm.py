"""LayerNorm with a quantized output."""

from __future__ import annotations

import torch
from torch import nn

from vitquant.config import QuantConfig
from vitquant.layers.layer import entrance, owned
from vitquant.layers.point import Point
from vitquant.numerics.layernorm import integer_layernorm
from vitquant.numerics.quantized import QuantizedTensor, Value, integer_type, real


class QuantNorm(Point):
    """LayerNorm over the last dimension, in integers where one scale serves all channels of its input.

    The parameters are copies of those of ``norm``.
    """

    def __init__(self, norm: nn.LayerNorm, quant_config: QuantConfig | None, layer_name: str, *, head_dim: int) -> None:
        super().__init__(layer_name, quant_config, head_dim=head_dim)
        self.norm = own_norm(norm)

    @entrance
    def forward(self, x: Value) -> Value:
        """Normalise ``[..., C]``."""
        norm, params = self.norm, self.acting
        if params is None or not isinstance(x, QuantizedTensor) or not x.params.is_scalar:
            x = real(x)
            return self.settle(nn.functional.layer_norm(x, norm.normalized_shape, norm.weight, norm.bias, norm.eps))
        with self.named():
            integer = integer_layernorm(norm.weight, norm.bias, norm.eps, x.params.scale.item(), params)
        codes = integer(x.codes).to(integer_type(params.qmin, params.qmax))  # the input's zero point cancels
        y = QuantizedTensor(codes, params)
        return self.show(y, y)


def own_norm(norm: nn.LayerNorm) -> nn.LayerNorm:
    """A LayerNorm of the same parameters that shares no tensor with the given one, and is not trained."""
    own = nn.LayerNorm(norm.normalized_shape, eps=norm.eps, elementwise_affine=False)
    weight = torch.ones(norm.normalized_shape, dtype=torch.float32) if norm.weight is None else owned(norm.weight)
    bias = torch.zeros_like(weight) if norm.bias is None else owned(norm.bias)
    own.weight, own.bias = (nn.Parameter(t, requires_grad=False) for t in (weight, bias))
    return own
