"""Softmax on integers.

Scores are codes, so the distance ``d`` of a code from its row's maximum is a small non-negative integer and
``exp(-scale * d)`` is a table. Three ways to fill the table and four ways to write down the probabilities:

approximation
    ``table``     the exact exponential;
    ``ibert``     second-order polynomial of I-BERT (Kim et al., 2021, algorithm 2);
    ``shiftmax``  shifts and adds of I-ViT (Li and Gu, 2023, algorithm 1).
form
    ``row``       each row scaled by its own maximum, normalised by the sum of its own rounded codes;
    ``diffusion`` as ``row``, but what rounding takes from one token, or gives it, is passed on to the next;
    ``uniform``   probabilities on one calibrated affine grid;
    ``log2``      codes are rounded binary logarithms (FQ-ViT, Lin et al., 2022, section 3.2).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from vitquant.numerics.limits import DIFFUSION_BITS, EXPONENTIAL_BITS, INT32_MAX

LOG2_MAX = 15
"""Largest exponent of the ``log2`` form: products are shifted by it, and more shifts leave nothing of 16 bits."""

FINE_SCALE = 2.0**-10
"""Scale at which scores that are not on a grid of their own, or on too coarse a one, enter an approximation."""

FINEST_SCALE = 2.0**-24
"""Scales below it (a head whose scores hardly differ) are coarsened: the polynomial's constants must fit 64 bits."""


def exponential(distance: Tensor, scale: float, approximation: str) -> Tensor:
    """``exp(-scale * distance)`` as the approximation gives it, float64, 1 at distance 0.

    ``distance`` holds non-negative whole numbers. ``ibert`` and ``shiftmax`` compute in integers, on the distances
    shifted left until their scale is at most :data:`FINE_SCALE`, as a coarse scale would spoil their constants, or
    right until it is above half of :data:`FINEST_SCALE`.
    """
    if approximation == "table":
        return torch.exp(-scale * distance.double())
    refine = max(0, math.ceil(math.log2(scale / FINE_SCALE)))
    coarsen = max(0, math.floor(math.log2(FINEST_SCALE / scale)))
    fine, step = (distance.long() << refine) >> min(coarsen, 63), scale * 2.0 ** (coarsen - refine)
    integer_exponential = {"ibert": _ibert, "shiftmax": _shiftmax}[approximation]
    peak = integer_exponential(fine.new_zeros(()), step)
    return integer_exponential(fine, step).double() / peak.double()


def _ibert(d: Tensor, step: float) -> Tensor:
    """I-BERT's i-exp: ``0.3585 (p + 1.353)^2 + 0.344`` on ``p`` in ``(-ln 2, 0]``, halved once for every ``ln 2``."""
    ln2 = int(math.log(2) / step)
    halvings = d // ln2
    p = -(d - halvings * ln2)
    value = (p + int(1.353 / step)) ** 2 + int(0.344 / (0.3585 * step**2))
    return value >> halvings.clamp(max=62)


def _shiftmax(d: Tensor, step: float) -> Tensor:
    """I-ViT's ShiftExp: base 2 by ``x + x/2 - x/16``, then ``2^-f ~ 1 - f/2`` on the fraction ``f``."""
    one = round(1 / step)
    y = d + (d >> 1) - (d >> 4)
    halvings = y // one
    fraction = y - halvings * one
    return ((one - (fraction >> 1)) << 20) >> halvings.clamp(max=62)


def exponential_table(scale: float, levels: int, approximation: str) -> Tensor:
    """:func:`exponential` of all distances ``0 .. levels - 1``, float64 ``[levels]``."""
    return exponential(torch.arange(levels), scale, approximation)


def row_codes(exponentials: Tensor, bits: int, fraction_bits: int = 0) -> Tensor:
    """Form ``row``: codes ``round((2^bits - 1) * e)``. The probability of a code is its share of its row's sum.

    ``fraction_bits`` adds fractional bits: ``round((2^bits - 1) * 2^fraction_bits * e)``.
    """
    codes: Tensor = exponentials * ((2**bits - 1) << fraction_bits)
    return codes.round_()


