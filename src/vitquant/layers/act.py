"""A quantized activation tensor."""

from __future__ import annotations

import copy

from torch import nn

from vitquant.config import QuantConfig
from vitquant.layers.layer import entrance
from vitquant.layers.point import Point
from vitquant.numerics.affine import QuantParams
from vitquant.numerics.quantized import Value, real


class QAct(Point):
    """Rounds the tensor that passes, after an optional activation function.

    A point that is not active, and has no activation function, passes values on as they are: the accumulators of a
    linear layer whose own output is not quantized go straight to the next point.

    Args:
        quant_config: settings of the point, or ``None`` to leave it float.
        act_module: applied first, such as ``nn.GELU()``; the point keeps a copy.
        layer_name: the point's name.
        head_dim: channels of one attention head, for ``head_wise``.
    """

    def __init__(
        self,
        quant_config: QuantConfig | None,
        act_module: nn.Module | None = None,
        layer_name: str = "act",
        *,
        head_dim: int | None = None,
    ) -> None:
        super().__init__(layer_name, quant_config, head_dim=head_dim)
        self.act_module = None if act_module is None else own_activation(act_module)

    @entrance
    def forward(self, x: Value) -> Value:
        """Round ``x``."""
        if self.act_module is not None:
            return self.settle(self.act_module(real(x)))
        if self.active:
            return self.settle(x)
        self.observe(x)  # the shape
        return self.show(x, x)

    def params_after(self, *params: QuantParams | None) -> QuantParams | None:
        return params[0] if params and not self.active and self.act_module is None else self.params


def own_activation(module: nn.Module) -> nn.Module:
    """A copy of an activation function, without the hooks that somebody registered on it."""
    own = copy.deepcopy(module).eval().requires_grad_(False)
    for part in own.modules():
        for hooks in (part._forward_hooks, part._forward_pre_hooks, part._backward_hooks, part._backward_pre_hooks):
            hooks.clear()
    return own
