"""Checks of images while they pass: whether they can serve for calibration, and whether two sources share any."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Callable, Iterable, Iterator

from torch import Tensor

from vitquant.data.sources import Batch, ImageSource, Mapped

MIN_CORRELATION = 0.25
"""Correlation of neighbouring pixels below which images are noise; in photographs it is above 0.8."""
MIN_SIDE = 16
"""Images of fewer pixels on a side are not judged by their correlation."""


class CalibrationImagesWarning(UserWarning):
    """The images that a model was calibrated on are not like photographs."""


class SharedImagesWarning(UserWarning):
    """A model is evaluated on images that it was calibrated on."""


class CalibrationCheck:
    """Watches calibration images pass by; keeps sums and one digest per image."""

    def __init__(self) -> None:
        self.count = self.constant = 0
        self.digests: set[bytes] = set()
        self.covariance = self.variance = 0.0

    def watch(self, batches: Iterable[Batch]) -> Iterator[Batch]:
        """Pass the batches on, and take note of each."""
        for batch in batches:
            self.add(batch)
            yield batch

    def add(self, batch: Batch) -> None:
        """Take note of a batch."""
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
        """Why the images cannot serve, or ``None``."""
        if self.constant and self.constant == self.count:
            return (
                "each calibration image is one constant colour"
                if self.count > 1
                else "the calibration image is one constant colour"
            )
        if self.count > 1 and len(self.digests) == 1:
            return f"the {self.count} calibration images are all the same"
        if 2 * self.constant > self.count:
            return f"{self.constant} of {self.count} calibration images are one constant colour each"
        if self.variance and self.covariance < MIN_CORRELATION * self.variance:
            return "neighbouring pixels of the calibration images are uncorrelated: this is noise, not photographs"
        return None

    def warn(self) -> None:
        """Warn of the problem, if there is one."""
        problem = self.problem()
        if problem:
            fix = "Fix: calibrate on about 100 different images of the kind that the model is used on"
            message = f"calibration: {problem}. The quantization parameters will not fit photographs. {fix}."
            warnings.warn(message, CalibrationImagesWarning, stacklevel=2)


class SharedImages:
    """Counts the images of one source that another one gave, by their pixels as the model sees them."""

    def __init__(self) -> None:
        self.calibration: set[bytes] = set()
        self.evaluation: set[bytes] = set()

    def calibrating(self, source: ImageSource) -> ImageSource:
        """The source of calibration images, watched."""
        return watched(source, lambda batch: self.calibration.update(digests(batch.pixels)))

    def evaluating(self, source: ImageSource) -> ImageSource:
        """The source of evaluation images, watched."""
        return watched(source, lambda batch: self.evaluation.update(digests(batch.pixels)))

    def warn(self) -> None:
        """Warn if there were images in both."""
        shared = len(self.calibration & self.evaluation)
        if shared:
            message = (
                f"evaluation: {shared} of {len(self.evaluation)} different images are also calibration images; "
                "measured on these, the quantized model looks better than it is. Fix: give different images."
            )
            warnings.warn(message, SharedImagesWarning, stacklevel=2)


def watched(source: ImageSource, watch: Callable[[Batch], None]) -> ImageSource:
    """Another source, whose batches are shown to ``watch`` as they pass."""

    def through(batch: Batch) -> Batch:
        watch(batch)
        return batch

    return Mapped(source, through)


def digests(pixels: Tensor) -> Iterator[bytes]:
    """A short digest of each image, ``uint8 [B, C, h, w]``."""
    for image in pixels.contiguous().numpy():
        yield hashlib.blake2b(image.tobytes(), digest_size=16).digest()
