"""A quantized activation tensor."""

from __future__ import annotations

import copy

from torch import Tensor, nn

from vitquant.config import QuantConfig
from vitquant.layers.layer import entrance
from vitquant.layers.point import Point
from vitquant.layers.regrid import regrid
from vitquant.numerics.affine import QuantParams


class QAct(Point):
    """Rounds the tensor that passes, after an optional activation function.

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
    def forward(self, x: Tensor, input_grid: QuantParams | None = None) -> Tensor:
        """Round ``x``. ``input_grid`` is the grid that it lies on, ``None`` if float or on the point's own."""
        if self.act_module is not None:
            x, input_grid = self.act_module(x), None
        self.observe(x)
        grid = self.grid
        return self.emit(x, x if grid is None else regrid(x, input_grid, grid))


def own_activation(module: nn.Module) -> nn.Module:
    """A copy of an activation function, without the hooks that somebody registered on it."""
    own = copy.deepcopy(module).eval().requires_grad_(False)
    for part in own.modules():
        for hooks in (part._forward_hooks, part._forward_pre_hooks, part._backward_hooks, part._backward_pre_hooks):
            hooks.clear()
    return own
