"""The residual stream."""

from __future__ import annotations

from torch import Tensor

from vitquant.layers.point import Point
from vitquant.numerics.affine import dequantize


class QuantResidual(Point):
    """Adds two tensors on the stream's grid.

    Integers can only add what has one scale, so each addend is rounded to the stream's scale first and the sum of the
    codes is clamped. Rounding the exact sum once would be a little better, and not what a device does.
    """

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        total = x + y
        self.observe(total)
        grid = self.grid
        if grid is None:
            return self.emit(total, total)
        codes = (x / grid.scale).round_() + (y / grid.scale).round_() + grid.zero_point
        return self.emit(total, dequantize(codes.clamp_(grid.qmin, grid.qmax), grid))
