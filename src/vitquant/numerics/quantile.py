"""Exact quantiles of large tensors, quick where the quantile lies far out.

Calibration asks for quantiles such as 0.99999. Only the few values beyond them matter, and these are found without a
sort: the maxima of tiles are taken in one pass, the tiles with the ``k`` largest maxima contain the ``k`` largest
values, and only these few tiles are looked into.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import floor, isqrt

import torch
from torch import Tensor

FEW = 4
"""Up to so many values a row, maxima are quicker than ``topk``."""


@dataclass(frozen=True)
class Tiles:
    """Values ``[n, channels, m]`` cut into tiles of about ``sqrt(n)`` rows, and the extremes of each.

    ``body`` is ``[tiles, rows, channels, m]``; ``rest`` ``[r, channels, m]`` are the rows that fill no tile; ``low``
    and ``high`` are ``[tiles, channels, m]``. NaN propagates. Quickest where ``n`` is the longer of ``n`` and ``m``.
    """

    values: Tensor
    body: Tensor
    rest: Tensor
    low: Tensor
    high: Tensor

    @classmethod
    def of(cls, values: Tensor) -> Tiles:
        """Of values ``[n, channels, m]``."""
        rows = isqrt(len(values))
        tiles = len(values) // rows
        body = values[: tiles * rows].view(tiles, rows, *values.shape[1:])
        return cls(values, body, values[tiles * rows :], body.amin(1), body.amax(1))

    def extremes(self) -> tuple[Tensor, Tensor]:
        """Minimum and maximum of every channel, ``[channels]``."""
        low, high = (torch.cat([peaks, self.rest]) for peaks in (self.low, self.high))
        return low.amin((0, 2)), high.amax((0, 2))


def two_sided_quantiles(tiles: Tiles, alpha: float) -> tuple[Tensor, Tensor]:
    """The quantiles ``1 - alpha`` and ``alpha`` of every channel, with linear interpolation between order statistics.

    Args:
        tiles: values ``[n, channels, m]`` without NaN.
        alpha: 0.5 to 1; 1 gives minimum and maximum.

    Returns:
        Low and high quantile, float64 ``[channels]``, equal to ``numpy.quantile``'s default method.
    """
    last = tiles.values.shape[0] * tiles.values.shape[2] - 1
    depth = last - last * alpha  # how far the quantile lies from the extreme, in ranks
    rank = floor(depth)
    count = min(rank + 2, last + 1)
    low, high = (
        torch.lerp(found[:, rank], found[:, count - 1], depth - rank)
        for found in (extreme_values(tiles, count, largest).double() for largest in (False, True))
    )
    return low, high


def extreme_values(tiles: Tiles, count: int, largest: bool) -> Tensor:
    """The ``count`` largest (or smallest) values of every channel, the most extreme first.

    Args:
        tiles: values ``[n, channels, m]`` without NaN.
        count: 1 to ``n * m``.
        largest: which end.

    Returns:
        ``[channels, count]``, in the dtype of the values.
    """
    number, channels, m = tiles.low.shape
    if 4 * count > number * m:  # too many tiles would have to be opened
        return topmost(_by_channel(tiles.values), count, largest)[0]
    peaks = _by_channel(tiles.high if largest else tiles.low)
    _, best = topmost(peaks, count, largest)
    channel = torch.arange(channels, device=peaks.device).unsqueeze(1)
    opened = tiles.body[best // m, :, channel, best % m].flatten(1)
    rest = _by_channel(tiles.rest).contiguous()  # concatenation is slow on a transposed view
    return topmost(torch.cat([opened, rest], dim=1), count, largest)[0]


def topmost(rows: Tensor, count: int, largest: bool) -> tuple[Tensor, Tensor]:
    """What ``topk`` gives along the rows of ``[channels, n]``, finite floats: values and indices.

    For a few values of many short rows, one maximum after the other takes a fraction of ``topk``'s time.
    """
    if count > FEW:
        return rows.topk(count, dim=1, largest=largest)
    rows = rows.clone(memory_format=torch.contiguous_format)
    found = []
    for _ in range(count):
        best = rows.max(dim=1, keepdim=True) if largest else rows.min(dim=1, keepdim=True)
        rows.scatter_(1, best.indices, -torch.inf if largest else torch.inf)
        found.append(best)
    return torch.cat([best.values for best in found], dim=1), torch.cat([best.indices for best in found], dim=1)


def _by_channel(values: Tensor) -> Tensor:
    """``[n, channels, m]`` to ``[channels, n * m]``."""
    return values.transpose(0, 1).flatten(1)
