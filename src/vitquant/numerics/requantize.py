"""Rescaling integers by integers: multiply, add half, shift.

A real multiplier becomes ``m * 2^-n`` with a 22-bit ``m`` (dyadic requantization: Jacob et al., 2018, section 2.2;
Yao et al., 2021, HAWQ-V3). 22 bits keep ``acc * m`` below 2^53, so int64 and float64 machines agree to the bit.
"""

from __future__ import annotations

import torch
from torch import Tensor

from vitquant.errors import NumericsError
from vitquant.numerics.limits import MAX_SHIFT, MULTIPLIER_BITS

SMALLEST = 2.0 ** (MULTIPLIER_BITS - 1 - MAX_SHIFT)
"""The smallest multiplier: one below it makes 0 of every 32-bit number but the very largest."""


def dyadic(multiplier: Tensor) -> tuple[Tensor, Tensor]:
    """Integers ``(m, n)`` with ``multiplier ~ m * 2^-n``, ``2^21 <= m < 2^22`` and ``0 <= n <= 52``, both int64.

    Raises:
        NumericsError: a multiplier is not positive and finite, or lies outside ``[2^-31, 2^22)``, where no shift
            expresses it.
    """
    multiplier = multiplier.double()
    mantissa, exponent = torch.frexp(multiplier)
    m = (mantissa * 2**MULTIPLIER_BITS).round().long()
    carried = m == 2**MULTIPLIER_BITS  # the mantissa rounded up to 1
    m = torch.where(carried, m // 2, m)
    n = MULTIPLIER_BITS - exponent.long() - carried.long()
    bad = ~(torch.isfinite(multiplier) & (multiplier > 0)) | (n < 0) | (n > MAX_SHIFT)
    if bad.any():
        raise NumericsError(
            "a requantization multiplier cannot be expressed by integers",
            got=f"{multiplier[bad].flatten()[0].item():.6g}",
            expected=f"a finite number in [2^-{MAX_SHIFT - MULTIPLIER_BITS + 1}, 2^{MULTIPLIER_BITS})",
            fix="look at the scales of the two points between which this value is carried",
        )
    return m, n


def at_least_smallest(multiplier: Tensor, limit: Tensor | int) -> Tensor:
    """Multipliers too small to be expressed, raised to the smallest, where numbers up to ``limit`` become 0 anyway."""
    limit = torch.as_tensor(limit, dtype=torch.float64, device=multiplier.device)
    return torch.where(limit * SMALLEST < 0.5, multiplier.clamp(min=SMALLEST), multiplier)


def expressible(multiplier: Tensor) -> bool:
    """Whether :func:`dyadic` can express all of these."""
    return bool(((multiplier >= SMALLEST) & (multiplier < 2.0**MULTIPLIER_BITS * (1 - 2.0**-MULTIPLIER_BITS))).all())


def rescale(x: Tensor, m: Tensor, n: Tensor, start: Tensor | None = None) -> Tensor:
    """``floor(x * m / 2^n + 1/2)`` of integers, int64; halves go up. ``m`` and ``n >= 0`` are int64 and broadcast.

    ``start`` is for those who have :func:`half` at hand, or want ``x + b`` rescaled: ``b * m + half(n)``, int64.
    """
    y = x.to(torch.int64, copy=True)
    y *= m
    y += half(n) if start is None else start
    y >>= n
    return y


def half(n: Tensor) -> Tensor:
    """Half of ``2^n``; none where nothing is shifted."""
    return (1 << n) >> 1


def requantize(acc: Tensor, m: Tensor, n: Tensor, zero_point: Tensor | int, qmin: int, qmax: int) -> Tensor:
    """Accumulators to codes: ``clamp(zero_point + floor(acc * m / 2^n + 1/2), qmin, qmax)``, int64."""
    y = rescale(acc, m, n)
    y += zero_point
    return y.clamp_(qmin, qmax)
