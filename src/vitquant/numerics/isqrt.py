"""Square root and bit length of integers, by integers."""

from __future__ import annotations

import torch
from torch import Tensor


def bit_length(x: Tensor) -> Tensor:
    """Number of bits of non-negative int64 numbers, as ``int.bit_length``: how many powers of two they reach."""
    return torch.bucketize(x, 1 << torch.arange(63, device=x.device), right=True)


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