def diffused(e: Tensor, largest: int) -> Tensor:
    """Form ``diffusion`` of exponentials with :data:`DIFFUSION_BITS` fractional bits, at most ``largest``.

    Codes are differences of the rounded running sums of a row, so those of neighbouring tokens sum to what their
    exponentials do, to within one code: error diffusion along the tokens, after Floyd and Steinberg (1976). A code is
    at most its exponential rounded up.
    """
    fits = e.shape[-1] * largest + (1 << DIFFUSION_BITS) <= INT32_MAX
    after = e.cumsum(-1, dtype=torch.int32 if fits else torch.int64)
    after += 1 << (DIFFUSION_BITS - 1)
    before = after - e
    after >>= DIFFUSION_BITS
    before >>= DIFFUSION_BITS
    return after.sub_(before)


def look_up(table: Tensor, codes: Tensor) -> Tensor:
    """``table[row maximum - code]`` of scores ``[B, H, N, N]``; each row of ``table`` serves ``H / rows`` heads."""
    distance = codes.amax(-1, keepdim=True).to(torch.int32) - codes
    count, levels = table.shape
    if count > 1:
        heads = torch.arange(codes.shape[1], dtype=torch.int32, device=codes.device) // (codes.shape[1] // count)
        distance += heads[:, None, None] * levels
    return table.flatten().index_select(0, distance.flatten()).reshape(codes.shape)


RECIPROCAL_BITS, SHARE_BITS = 50, 30
"""Fractional bits of one over a row's sum, and of the shares made with it, in the form ``uniform``."""


def shares(e: Tensor) -> Tensor:
    """Shares of 15-bit exponentials in their row's sum, with :data:`SHARE_BITS` fractional bits, int64."""
    e = e.long()
    return (e * ((1 << RECIPROCAL_BITS) // e.sum(-1, keepdim=True))) >> (RECIPROCAL_BITS - SHARE_BITS)


def log2_weights(e: Tensor, last: int) -> Tensor:
    """Form ``log2`` of 15-bit exponentials: ``2^(15 - q)`` with ``q = round(log2(sum / e))``, 0 where ``q > last``.

    ``q`` counts the thresholds ``2^(k + 1/2)`` below the ratio; they are compared by their squares, which are whole.
    """
    e = e.long()
    total = e.sum(-1, keepdim=True)
    squares, total = e * e, total * total
    q = torch.zeros_like(e)
    for k in range(last + 1):
        q += (squares << (2 * k + 1)) < total
    return torch.where(q > last, 0, 1 << (LOG2_MAX - q).clamp(min=0))


def division_bits(limit: int) -> tuple[int, int]:
    """Fractional bits of one over a row's sum, and of the quotient, for sums of products with numbers up to ``limit``.

    Their product stays below 2^52, the quotient's below 2^30.
    """
    return 52 - limit.bit_length(), 30 - limit.bit_length()


def divide(acc: Tensor, total: Tensor, reciprocal_bits: int, fraction_bits: int) -> Tensor:
    """``acc / total`` with ``fraction_bits``, int64, by one division for each ``total``."""
    y = acc.to(torch.int64, copy=True)
    y *= (1 << reciprocal_bits) // total
    y >>= reciprocal_bits - fraction_bits
    return y


def probabilities(exponentials: Tensor) -> Tensor:
    """What ``uniform`` and ``log2`` round where scores are float: shares of 15-bit exponentials in their row's sum."""
    numerator: Tensor = exponentials * (2**EXPONENTIAL_BITS - 1)
    numerator.round_()
    return numerator / numerator.sum(-1, keepdim=True)


def log2_quantize(p: Tensor, bits: int) -> Tensor:
    """Form ``log2`` of floats: the probabilities ``2^-q`` nearest in the logarithm; beyond the last code, exactly 0."""
    q = (-torch.log2(p)).round_()  # p = 0 gives infinity, which is beyond every code
    return torch.where(q > min(2**bits - 1, LOG2_MAX), 0.0, torch.exp2(-q))
