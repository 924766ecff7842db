"""Exact quantiles of large tensors, quick where the quantile lies far out.

Calibration asks for quantiles such as 0.99999. Only the few values beyond them matter, and these are found without a
sort: the maxima of tiles are taken in one pass, the tiles with the ``k`` largest maxima contain the ``k`` largest
values, and only these few tiles are looked into.
"""

from __future__ import annotations

from math import floor, isqrt

import torch
from torch import Tensor


def two_sided_quantiles(values: Tensor, alpha: float) -> tuple[Tensor, Tensor]:
    """The quantiles ``1 - alpha`` and ``alpha`` of every channel, with linear interpolation between order statistics.

    Args:
        values: ``[n, channels, m]`` without NaN; quickest where ``n`` is the longer of ``n`` and ``m``.
        alpha: 0.5 to 1; 1 gives minimum and maximum.

    Returns:
        Low and high quantile, float64 ``[channels]``, equal to ``numpy.quantile``'s default method.
    """
    last = values.shape[0] * values.shape[2] - 1
    depth = last - last * alpha  # how far the quantile lies from the extreme, in ranks
    rank = floor(depth)
    count = min(rank + 2, last + 1)
    low, high = (
        torch.lerp(found[:, rank], found[:, count - 1], depth - rank)
        for found in (extreme_values(values, count, largest).double() for largest in (False, True))
    )
    return low, high


def extreme_values(values: Tensor, count: int, largest: bool) -> Tensor:
    """The ``count`` largest (or smallest) values of every channel, the most extreme first.

    Args:
        values: ``[n, channels, m]`` without NaN.
        count: 1 to ``n * m``.
        largest: which end.

    Returns:
        ``[channels, count]``, in the dtype of ``values``.
    """
    n, channels, m = values.shape
    tile = isqrt(n)
    tiles = n // tile
    if 4 * count > tiles * m:  # too many tiles would have to be opened
        return _by_channel(values).topk(count, dim=1, largest=largest).values
    body = values[: tiles * tile].view(tiles, tile, channels, m)
    peaks = _by_channel(body.amax(1) if largest else body.amin(1))
    best = peaks.topk(count, dim=1, largest=largest).indices
    channel = torch.arange(channels, device=values.device).unsqueeze(1)
    opened = body[best // m, :, channel, best % m].flatten(1)
    rest = _by_channel(values[tiles * tile :]).contiguous()  # concatenation is slow on a transposed view
    return torch.cat([opened, rest], dim=1).topk(count, dim=1, largest=largest).values


def _by_channel(values: Tensor) -> Tensor:
    """``[n, channels, m]`` to ``[channels, n * m]``."""
    return values.transpose(0, 1).flatten(1)
