"""Checks whether float images were normalised as the model expects.

Pixels have 256 levels. Floats that correspond to integers from 0 to 255 under the model's mean and standard deviation
were normalised with these; floats that do so under another common normalisation were normalised with that one. Images
that were resized as floats have no levels; only their range is checked.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import torch
from torch import Tensor

from vitquant.data.preprocessing import HALF, IMAGENET_MEAN, IMAGENET_STD, Preprocessing
from vitquant.data.sources import OVERSHOOT

CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
TOLERANCE = 0.1
"""Largest distance of a pixel from an integer; half precision is off by up to 0.06."""
SAMPLE = 16384
"""Number of values per channel of a batch that are compared with the levels."""
FEW = 4
"""With fewer images, a narrow range may be caused by the scene."""
NARROWEST, NARROWEST_OF_FEW = 140, 70
"""Width of the pixel range per channel; with a narrower range the images were probably not normalised as expected."""
DARKEST, BRIGHTEST = 90, 165
"""A set of several images has pixels below the first value and above the second."""


class NormalizationWarning(UserWarning):
    """Float images do not appear to be normalised as the model expects."""


@dataclass(frozen=True)
class Normalization:
    """Mean and standard deviation per channel, for pixels from 0 to 1, and a description of such images."""

    looks_like: str
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def to_pixels(self, values: Tensor) -> Tensor:
        """Values ``[C, n]`` on the pixel scale 0 to 255, as real numbers."""
        mean, std = (torch.tensor(numbers, dtype=torch.float64)[:, None] for numbers in (self.mean, self.std))
        return (values.double() * std + mean) * 255

    def explains(self, values: Tensor) -> bool:
        """Whether all values ``[C, n]`` correspond to integer pixels from 0 to 255."""
        pixels = self.to_pixels(values)
        levels = pixels.round().clamp(0, 255)
        return bool(((pixels - levels).abs() < TOLERANCE).all())


def other_normalizations(preprocessing: Preprocessing) -> list[Normalization]:
    """Common mistakes, most frequent first."""
    channels = preprocessing.channels
    mean, std = preprocessing.mean, preprocessing.std
    found = [
        Normalization("pixels scaled to 0 ... 1 and not normalised", (0.0,) * channels, (1.0,) * channels),
        Normalization("pixels from 0 to 255", (0.0,) * channels, (1 / 255,) * channels),
        Normalization("pixels scaled to -1 ... 1", HALF[:channels], HALF[:channels]),
        Normalization(
            "images normalised twice",
            tuple(m + s * m for m, s in zip(mean, std, strict=True)),
            tuple(s * s for s in std),
        ),
    ]
    if channels == 3:
        found.append(Normalization("images normalised with ImageNet's mean and deviation", IMAGENET_MEAN, IMAGENET_STD))
        found.append(Normalization("images normalised with CLIP's mean and deviation", CLIP_MEAN, CLIP_STD))
    return found


class NormalizationCheck:
    """Checks the floats of a source batch by batch; keeps the range per channel and the possible normalisations."""

    def __init__(self, preprocessing: Preprocessing) -> None:
        self.preprocessing = preprocessing
        self.expected = Normalization("as expected", preprocessing.mean, preprocessing.std)
        self.possible = [self.expected, *other_normalizations(preprocessing)]
        self.low = torch.full((preprocessing.channels,), torch.inf)
        self.high = -self.low
        self.count = 0
        self.warned = False

    def add(self, images: Tensor) -> None:
        """Add a batch to the statistics; finite ``float32 [B, C, h, w]``."""
        if not len(images):
            return
        self.count += len(images)
        self.low = torch.minimum(self.low, images.amin((0, 2, 3)))
        self.high = torch.maximum(self.high, images.amax((0, 2, 3)))
        values = images.transpose(0, 1).flatten(1)
        sample = values[:, :: values.shape[1] // SAMPLE + 1]
        self.possible = [normalization for normalization in self.possible if normalization.explains(sample)]

    @property
    def pixel_range(self) -> tuple[float, float]:
        """The range of pixels that the floats so far stand for; that of pixels if there were none."""
        if not self.count:
            return 0.0, 255.0
        ends = self.expected.to_pixels(torch.stack([self.low, self.high], 1))
        return float(ends.min()), float(ends.max())

    def problem(self) -> str | None:
        """The problem found with the images so far, or ``None``."""
        if self.expected in self.possible or not bool(self.low.isfinite().all()):
            return None
        ends = self.expected.to_pixels(torch.stack([self.low, self.high], 1))
        low, high = self.pixel_range
        span = float((ends[:, 1] - ends[:, 0]).max())
        outside = low < -OVERSHOOT or high > 255 + OVERSHOOT
        narrow = span < (NARROWEST_OF_FEW if self.count < FEW else NARROWEST)
        shifted = self.count >= FEW and (low > DARKEST or high < BRIGHTEST)
        if not outside and (span == 0 or not (self.possible or narrow or shifted)):
            return None
        looks = f"; they look like {self.possible[0].looks_like}" if self.possible and span > 0 else ""
        return (
            f"the images do not appear to be normalised as the model expects{looks}. "
            f"They correspond to pixels from {low:.0f} to {high:.0f}; "
            f"photographs use most of 0 to 255 ({self.preprocessing}). "
            "Fix: pass uint8 pixels, or normalise with Preprocessing.normalize"
        )

    def warn_once(self) -> None:
        """Warn if there is a problem, at most once."""
        problem = None if self.warned else self.problem()
        if problem:
            self.warned = True
            warnings.warn(f"images: {problem}.", NormalizationWarning, stacklevel=2)
