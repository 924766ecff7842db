"""Changed copies of images: what other photographs of the same things could look like to a model.

A range that covers the calibration images clips others, since the largest value of a channel depends on the image. The
copies vary what images vary in: size and place of what they show, direction, colours, contrast and brightness.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import interpolate

from vitquant.data.sources import Batch

MIRRORED, UPSIDE_DOWN, TRANSPOSED, RECOLOURED, NEGATIVE, GREY, ENLARGED = 0.5, 0.3, 0.3, 0.5, 0.15, 0.2, 0.6
"""How many of the copies are so, as shares."""

SMALLEST_WINDOW, LARGEST_WINDOW = 0.4, 0.9
"""Side of the part of an image that is enlarged to the whole, as a share."""

CONTRAST, BRIGHTNESS = 0.5, 0.15
"""Gamma and contrast change by a factor of up to ``exp(CONTRAST)``; brightness by up to this share of the range."""


def with_copies(batches: Iterable[Batch], copies: int, seed: int) -> Iterator[Batch]:
    """Each batch, and after it ``copies`` batches of changed copies of its images, ``uint8 [B, C, h, w]``.

    A copy depends on the number of its image, not on the size of the batches.
    """
    first = 0
    for batch in batches:
        yield batch
        for copy in range(1, copies + 1):
            changed = [
                changed_copy(image, np.random.default_rng((seed, first + i, copy)))
                for i, image in enumerate(batch.pixels)
            ]
            yield replace(batch, pixels=torch.stack(changed))
        first += len(batch)


def changed_copy(image: Tensor, rng: np.random.Generator) -> Tensor:
    """One image ``uint8 [C, h, w]``, changed at random."""
    channels, height, width = image.shape
    x = image.float() / 255
    if rng.random() < MIRRORED:
        x = x.flip(-1)
    if rng.random() < UPSIDE_DOWN:
        x = x.flip(-2)
    if rng.random() < TRANSPOSED and height == width:
        x = x.transpose(-1, -2)
    if rng.random() < RECOLOURED:
        x = x[torch.from_numpy(rng.permutation(channels))]
    if rng.random() < NEGATIVE:
        x = 1 - x
    if rng.random() < GREY:
        x = x.mean(0, keepdim=True).expand(channels, -1, -1)
    if rng.random() < ENLARGED:
        share = rng.uniform(SMALLEST_WINDOW, LARGEST_WINDOW)
        sides = [max(1, round(share * side)) for side in (height, width)]
        top, left = (int(rng.integers(0, whole - side + 1)) for whole, side in zip((height, width), sides, strict=True))
        window = x[None, :, top : top + sides[0], left : left + sides[1]]
        x = interpolate(window, size=(height, width), mode="bicubic", antialias=True)[0].clamp(0, 1)
    x = x ** math.exp(rng.uniform(-CONTRAST, CONTRAST))
    middle = x.mean()
    x = (x - middle) * math.exp(rng.uniform(-CONTRAST, CONTRAST)) + middle + rng.uniform(-BRIGHTNESS, BRIGHTNESS)
    return (x.clamp(0, 1) * 255).round().to(torch.uint8)
