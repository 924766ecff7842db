"""Layouts of the tensors of a Vision Transformer: images as patches, channels as heads. No arithmetic."""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import pad


def patchify(images: Tensor, patch_size: tuple[int, int]) -> Tensor:
    """Cut images ``[B, C, H, W]`` into flattened patches ``[B, grid_h * grid_w, C * patch_h * patch_w]``."""
    b, c, h, w = images.shape
    ph, pw = patch_size
    patches = images.reshape(b, c, h // ph, ph, w // pw, pw).permute(0, 2, 4, 1, 3, 5)
    return patches.reshape(b, (h // ph) * (w // pw), c * ph * pw)


def pad_prefix(patches: Tensor, count: int) -> Tensor:
    """Put ``count`` zero tokens before patch tokens ``[B, P, D]``: class, distillation and register tokens."""
    return pad(patches, (0, 0, count, 0)) if count else patches


def split_heads(x: Tensor, num_heads: int) -> Tensor:
    """``[B, N, D]`` to ``[B, H, N, D / H]``."""
    return x.reshape(*x.shape[:2], num_heads, -1).transpose(1, 2)


def merge_heads(x: Tensor) -> Tensor:
    """``[B, H, N, D / H]`` to ``[B, N, D]``."""
    return x.transpose(1, 2).flatten(2)


def split_windows(x: Tensor, windows: int) -> Tensor:
    """``[B, H, N, C]`` to ``[B, H, windows, N / windows, C]``; one window stays without an axis of its own."""
    return x if windows == 1 else x.reshape(*x.shape[:2], windows, -1, x.shape[-1])


def merge_windows(x: Tensor) -> Tensor:
    """The inverse."""
    return x.flatten(2, 3) if x.ndim == 5 else x
