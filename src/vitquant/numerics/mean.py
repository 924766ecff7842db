"""The mean of integers, rounded by integers."""

from __future__ import annotations

import torch
from torch import Tensor


def rounded_mean(codes: Tensor) -> Tensor:
    """Mean over dimension 1 of ``[B, N, C]``, int64 ``[B, C]``: ``floor((2 sum + N) / 2N)``, so halves go up."""
    count = codes.shape[1]
    return torch.div(2 * codes.sum(1, dtype=torch.int64) + count, 2 * count, rounding_mode="floor")
