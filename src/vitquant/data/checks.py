"""Checks of images as they are read: are they suitable for calibration, and do two sources share images?"""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Callable, Iterable, Iterator

from torch import Tensor

from vitquant.data.sources import Batch, ImageSource, Mapped

MIN_CORRELATION = 0.25
"""Images whose neighbouring pixels have a lower correlation are noise; in photographs it is above 0.8."""
MIN_SIDE = 16
"""The correlation is not checked for images with a shorter side."""


class CalibrationImagesWarning(UserWarning):
    """The calibration images do not look like photographs."""


class SharedImagesWarning(UserWarning):
    """A model is evaluated on images that it was calibrated on."""


class CalibrationCheck:
    """Checks calibration images as they are read; keeps sums and one digest per image."""

    def __init__(self) -> None:
        self.count = self.constant = 0
        self.digests: set[bytes] = set()
        self.covariance = self.variance = 0.0

    def watch(self, batches: Iterable[Batch]) -> Iterator[Batch]:
        """Yield the batches unchanged and add each one to the statistics."""
        for batch in batches:
            self.add(batch)
            yield batch

    def add(self, batch: Batch) -> None:
        """Add a batch to the statistics."""
        pixels = batch.pixels
        self.count += len(pixels)
        self.constant += int((pixels.amax((2, 3)) == pixels.amin((2, 3))).all(1).sum())
        self.digests.update(digests(pixels))
        if min(pixels.shape[2:]) >= MIN_SIDE:
            centred = pixels.float()
            centred -= centred.mean((2, 3), keepdim=True)
            across = (centred[..., 1:] * centred[..., :-1]).mean((2, 3))
            down = (centred[..., 1:, :] * centred[..., :-1, :]).mean((2, 3))
            self.covariance += float((across + down).double().sum()) / 2
            self.variance += float(centred.square().mean((2, 3)).double().sum())

    def problem(self) -> str | None:
        """Why the images are unsuitable, or ``None``."""
        if self.constant and self.constant == self.count:
            return (
                "every calibration image has a single colour"
                if self.count > 1
                else "the calibration image has a single colour"
            )
        if self.count > 1 and len(self.digests) == 1:
            return f"the {self.count} calibration images are identical"
        if 2 * self.constant > self.count:
            return f"{self.constant} of {self.count} calibration images have a single colour"
        if self.variance and self.covariance < MIN_CORRELATION * self.variance:
            return "neighbouring pixels of the calibration images are uncorrelated: they look like noise"
        return None

    def warn(self) -> None:
        """Warn if there is a problem."""
        problem = self.problem()
        if problem:
            fix = "Fix: calibrate on about 100 different images like those that the model will process"
            message = f"calibration: {problem}. The quantization parameters will not suit photographs. {fix}."
            warnings.warn(message, CalibrationImagesWarning, stacklevel=2)


class SharedImages:
    """Counts the images that two sources share, by their pixels after preprocessing."""

    def __init__(self) -> None:
        self.calibration_images = 0
        self.calibration: set[bytes] = set()
        self.evaluation: set[bytes] = set()

    def calibrating(self, source: ImageSource) -> ImageSource:
        """The source of calibration images, counted and with their digests recorded."""

        def watch(batch: Batch) -> None:
            self.calibration_images += len(batch)
            self.calibration.update(digests(batch.pixels))

        return watched(source, watch)

    def evaluating(self, source: ImageSource) -> ImageSource:
        """The source of evaluation images, with their digests recorded."""
        return watched(source, lambda batch: self.evaluation.update(digests(batch.pixels)))

    def warn(self) -> None:
        """Warn if both sources contain the same images."""
        shared = len(self.calibration & self.evaluation)
        if shared:
            message = (
                f"evaluation: {shared} of {len(self.evaluation)} distinct images are also calibration images; "
                "figures on them overestimate the quality of the quantized model. Fix: use different images."
            )
            warnings.warn(message, SharedImagesWarning, stacklevel=2)


def watched(source: ImageSource, watch: Callable[[Batch], object]) -> ImageSource:
    """The source, with ``watch`` called on each of its batches."""

    def through(batch: Batch) -> Batch:
        watch(batch)
        return batch

    return Mapped(source, through)


def digests(pixels: Tensor) -> Iterator[bytes]:
    """A short digest of each image, ``uint8 [B, C, h, w]``."""
    for image in pixels.contiguous().numpy():
        yield hashlib.blake2b(image.tobytes(), digest_size=16).digest()
