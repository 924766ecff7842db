"""The residual stream."""

from __future__ import annotations

from torch import Tensor

from vitquant.layers.layer import entrance
from vitquant.layers.point import Point
from vitquant.layers.regrid import addend_grid, regrid
from vitquant.numerics.affine import QuantParams, dequantize


class QuantResidual(Point):
    """Adds two tensors on the stream's grid.

    Integers can only add what has one scale, so each addend is rounded to the stream's scale first and the sum of the
    codes is clamped. Rounding the exact sum once would be a little better, and not what a device does.
    """

    @entrance
    def forward(
        self, x: Tensor, y: Tensor, x_grid: QuantParams | None = None, y_grid: QuantParams | None = None
    ) -> Tensor:
        """Add two tensors, each given with the grid that it lies on.

        ``None`` stands for floats, and for numbers that were rounded to the stream's scale already.
        """
        total = x + y
        self.observe(total)
        grid = self.grid
        if grid is None:
            return self.emit(total, total)
        scaled = addend_grid(grid)
        codes = (regrid(x, x_grid, scaled) / grid.scale).round_() + (regrid(y, y_grid, scaled) / grid.scale).round_()
        codes += grid.zero_point
        return self.emit(total, dequantize(codes.clamp_(grid.qmin, grid.qmax), grid))

    @property
    def addend_grid(self) -> QuantParams | None:
        """What the addends are rounded to; ``None`` while the point lets floats pass."""
        return None if self.grid is None else addend_grid(self.grid)
