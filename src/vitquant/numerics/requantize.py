"""Rescaling integers by integers: multiply, add half, shift.

A real multiplier becomes ``m * 2^-n`` with a 22-bit ``m`` (dyadic requantization: Jacob et al., 2018, section 2.2;
Yao et al., 2021, HAWQ-V3). 22 bits keep ``acc * m`` below 2^53, so int64 and float64 machines agree to the bit.
"""

from __future__ import annotations

import torch
from torch import Tensor

from vitquant.errors import NumericsError

MULTIPLIER_BITS = 22
MAX_SHIFT = 52


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


def shift_right_rounded(x: Tensor, n: Tensor | int) -> Tensor:
    """``floor(x / 2^n + 1/2)`` on integers; halves go up. ``n`` broadcasts and may be 0."""
    n = torch.as_tensor(n, dtype=x.dtype, device=x.device)
    half = torch.where(n > 0, torch.ones_like(n) << (n - 1).clamp(min=0), 0)
    return (x + half) >> n


def requantize(acc: Tensor, m: Tensor, n: Tensor, zero_point: Tensor | int, qmin: int, qmax: int) -> Tensor:
    """Accumulators to codes: ``clamp(zero_point + floor(acc * m / 2^n + 1/2), qmin, qmax)``, in int64."""
    return (shift_right_rounded(acc.long() * m, n) + zero_point).clamp(qmin, qmax)
