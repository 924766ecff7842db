"""Clipping range by entropy calibration.

Migacz, "8-bit inference with TensorRT", GTC 2017, section "Entropy calibration": of many thresholds take the one whose
quantized distribution has the least Kullback-Leibler divergence from the original, outliers counted at the threshold.
There the values are magnitudes and the quantized distribution has ``2^(bits-1)`` cells; an unsigned affine grid gets
the same treatment on ``[low, high]`` with ``2^bits`` cells, both ends shrinking together.
"""

from __future__ import annotations

from math import floor, log2

import torch
from torch import Tensor
from torch.nn import functional as F

from vitquant.numerics.clip import channel_slices, first_minimum, fractions, full_range, shrink


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
        _best_window(fold(counts[part]) if signed else counts[part], first[part], stop[part], cells)
        for part in channel_slices(len(low), max(bins, cells * len(fraction)))
    ]
    return shrink(low, high, fraction[torch.cat(best)], signed)


def fold(counts: Tensor) -> Tensor:
    """Histogram of values ``[channels, bins]`` to one of magnitudes ``[channels, bins / 2]``."""
    half = counts.shape[1] // 2
    return counts[:, half:] + counts[:, :half].flip(1)


def _best_window(counts: Tensor, first: Tensor, stop: Tensor, cells: int) -> Tensor:
    """Index of the best window of bins among those ``[channels, candidates]``, the first of which is the full one."""
    size = stop - first
    refused = (size < cells) | (size[:, :1] < 2 * cells)
    refused[:, 0] = False
    return first_minimum(window_divergence(counts, first, stop, cells).masked_fill(refused, torch.inf))


def window_divergence(counts: Tensor, first: Tensor, stop: Tensor, cells: int) -> Tensor:
    """Divergence of each histogram from itself, clipped to a window of bins and quantized to equal cells.

    With prefix sums a window costs as many steps as it has cells, however many bins it spans. For counts ``h`` with
    the outliers added at the window's ends, ``N`` in all, and cells with ``S`` inliers spread evenly over their ``c``
    occupied bins, the divergence is ``(sum h log h - sum_cells S' log(S / c)) / N - log(N / sum S)``, where ``S'``
    counts the outliers in.

    Args:
        counts: ``[channels, bins]``.
        first: first bin of each window, ``[channels, windows]``.
        stop: the bin after its last, alike.
        cells: of the quantized distribution; a power of two.

    Returns:
        Divergence in nats, float64 ``[channels, windows]``; infinite where an end of the window holds outliers only.
    """
    h = counts.double()
    total, entropy = _prefix(h), _prefix(_x_log_x(h))
    last = stop - 1

    below, inside = total.gather(1, first), total.gather(1, stop)
    everything = total[:, -1:]
    above, inside = everything - inside, inside - below
    lowest, highest = h.gather(1, first), h.gather(1, last)

    reference = entropy.gather(1, stop) - entropy.gather(1, first)
    reference += _x_log_x(lowest + below) - _x_log_x(lowest) + _x_log_x(highest + above) - _x_log_x(highest)

    row = torch.arange(len(total), device=counts.device).unsqueeze(1) * total.shape[1]
    edges = (stop - first).unsqueeze(2) * torch.arange(cells + 1, device=counts.device)
    edges >>= cells.bit_length() - 1
    edges += (first + row).unsqueeze(2)
    mass, filled = (
        prefix.flatten().index_select(0, edges.flatten()).view(edges.shape).diff(dim=2)
        for prefix in (total, _prefix((counts > 0).double()))
    )
    filled[..., 0] += (lowest == 0) & (below > 0)
    filled[..., -1] += (highest == 0) & (above > 0)
    lost = ((below > 0) & (mass[..., 0] == 0)) | ((above > 0) & (mass[..., -1] == 0))
    # Counts are whole, so the clamps touch empty cells only, and these weigh nothing.
    density = (mass / filled.clamp_(min=1)).clamp_(min=torch.finfo(torch.float64).tiny).log_()
    kept = below * density[..., 0] + above * density[..., -1]
    kept += density.mul_(mass).sum(dim=2)

    divergence = (reference - kept) / everything - torch.log(everything / inside)
    return divergence.masked_fill(lost | (inside == 0), torch.inf)


def _prefix(x: Tensor) -> Tensor:
    """Sums of the first 0, 1, 2 ... elements of each row: ``[channels, bins]`` to ``[channels, bins + 1]``."""
    return F.pad(x.cumsum(dim=1), (1, 0))


def _x_log_x(count: Tensor) -> Tensor:
    return count * count.clamp(min=1).log_()
