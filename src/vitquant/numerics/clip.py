"""What the searches for a clipping range have in common: which ranges they try, and how they pick one.

A search shrinks the full range of every channel towards zero by a list of fractions. Zero always lies inside.
"""

from __future__ import annotations

import torch
from torch import Tensor

STEPS_PER_OCTAVE = 8


def fractions(octaves: int, device: torch.device) -> Tensor:
    """1 and, in equal ratios of ``2^(1/8)``, down to ``2^-octaves``; float64, largest first."""
    steps = torch.arange(octaves * STEPS_PER_OCTAVE + 1, dtype=torch.float64, device=device)
    return torch.exp2(-steps / STEPS_PER_OCTAVE)


def full_range(low: Tensor, high: Tensor, signed: bool) -> tuple[Tensor, Tensor]:
    """The range that loses nothing to clipping: symmetric if ``signed``, otherwise ``[low, high]`` with zero in it."""
    if signed:
        peak = torch.maximum(low.abs(), high.abs())
        return -peak, peak
    return low.clamp(max=0), high.clamp(min=0)


def shrink(low: Tensor, high: Tensor, fraction: Tensor, signed: bool) -> tuple[Tensor, Tensor]:
    """The full range times ``fraction``, cut to where there are data or zero; all ``[channels]``."""
    full_low, full_high = full_range(low, high, signed)
    bottom, top = full_range(low, high, signed=False)
    return torch.maximum(fraction * full_low, bottom), torch.minimum(fraction * full_high, top)


def first_minimum(cost: Tensor) -> Tensor:
    """Index of the smallest cost in each row of ``[channels, candidates]``; of equal ones the first."""
    best = cost.amin(dim=1, keepdim=True)
    index = torch.arange(cost.shape[1], device=cost.device)
    return torch.where(cost == best, index, cost.shape[1]).amin(dim=1)


def channel_slices(channels: int, work_per_channel: int) -> list[slice]:
    """Cut ``channels`` into slices whose intermediate tensors fit a processor's cache, however large the model."""
    size = max(1, 2**19 // work_per_channel)
    return [slice(start, start + size) for start in range(0, channels, size)]
