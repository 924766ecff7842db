"""Clipping range by least squared error (OMSE).

Choukroun et al., "Low-bit quantization of neural networks for efficient inference", ICCV workshops 2019, section 3:
of the ranges that may be chosen take the one whose codes reproduce the tensor best, clipping and rounding together.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from vitquant.numerics.affine import code_range, params_from_range
from vitquant.numerics.clip import channel_slices, first_minimum, fractions, full_range, shrink

OCTAVES = 5


def least_error_range(
    counts: Tensor, width: Tensor, low: Tensor, high: Tensor, *, bits: int, signed: bool, narrow: bool
) -> tuple[Tensor, Tensor]:
    """The range per channel, the full one or a fraction down to 1/32, with the least expected squared error.

    Args:
        counts: ``[channels, bins]``; bin ``i`` counts values in ``[(i - bins/2) * width, (i + 1 - bins/2) * width)``.
        width: of a bin, ``[channels]``.
        low: exact minimum, float64 ``[channels]``.
        high: exact maximum, alike.
        bits: of the codes.
        signed: symmetric or affine.
        narrow: without the most negative code.

    Returns:
        Low and high end, float64 ``[channels]``.
    """
    fraction = fractions(OCTAVES, low.device)
    full_low, full_high = full_range(low, high, signed)
    grid = params_from_range(full_low, full_high, bits=bits, signed=signed, narrow=narrow)
    qmin, qmax = code_range(bits, signed, narrow)
    step = (full_high if signed else full_high - full_low) / qmax / width
    step = torch.where(step > 0, step, 1.0)  # any will do for a channel that holds nothing but zero
    best = []
    per_grid = 2**bits if needs_edges(2**bits, counts.shape[1]) else 1
    for part in channel_slices(len(low), max(counts.shape[1], per_grid * len(fraction))):
        steps = step[part].unsqueeze(1) * fraction
        zero = grid.zero_point[part].double().unsqueeze(1)
        best.append(first_minimum(expected_error(counts[part], steps, qmin - zero, qmax - zero)))
    return shrink(low, high, fraction[torch.cat(best)], signed)


def expected_error(counts: Tensor, step: Tensor, lowest: Tensor, highest: Tensor) -> Tensor:
    """Squared error of rounding a histogram's values to the grids ``step * (lowest, lowest + 1, ..., highest)``.

    Values are taken as spread evenly inside their bins. Going up over the edge ``e`` between two codes changes the
    squared error of every ``x`` beyond it by ``-2 step (x - e)``, so that, exactly,

        ``sum (x - q(x))^2 = sum (x - bottom)^2 - 2 step * sum_edges U(e)``,  ``U(e) = sum max(x - e, 0)``.

    Where codes are more than a quarter as many as bins, a step is no coarser than what the histogram resolves, and
    the error is that of clipping plus ``step^2 / 12`` for every value inside.

    Args:
        counts: ``[channels, bins]``, zero in the middle.
        step: of the grids, in bins, positive, float64 ``[channels, grids]``.
        lowest: smallest code, where zero's is 0, float64 ``[channels, 1]``.
        highest: largest code, alike; there are equally many in all channels.

    Returns:
        Sum of squared errors in squared bins, float64 ``[channels, grids]``.
    """
    half = counts.shape[1] // 2
    tails = _Tails.of(counts)
    bottom, top = step * lowest + half, step * highest + half
    codes = int((highest - lowest)[0]) + 1
    if needs_edges(codes, counts.shape[1]):
        edge = torch.arange(codes - 1, dtype=torch.float64, device=counts.device) + 0.5
        edges = bottom.unsqueeze(2) + step.unsqueeze(2) * edge
        excess = tails.excess(edges.flatten(1)).view(edges.shape).sum(dim=2)
        return tails.spread(bottom) - 2 * step * excess
    inside = tails.count(bottom) - tails.count(top)
    clipped = tails.spread(bottom) - tails.square(bottom) + tails.square(top)
    return clipped + inside * step.square() / 12


def needs_edges(codes: int, bins: int) -> bool:
    """Whether the cells of a grid are so coarse that the histogram shows how values lie inside them."""
    return 4 * codes <= bins


@dataclass(frozen=True)
class _Tails:
    """Sums over the values beyond a position, in bins from the first; an empty bin is put before the first and after
    the last, so that positions outside the histogram need no care. All ``[channels, bins + 2]``.
    """

    h: Tensor
    counts: Tensor
    excesses: Tensor
    squares: Tensor

    @classmethod
    def of(cls, counts: Tensor) -> _Tails:
        h = F.pad(counts.double(), (1, 1))
        # Each sum is the integral of the one before, from the position to infinity; inside a bin h is constant.
        count = _suffix(h)
        excess = _suffix(count - h / 2)
        square = _suffix(2 * excess - count + h / 3)
        return cls(h, count, excess, square)

    def count(self, position: Tensor) -> Tensor:
        """How many values lie beyond ``[channels, positions]``."""
        index, t = self._locate(position)
        return self.counts.gather(1, index) - t * self.h.gather(1, index)

    def excess(self, position: Tensor) -> Tensor:
        """Sum of ``max(x - position, 0)``."""
        index, t = self._locate(position)
        return self.excesses.gather(1, index) - t * (self.counts.gather(1, index) - t / 2 * self.h.gather(1, index))

    def square(self, position: Tensor) -> Tensor:
        """Sum of ``max(x - position, 0)^2``."""
        index, t = self._locate(position)
        curve = self.counts.gather(1, index) - t / 3 * self.h.gather(1, index)
        return self.squares.gather(1, index) - t * (2 * self.excesses.gather(1, index) - t * curve)

    def spread(self, position: Tensor) -> Tensor:
        """Sum of ``(x - position)^2`` over all values."""
        t = position + 1
        return self.squares[:, :1] - t * (2 * self.excesses[:, :1] - t * self.counts[:, :1])

    def _locate(self, position: Tensor) -> tuple[Tensor, Tensor]:
        index = position.floor().clamp_(-1, self.h.shape[1] - 2).add_(1)
        return index.long(), position - index + 1


def _suffix(x: Tensor) -> Tensor:
    """Sum of each element and all behind it in its row."""
    return x.flip(1).cumsum(dim=1).flip(1)
