"""Between real numbers on a grid and their codes, and from grid to grid exactly as a device does it.

The simulator passes real numbers from layer to layer. Where it knows the grids on both sides of a step, it goes back to
the codes and computes the step in integers, so that what is measured is what ships, to the bit.
"""

from __future__ import annotations

import torch
from torch import Tensor

from vitquant.numerics.affine import QuantParams, dequantize, fake_quantize
from vitquant.numerics.limits import ADDEND_LIMIT, INT32_MAX
from vitquant.numerics.requantize import at_least_smallest, dyadic, expressible, requantize


def code_dtype(low: int, high: int) -> torch.dtype:
    """The narrowest integer type that holds these codes."""
    for dtype in (torch.int8, torch.uint8, torch.int16):
        info = torch.iinfo(dtype)
        if info.min <= low and high <= info.max:
            return dtype
    return torch.int32


def codes_of(x: Tensor, grid: QuantParams) -> Tensor:
    """The codes of numbers that lie on the grid, in the narrowest type."""
    return (x / grid.scale).add_(grid.zero_point).round_().to(code_dtype(grid.qmin, grid.qmax))


def centred_codes(x: Tensor, grid: QuantParams) -> Tensor:
    """The same, less the zero point."""
    return (x / grid.scale).round_().to(centred_dtype(grid))


def centred_dtype(grid: QuantParams) -> torch.dtype:
    """The narrowest type of codes less any zero point."""
    span = grid.qmax - grid.qmin
    return code_dtype(grid.qmin, grid.qmax) if grid.qmin < 0 else code_dtype(-span, span)


def centred_limit(grid: QuantParams) -> int:
    """Largest magnitude of a code less any zero point."""
    return max(-grid.qmin, grid.qmax)


def addend_grid(grid: QuantParams) -> QuantParams:
    """The grid of what is added up to land on ``grid``: its scale, no zero point, no clamping."""
    return QuantParams(grid.scale, torch.zeros_like(grid.zero_point), -ADDEND_LIMIT, ADDEND_LIMIT)


def land(acc: Tensor, scale: Tensor, target: QuantParams, limit: Tensor | int = INT32_MAX) -> Tensor | None:
    """Integers whose unit is ``scale`` (float64, broadcasts), requantized to ``target``, as real numbers.

    ``limit`` bounds the integers. ``None`` where no integer multiplier expresses the step; such a setting is simulated
    in float.
    """
    multiplier = at_least_smallest(scale / target.scale.double(), limit)
    if not expressible(multiplier):
        return None
    codes = requantize(acc, *dyadic(multiplier), target.zero_point.long(), target.qmin, target.qmax)
    return dequantize(codes, target)


def regrid(x: Tensor, source: QuantParams | None, target: QuantParams) -> Tensor:
    """``x`` on ``target``. ``source`` is the grid that it lies on, ``None`` if it is float or on ``target`` already."""
    if source is not None:
        landed = land(centred_codes(x, source), source.scale.double(), target)
        if landed is not None:
            return landed
    return fake_quantize(x, target)


def channels(grid: QuantParams | None, part: slice) -> QuantParams | None:
    """The grid of some channels."""
    if grid is None or grid.is_scalar:
        return grid
    return QuantParams(grid.scale[part], grid.zero_point[part], grid.qmin, grid.qmax)
