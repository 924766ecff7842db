"""Between pixels, ``uint8``, and what a float model computes with: ``(pixel / 255 - mean) / std``."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from vitquant.errors import DataError


def normalize(pixels: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """Pixels ``uint8 [B, C, h, w]`` to the float model's input, ``float32`` of the same shape."""
    centre, spread = _per_colour(mean, pixels), _per_colour(std, pixels)
    return pixels.float().div_(255).sub_(centre).div_(spread)


def denormalize(images: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """The inverse: real numbers on the scale 0 to 255."""
    return (images * _per_colour(std, images) + _per_colour(mean, images)) * 255


def nearest_pixels(images: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """Normalised images ``[B, C, h, w]`` as the nearest pixels, ``uint8``; those that were pixels stay what they were.

    What stands for less than 0 or more than 255 becomes 0 or 255.
    """
    return denormalize(images, mean, std).round_().clamp_(0, 255).to(torch.uint8)


def pixel_range(images: Tensor, mean: Sequence[float], std: Sequence[float]) -> tuple[float, float]:
    """The smallest and the largest number on the scale 0 to 255 that normalised images stand for."""
    low, high = torch.aminmax(denormalize(images, mean, std))
    return float(low), float(high)


def require_pixels(found: tuple[float, float], mean: Sequence[float], std: Sequence[float], overshoot: float) -> None:
    """Refuse images whose :func:`pixel_range` reaches further than ``overshoot`` beyond what pixels can be.

    Raises:
        DataError: they are normalised in another way.
    """
    low, high = found
    if low < -overshoot or high > 255 + overshoot:
        raise DataError(
            "images are not normalised as the model expects",
            got=f"values that stand for pixels from {low:.0f} to {high:.0f}",
            expected=f"0 to 255 after mean {_told(mean)}, std {_told(std)}",
            fix="pass uint8 pixels, or normalise with this mean and std",
        )


def _per_colour(values: Sequence[float], like: Tensor) -> Tensor:
    return torch.tensor(values, dtype=torch.float32, device=like.device)[:, None, None]


def _told(values: Sequence[float]) -> str:
    return "(" + ", ".join(f"{v:.4g}" for v in values) + ")"
