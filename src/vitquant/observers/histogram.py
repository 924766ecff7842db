"""A histogram that grows with its data and does not depend on their order."""

from __future__ import annotations

from math import gcd

import torch
from torch import Tensor

COUNTED_PER_IMAGE = 2**12
_COUNTED_AT_ONCE = 2**15 - 1  # torch does not wake other threads for so few, which would take longer than the work
_SMALLEST_EXPONENT = -1000  # 2^1000, the reciprocal of the width, is still a float64
_WIDER = {torch.int16: torch.int32, torch.int32: torch.int64}


class Histogram:
    """Counts per channel over bins whose width is a power of two and whose edges are multiples of it.

    Bin ``i`` of a channel covers ``[(i - bins/2) * 2^e, (i + 1 - bins/2) * 2^e)`` with the channel's own exponent
    ``e``, the smallest with which all its values fit. Larger values raise ``e``, and pairs of bins add up to the
    wider ones; so the histogram is the same in whatever order values come, and two of them add up exactly.

    Attributes:
        counts: integers ``[channels, bins]``, 16 bits wide until these could overflow, then 32, then 64.
        exponent: int64 ``[channels]``.
        counted: how many values there are in each channel.
    """

    def __init__(self, channels: int, bins: int, device: torch.device) -> None:
        self.counts = torch.zeros(channels, bins, dtype=torch.int16, device=device)
        self.exponent = torch.full((channels,), _SMALLEST_EXPONENT, device=device)
        self.counted = 0
        first = torch.arange(channels, dtype=torch.float64, device=device).unsqueeze(1) * bins
        self._middle = first + bins // 2  # of each channel, among the bins of all

    @property
    def width(self) -> Tensor:
        """Width of the bins, float64 ``[channels]``."""
        return power_of_two(self.exponent)

    def reach(self, peak: Tensor) -> None:
        """Widen the bins of each channel until they hold magnitudes up to ``peak``, float64 ``[channels]``."""
        self._widen(smallest_exponent(peak, self.counts.shape[1]))

    def count(self, values: Tensor) -> None:
        """Count ``[n, channels, m]``, none larger than what the bins reach."""
        self._make_room(values.shape[0] * values.shape[2])
        if values.stride(0) < values.stride(2):  # taken in the order of memory, the index need not be copied
            values = values.transpose(0, 2)
        rows = max(1, _COUNTED_AT_ONCE // (len(self.counts) * values.shape[2]))
        for block in torch.split(values, rows):
            bin_ = self._bin(block)
            self.counts.view(-1).scatter_add_(0, bin_, torch.ones_like(bin_, dtype=self.counts.dtype))

    def holding(self, values: Tensor) -> Tensor:
        """The counts, but with one at least in the bins of ``[n, channels, m]``."""
        counts, bin_ = self.counts.clone(), self._bin(values)
        counts.view(-1)[bin_] = counts.view(-1)[bin_].clamp(min=1)
        return counts

    def merge(self, other: Histogram) -> None:
        """Add the counts of a histogram with as many channels and bins; ``other`` stays as it is."""
        self._widen(other.exponent)
        self._make_room(other.counted)
        self.counts += coarsen(other.counts, self.exponent - other.exponent)

    def _widen(self, exponent: Tensor) -> None:
        changed = (exponent > self.exponent).nonzero().flatten()
        if len(changed) and self.counted:
            doublings = (exponent - self.exponent)[changed]
            self.counts[changed] = coarsen(self.counts[changed], doublings)
        self.exponent = torch.maximum(self.exponent, exponent)

    def _make_room(self, more: int) -> None:
        self.counted += more
        while self.counted > torch.iinfo(self.counts.dtype).max:
            self.counts = self.counts.to(_WIDER[self.counts.dtype])

    def _bin(self, values: Tensor) -> Tensor:
        """Where values ``[n, channels, m]`` belong among the bins of all channels, int64 ``[n * channels * m]``."""
        per_width = power_of_two(-self.exponent).unsqueeze(1)
        return (values.double() * per_width).floor_().add_(self._middle).long().flatten()


def smallest_exponent(peak: Tensor, bins: int) -> Tensor:
    """The exponent of the narrowest bins with which magnitudes up to ``peak`` (float64) fit; int64, as ``peak``."""
    exponent = torch.frexp(peak / (bins // 2)).exponent.long()
    return torch.where(peak > 0, exponent, _SMALLEST_EXPONENT).clamp(min=_SMALLEST_EXPONENT)


def power_of_two(exponent: Tensor) -> Tensor:
    """``2^exponent`` exactly, float64, for int64 exponents from -1022 to 1023: the bits of the number are written."""
    return ((exponent + 1023) << 52).view(torch.float64)


def coarsen(counts: Tensor, doublings: Tensor) -> Tensor:
    """Counts ``[channels, bins]`` over bins that are ``2^doublings`` times as wide (``[channels]``), zero in place."""
    bins = counts.shape[1]
    signed_bin = torch.arange(bins, device=counts.device) - bins // 2
    index = (signed_bin >> doublings.clamp(max=32).unsqueeze(1)) + bins // 2
    return torch.zeros_like(counts).scatter_add_(1, index, counts)


def thinning_stride(rows: int, elements: int) -> int:
    """Every how many rows of an image's tensor to count, so that about 2^12 of its elements are counted.

    A histogram needs no more to place a threshold. The stride has no divisor in common with the number of rows
    (tokens), so over many images all token positions are visited alike. It is below that number, so some rows of every
    image are counted. Tensors of no more than 2^12 elements are taken whole.

    Args:
        rows: of one image's tensor.
        elements: of one image's tensor, all rows together.
    """
    stride = -(-elements // COUNTED_PER_IMAGE)
    while gcd(stride, rows) > 1 and stride < rows:
        stride += 1
    return max(1, min(stride, rows - 1))
