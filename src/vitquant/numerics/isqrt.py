"""Square root and bit length of integers, by integers."""

from __future__ import annotations

import torch
from torch import Tensor


def bit_length(x: Tensor) -> Tensor:
    """Number of bits of non-negative int64 numbers, as ``int.bit_length``."""
    length = torch.zeros_like(x)
    for step in (32, 16, 8, 4, 2, 1):
        high = x >> step
        wide = high > 0
        length = torch.where(wide, length + step, length)
        x = torch.where(wide, high, x)
    return length + x  # what is left is 0 or 1


def isqrt(x: Tensor) -> Tensor:
    """``floor(sqrt(x))`` of non-negative int64 numbers, as ``math.isqrt``.

    Newton's iteration from a power of two that is not below the root: it falls until it stands on the floor.
    """
    root = torch.ones_like(x) << ((bit_length(x) + 1) >> 1)
    while True:
        smaller = (root + x // root.clamp(min=1)) >> 1
        falling = smaller < root
        if not bool(falling.any()):
            return root
        root = torch.where(falling, smaller, root)
