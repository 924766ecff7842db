"""What a calibrated model knows of a tensor, as a program writes it down."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from vitquant.data import Preprocessing
from vitquant.errors import NumericsError
from vitquant.layers import Point, QuantLinear
from vitquant.numerics.affine import QuantParams, quantize
from vitquant.numerics.limits import ADDEND_LIMIT, INT32_MAX
from vitquant.numerics.packing import Packing
from vitquant.numerics.quantized import addend_params
from vitquant.numerics.requantize import at_least_smallest, dyadic
from vitquant.program.values import Array, Value, narrowest


def image_value(preprocessing: Preprocessing) -> Value:
    """The pixels: their mean and standard deviation are in the weights of the patch embedding."""
    return Value("image", tuple(preprocessing.shape), 0, 255, *plain(1))


def scales(value: Value) -> Array:
    """A scale for each place of the axis, in the precision in which multipliers are made."""
    return value.spread(value.scale).astype(np.float64)


def plain(scale: float) -> tuple[Array, Array]:
    """One scale, and no zero point."""
    return np.array([scale], dtype=np.float32), np.zeros(1, dtype=np.int32)


def value_of(point: Point, shape: tuple[int, ...]) -> Value:
    """What a point's codes are, its scales written down once for each run of equal ones."""
    grid = point.require_params()
    length = shape[0] if len(shape) == 3 else shape[-1]
    scale = grid.scale.reshape(-1).cpu().numpy()
    zero = grid.zero_point.reshape(-1).cpu().numpy().astype(np.int32)
    groups = next(g for g in divisors(length) if len(scale) == 1 or (runs_equal(scale, g) and runs_equal(zero, g)))
    step = max(1, len(scale) // groups)
    return Value(point.name, shape, grid.qmin, grid.qmax, scale[::step].copy(), zero[::step].copy())


def divisors(n: int) -> Iterator[int]:
    """All divisors, from 1 up."""
    return (d for d in range(1, n + 1) if n % d == 0)


def runs_equal(array: Array, groups: int) -> bool:
    """Whether each of ``groups`` runs of neighbours holds one number."""
    rows = array.reshape(groups, -1)
    return bool((rows == rows[:, :1]).all())


def addend(stream: Value, name: str, tokens: int) -> Value:
    """A value on the scale of the stream that it is added to, without zero point; only the sum is clamped to codes."""
    shape = (tokens, stream.shape[-1])
    return Value(name, shape, -ADDEND_LIMIT, ADDEND_LIMIT, stream.scale, np.zeros_like(stream.zero_point))


def addend_codes(table: Tensor, out: Value) -> Array:
    """A table ``[1 or H, R, S]`` on the scale of the scores that it is added to, int8, int16 or int32."""
    scale = torch.from_numpy(out.per_place(out.scale))[:, None, None]
    codes = quantize(table.cpu(), addend_params(QuantParams(scale, torch.zeros_like(scale), out.low, out.high)))
    array = as_int32(codes)
    return array.astype(narrowest(min(int(array.min()), -1), int(array.max())))  # which is a signed type


def integer_form(layer: QuantLinear, grid: QuantParams) -> tuple[Array, Array, Array, Array]:
    """The layer for codes of ``grid``: weight ``[out, in]``, bias int64, scale float64 and limit int64 ``[out]``."""
    form = layer.integer_form(grid)
    # The layer keeps the form, so the program gets copies.
    weight, bias, scale, limit = (t.cpu().numpy().copy() for t in (form.weight, form.bias, form.scale, form.limit))
    return weight, bias, scale, limit


def packing_of(layer: QuantLinear) -> Packing | None:
    """How a program stores the layer's weights less their zero points, if that takes fewer than 8 bits for each."""
    packing = layer.packing
    if layer.weight.require_params().qmin == 0:  # a sign more
        packing = replace(packing, bits=packing.bits + 1)
    return packing if packing.bits < 8 else None


def rescale(real: Tensor | Array, name: str, limit: Tensor | Array | int = INT32_MAX) -> tuple[Array, Array]:
    """Real multipliers as ``multiplier`` (int32) and ``shift`` (uint8), one element where all are equal.

    ``limit`` bounds what is multiplied.

    Raises:
        NumericsError: a multiplier cannot be expressed.
    """
    real, limit = torch.as_tensor(real, dtype=torch.float64), torch.as_tensor(limit)
    real = at_least_smallest(real, limit)
    if bool((real == real[0]).all()):
        real = real[:1]
    try:
        multiplier, shift = dyadic(real)
    except NumericsError as error:
        raise error.located(name) from error
    return multiplier.cpu().numpy().astype(np.int32), shift.cpu().numpy().astype(np.uint8)


def as_int32(x: Tensor) -> Array:
    """Whole numbers of any type as an int32 array."""
    array: Array = x.cpu().numpy().astype(np.int32)
    return array
