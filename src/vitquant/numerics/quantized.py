"""The quantized tensor: integers together with what they mean.

A layer of the simulator returns what a device has at that place: integers on a scale (:class:`QuantizedTensor`), the
accumulators of a product (:class:`Accumulators`), or, where something stays in floating point, a plain tensor. The next
point requantizes it. What is measured is therefore what ships, to the bit.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TypeAlias

import torch
from torch import Tensor

from vitquant.numerics.affine import QuantParams, dequantize, quantize
from vitquant.numerics.limits import ADDEND_LIMIT, INT32_MAX
from vitquant.numerics.requantize import at_least_smallest, dyadic, expressible, requantize


@dataclass(frozen=True, eq=False)
class QuantizedTensor:
    """``scale * (codes - zero_point)``: ``codes`` are quantized values in the narrowest integer type."""

    codes: Tensor
    params: QuantParams

    def real(self) -> Tensor:
        """The real numbers that the codes stand for."""
        return dequantize(self.codes, self.params)

    def centred(self) -> Tensor:
        """The codes less their zero point, in the narrowest integer type."""
        if self.params.qmin < 0:  # signed parameters are symmetric
            return self.codes
        return (self.codes - self.params.zero_point).to(integer_type(-self.centred_limit, self.centred_limit))

    @property
    def centred_limit(self) -> int:
        """Largest magnitude of :meth:`centred`, whatever the zero point."""
        return centred_limit(self.params)

    @property
    def row_limit(self) -> int:
        """Largest magnitude of the sum of a row of :meth:`centred`."""
        return self.codes.shape[-1] * self.centred_limit

    def channels(self, part: slice) -> QuantizedTensor:
        """Some places of the last dimension."""
        return QuantizedTensor(self.codes[..., part], channels_of(self.params, part))

    def with_codes(self, codes: Tensor) -> QuantizedTensor:
        """Other codes on the same parameters: some tokens, or their mean."""
        return replace(self, codes=codes)


@dataclass(frozen=True, eq=False)
class Accumulators:
    """``unit * sums``: int32 or int64 sums that no point has requantized yet.

    ``unit`` (float64) broadcasts against ``sums``; ``limit`` bounds their magnitude, per channel or for all. ``dtype``
    is the type of the real numbers. ``table`` are real numbers that are added to these, such as a position bias of
    scores: the next point rounds them by themselves, and clamps the sum.
    """

    sums: Tensor
    unit: Tensor
    dtype: torch.dtype
    limit: Tensor | int = INT32_MAX
    table: Tensor | None = None

    def real(self) -> Tensor:
        """The real numbers that the sums stand for, with what is added to them."""
        x = (self.sums * self.unit).to(self.dtype)
        return x if self.table is None else x + self.table

    def channels(self, part: slice) -> Accumulators:
        """Some places of the last dimension."""
        limit = self.limit if isinstance(self.limit, int) else self.limit[part]
        return Accumulators(self.sums[..., part], self.unit[..., part], self.dtype, limit)


Value: TypeAlias = Tensor | QuantizedTensor | Accumulators
"""What passes between layers."""


def real(value: Value) -> Tensor:
    """The real numbers that a value stands for."""
    return value if isinstance(value, Tensor) else value.real()


def on(value: Value, params: QuantParams) -> QuantizedTensor:
    """A value on these quantization parameters, requantized by integers as a device does it.

    Real numbers are rounded, and so is what no integer multiplier expresses; such a setting is a simulation only.
    """
    if isinstance(value, QuantizedTensor) and value.params is params:
        return value
    codes = None if isinstance(value, Tensor) else requantized(value, params)
    if codes is None:
        codes = quantize(real(value), params)
    return QuantizedTensor(codes.to(integer_type(params.qmin, params.qmax)), params)


def requantized(value: QuantizedTensor | Accumulators, params: QuantParams) -> Tensor | None:
    """The codes of a value on other parameters, int64; ``None`` where no integer multiplier expresses the step."""
    if isinstance(value, Accumulators):
        unit, limit = value.unit, value.limit
    else:
        unit, limit = value.params.scale.double(), INT32_MAX
    multiplier = at_least_smallest(unit / params.scale.double(), limit)
    if not expressible(multiplier):
        return None
    zero = params.zero_point.long()
    if isinstance(value, QuantizedTensor):
        sums = value.centred()
    else:
        sums = value.sums
        if value.table is not None:
            zero = zero + quantize(value.table, addend_params(params)).long()
    return requantize(sums, *dyadic(multiplier), zero, params.qmin, params.qmax)


def addend_params(params: QuantParams) -> QuantParams:
    """The parameters of what is added up to a tensor with these: its scale, no zero point, no clamping."""
    return QuantParams(params.scale, torch.zeros_like(params.zero_point), -ADDEND_LIMIT, ADDEND_LIMIT)


def channels_of(params: QuantParams, part: slice) -> QuantParams:
    """The parameters of some channels."""
    return params if params.is_scalar else replace(params, scale=params.scale[part], zero_point=params.zero_point[part])


def centred_limit(params: QuantParams) -> int:
    """Largest magnitude of a code less any zero point."""
    return max(-params.qmin, params.qmax)


def integer_type(low: int, high: int) -> torch.dtype:
    """The narrowest integer type that holds these numbers."""
    for dtype in (torch.int8, torch.uint8, torch.int16):
        info = torch.iinfo(dtype)
        if info.min <= low and high <= info.max:
            return dtype
    return torch.int32
