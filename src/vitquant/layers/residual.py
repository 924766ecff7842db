"""The residual stream: its beginning, and each addition to it."""

from __future__ import annotations

from torch import Tensor

from vitquant.config import QuantConfig
from vitquant.layers.layer import Shape, entrance, owned
from vitquant.layers.point import Point
from vitquant.numerics.affine import QuantParams
from vitquant.numerics.quantized import QuantizedTensor, Value, addend_params, integer_type, on, real
from vitquant.numerics.tokens import pad_prefix


class QuantResidual(Point):
    """Adds two tensors on the scale of the residual stream.

    Integers can only add what has one scale, so each addend is rounded to the stream's scale first and the sum of the
    codes is clamped. Rounding the exact sum once would be a little better, and not what a device does.
    """

    @entrance
    def forward(self, x: Value, y: Value) -> Value:
        """Add two tensors ``[B, N, C]``."""
        params = self.acting
        if params is None:
            return self.settle(real(x) + real(y))
        return self.show(lambda: real(x) + real(y), clamped_sum(addend(x, params), addend(y, params), params))


class QuantEmbedding(Point):
    """Patch tokens ``[B, P, C]`` to the start of the residual stream, ``[B, N, C]``.

    Args:
        table: what is added, ``[1, N, C]``: the prefix tokens (class, distillation, registers) and the position
            embedding. It is copied.
        prefix: how many of the ``N`` tokens stand before the patches.
        quant_config, layer_name, head_dim: as for any point.
    """

    def __init__(
        self, table: Tensor, prefix: int, quant_config: QuantConfig | None, layer_name: str, *, head_dim: int
    ) -> None:
        super().__init__(layer_name, quant_config, head_dim=head_dim)
        self.prefix = prefix
        self.table: Tensor
        self.register_buffer("table", owned(table))

    @entrance
    def forward(self, patches: Value) -> Value:
        """Put the patches in their places and add the table."""
        params = self.acting
        if params is None:
            return self.settle(self.placed(real(patches)) + self.table)
        y = clamped_sum(self.placed(addend(patches, params)), addend(self.table, params), params)
        return self.show(lambda: self.placed(real(patches)) + self.table, y)

    def placed(self, patches: Tensor) -> Tensor:
        """The patches in their places after the prefix tokens."""
        return pad_prefix(patches, self.prefix)

    def shape_after(self, *shapes: Shape) -> Shape:
        return tuple(self.table.shape[1:])


def addend(x: Value, params: QuantParams) -> Tensor:
    """A tensor rounded to the scale of the sum: int32, less its zero point."""
    return on(x, addend_params(params)).codes


def clamped_sum(x: Tensor, y: Tensor, params: QuantParams) -> QuantizedTensor:
    """The sum of two addends."""
    codes = x + y
    codes += params.zero_point.to(codes.dtype)
    return QuantizedTensor(codes.clamp_(params.qmin, params.qmax).to(integer_type(params.qmin, params.qmax)), params)
