"""Clipping range by entropy calibration.

Migacz, "8-bit inference with TensorRT", GTC 2017, section "Entropy calibration": of many thresholds take the one whose
quantized distribution has the least Kullback-Leibler divergence from the original, outliers counted at the threshold.
There the values are magnitudes and the quantized distribution has ``2^(bits-1)`` cells; an unsigned affine grid gets
the same treatment on ``[low, high]`` with ``2^bits`` cells, both ends shrinking together.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import floor, log2
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from vitquant.numerics.clip import channel_slices, first_minimum, fractions, full_range, shrink

_ROUNDING = 1e-8  # nats; more than two divergences in float64 are off together


def entropy_range(
    counts: Tensor, width: Tensor, low: Tensor, high: Tensor, *, bits: int, signed: bool
) -> tuple[Tensor, Tensor]:
    """The range per channel whose quantized histogram diverges least from the whole one.

    A threshold needs at least one bin a cell to be told apart from a coarser histogram, and where even the full range
    has fewer than two bins a cell (many bits, few bins) there is nothing to compare: the full range is returned.

    Args:
        counts: ``[channels, bins]``; bin ``i`` counts values in ``[(i - bins/2) * width, (i + 1 - bins/2) * width)``.
        width: of a bin, ``[channels]``.
        low: exact minimum, float64 ``[channels]``.
        high: exact maximum, alike.
        bits: of the codes.
        signed: symmetric or affine.

    Returns:
        Low and high end, float64 ``[channels]``.
    """
    half = counts.shape[1] // 2
    cells = 2 ** (bits - 1) if signed else 2**bits
    bins = half if signed else 2 * half
    if bins < 2 * cells:
        return shrink(low, high, torch.ones_like(low), signed)
    fraction = fractions(floor(log2(bins / cells)), low.device)
    full_low, full_high = (end.unsqueeze(1) * fraction / width.unsqueeze(1) for end in full_range(low, high, signed))
    first = torch.zeros_like(full_low, dtype=torch.int64) if signed else full_low.floor().long() + half
    stop = full_high.floor().long() + 1 + (0 if signed else half)
    best = [
        best_window(fold(counts[part]) if signed else counts[part], first[part], stop[part], cells)
        for part in channel_slices(len(low), bins)
    ]
    return shrink(low, high, fraction[torch.cat(best)], signed)


def fold(counts: Tensor) -> Tensor:
    """Histogram of values ``[channels, bins]`` to one of magnitudes, int64 ``[channels, bins / 2]``."""
    half = counts.shape[1] // 2
    return counts[:, half:].long() + counts[:, :half].flip(1)


def best_window(counts: Tensor, first: Tensor, stop: Tensor, cells: int) -> Tensor:
    """Index of the window that diverges least, and of equal ones the first: int64 ``[channels]``.

    Few windows need a look at all their cells: most clip so much that by this alone they diverge more than the full
    one. Windows with fewer bins than cells are not tried, and none but the full one where it has fewer than twice as
    many.

    Args:
        counts: ``[channels, bins]``.
        first: first bin of each window, ``[channels, windows]``; the first window is the full one.
        stop: the bin after its last, alike.
        cells: of the quantized distribution; a power of two, at least 2.
    """
    size = stop - first
    tried = (size >= cells) & (size[:, :1] >= 2 * cells)
    tried[:, 0] = False
    windows = Windows.of(counts, first, stop)
    cost = torch.full_like(windows.above, torch.inf)
    cost[:, 0] = windows[:, 0].divergence(cells)
    tried &= windows.least_divergence(cells) <= cost[:, :1] + _ROUNDING
    index = tried.nonzero(as_tuple=True)
    cost[index] = windows[index].divergence(cells)
    return first_minimum(cost)


@dataclass(frozen=True)
class Windows:
    """Windows of bins of some histograms; values outside count at a window's ends. Fields are ``[...]`` alike.

    Attributes:
        sums: of the histograms.
        first: first bin, as a position in the sums; int64.
        stop: the bin after the last, alike.
        below: how many values of its histogram lie below the window, float64.
        above: how many lie above.
        everything: how many there are in all.
    """

    sums: _Sums
    first: Tensor
    stop: Tensor
    below: Tensor
    above: Tensor
    everything: Tensor

    @classmethod
    def of(cls, counts: Tensor, first: Tensor, stop: Tensor) -> Windows:
        """The windows ``[channels, windows]`` of histograms ``[channels, bins]``; bins are numbered in each anew."""
        row = torch.arange(len(counts), device=counts.device).unsqueeze(1) * (counts.shape[1] + 1)
        sums, first, stop = _Sums.of(counts), first + row, stop + row
        below, everything = sums.mass(first), sums.mass(row + counts.shape[1]).expand(first.shape)
        return cls(sums, first, stop, below, everything - sums.mass(stop), everything)

    def __getitem__(self, index: Any) -> Windows:
        """Some of the windows, chosen as elements of a tensor are."""
        each = (self.first, self.stop, self.below, self.above, self.everything)
        return Windows(self.sums, *(x[index] for x in each))

    def divergence(self, cells: int) -> Tensor:
        """Divergence of each histogram from itself, clipped to a window and quantized to equal cells.

        With prefix sums a window costs as many steps as it has cells, however many bins it spans. For counts ``h`` with
        the outliers added at the window's ends, ``N`` in all, and cells with ``S`` inliers spread evenly over their
        ``c`` occupied bins, the divergence is ``(sum h log h - sum_cells S' log(S / c)) / N - log(N / sum S)``, where
        ``S'`` counts the outliers in.

        Args:
            cells: of the quantized distribution; a power of two.

        Returns:
            Divergence in nats, float64 ``[...]``; infinite where an end of the window holds outliers only.
        """
        sums, below, above = self.sums, self.below, self.above
        lowest, highest = sums.h.take(self.first + 1).double(), sums.h.take(self.stop).double()
        reference = sums.entropy.take(self.stop) - sums.entropy.take(self.first)
        reference += _x_log_x(lowest + below) - _x_log_x(lowest) + _x_log_x(highest + above) - _x_log_x(highest)

        edges = self._edges(torch.arange(cells + 1, device=below.device), cells)
        mass, filled = sums.between(edges)
        filled[..., 0] += (lowest == 0) & (below > 0)
        filled[..., -1] += (highest == 0) & (above > 0)
        lost = ((below > 0) & (mass[..., 0] == 0)) | ((above > 0) & (mass[..., -1] == 0))
        # Counts are whole, so the clamps touch empty cells only, and these weigh nothing.
        density = (mass / filled.clamp_(min=1)).clamp_(min=torch.finfo(torch.float64).tiny).log_()
        kept = below * density[..., 0] + above * density[..., -1]
        kept += density.mul_(mass).sum(dim=-1)

        inside = self.everything - below - above
        divergence = (reference - kept) / self.everything - torch.log(self.everything / inside)
        return divergence.masked_fill(lost | (inside == 0), torch.inf)

    def least_divergence(self, cells: int) -> Tensor:
        """A lower bound of :meth:`divergence` that costs the same few steps for any number of cells.

        Distributions whose events are merged diverge no more than before (Cover and Thomas, "Elements of information
        theory", section 2.7, log sum inequality); here a window's first cell, its last, and all between are left.
        """
        edges = self._edges(torch.tensor([0, 1, cells - 1, cells], device=self.below.device), cells)
        bottom, _, top = self.sums.between(edges)[0].unbind(dim=-1)
        ends = _clipping(bottom, self.below) + _clipping(top, self.above)
        inside = self.everything - self.below - self.above
        bound = ends / self.everything - torch.log(self.everything / inside)
        return bound.masked_fill(inside == 0, torch.inf)

    def _edges(self, cell: Tensor, cells: int) -> Tensor:
        """Where the given ones of equal ``cells`` begin, ``[..., edges]``."""
        edges = (self.stop - self.first).unsqueeze(-1) * cell
        edges >>= cells.bit_length() - 1
        edges += self.first.unsqueeze(-1)
        return edges


@dataclass(frozen=True)
class _Sums:
    """Sums over the first 0, 1, 2 ... bins of histograms, one histogram after the other in one row.

    Attributes:
        h: the counts, an empty bin put before each histogram's first; int64 ``[channels * (bins + 1)]``.
        both: of ``h``, and in the lowest ``shift`` bits of how many bins are not empty: one sum serves for two.
        entropy: of ``h log h``, float64.
        shift: as few bits as a number of bins needs, at most 17; 2^46 values fit beside them.
    """

    h: Tensor
    both: Tensor
    entropy: Tensor
    shift: int

    @classmethod
    def of(cls, counts: Tensor) -> _Sums:
        h = F.pad(counts.long(), (1, 0))
        shift = counts.shape[1].bit_length()
        both = (h << shift).add_(h.clamp(max=1)).cumsum_(dim=1)
        return cls(h.view(-1), both.view(-1), _entropies(h).cumsum_(dim=1).view(-1), shift)

    def mass(self, edges: Tensor) -> Tensor:
        """How many values lie below the edges, float64."""
        return (self.both.take(edges) >> self.shift).double()

    def between(self, edges: Tensor) -> tuple[Tensor, Tensor]:
        """How many values lie, and how many bins are not empty, between neighbours of ``[..., edges]``; float64."""
        both = self.both.index_select(0, edges.view(-1)).view(edges.shape).diff(dim=-1)
        return (both >> self.shift).double(), (both & (2**self.shift - 1)).double()


def _clipping(inliers: Tensor, outliers: Tensor) -> Tensor:
    """``x log(x / inliers)`` for all values ``x`` of a cell at a window's end; infinite if all of them are outliers."""
    x = inliers + outliers
    return _x_log_x(x) - torch.xlogy(x, inliers)


def _x_log_x(count: Tensor) -> Tensor:
    return count * count.clamp(min=1).log_()


def _entropies(counts: Tensor) -> Tensor:
    """``x log x`` of integers, float64; where they are small and many, each is computed once."""
    largest = int(counts.max())
    if largest >= counts.numel():
        return _x_log_x(counts.double())
    table = _x_log_x(torch.arange(largest + 1, dtype=torch.float64, device=counts.device))
    return table.index_select(0, counts.view(-1)).view(counts.shape)
