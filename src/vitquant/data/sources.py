"""The interface of image sources. Each kind of source has its own file."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from vitquant.arguments import require_count
from vitquant.data.preprocessing import Preprocessing
from vitquant.errors import DataError
from vitquant.numerics.pixels import require_pixels

OVERSHOOT = 64
"""Largest distance of a pixel from the range 0 to 255: bicubic and Lanczos filters overshoot by less."""


@dataclass(frozen=True)
class Batch:
    """Pixels ``uint8 [B, C, h, w]`` of the model's size, labels ``int64 [B]`` or none, and names.

    The tensors are in main memory. For a source of floats, ``given_range`` is the range of pixels that the floats read
    so far correspond to.
    """

    pixels: Tensor
    labels: Tensor | None
    names: list[str]
    given_range: tuple[float, float] = (0.0, 255.0)

    def __len__(self) -> int:
        return len(self.pixels)


class ImageSource(ABC):
    """Images that are read batch by batch, so that memory does not grow with their number."""

    preprocessing: Preprocessing

    @property
    @abstractmethod
    def count(self) -> int | None:
        """Number of images per pass (unreadable ones included), or ``None`` if unknown before the pass."""

    @property
    def class_names(self) -> tuple[str, ...] | None:
        """The names of the classes, if the source knows them."""
        return None

    @property
    def repeatable(self) -> bool:
        """Whether the images can be read a second time."""
        return True

    @abstractmethod
    def batches(self, batch_size: int) -> Iterator[Batch]:
        """One pass over the images, in a fixed order, ``batch_size`` at a time; the last batch may be shorter.

        Raises:
            DataError: images are missing, unreadable or do not have the model's shape.
            NumericsError: tensors contain NaN or Inf.
        """

    def batch_count(self, batch_size: int) -> int | None:
        """Number of batches per pass, or ``None`` if unknown before the pass.

        Raises:
            ConfigError: ``batch_size`` is not an integer of at least 1.
        """
        size = check_batch_size(batch_size)
        return None if self.count is None else math.ceil(self.count / size)


@dataclass(frozen=True)
class Mapped(ImageSource):
    """A source with a function applied to each batch; ``labelled`` states whether its classes are kept."""

    source: ImageSource
    through: Callable[[Batch], Batch]
    labelled: bool = True

    @property
    def preprocessing(self) -> Preprocessing:  # type: ignore[override]
        return self.source.preprocessing

    @property
    def count(self) -> int | None:
        return self.source.count

    @property
    def class_names(self) -> tuple[str, ...] | None:
        return self.source.class_names if self.labelled else None

    @property
    def repeatable(self) -> bool:
        return self.source.repeatable

    def batches(self, batch_size: int) -> Iterator[Batch]:
        yield from map(self.through, self.source.batches(batch_size))


def unlabelled(source: ImageSource) -> ImageSource:
    """A source's images, without its labels."""
    return Mapped(source, lambda batch: replace(batch, labels=None), labelled=False)


def model_batches(source: ImageSource, batch_size: int) -> Iterator[Batch]:
    """The batches of a source, for a model to compute with.

    Raises:
        DataError: floats that were given are normalised in another way than the model expects.
    """
    mean, std = source.preprocessing.mean, source.preprocessing.std
    for number, batch in enumerate(source.batches(batch_size), start=1):
        try:
            require_pixels(*batch.given_range, mean, std, OVERSHOOT)
        except DataError as error:
            raise error.located(f"batch {number}") from error
        yield batch


def check_batch_size(batch_size: Any) -> int:
    """The batch size, if it is an integer of at least 1."""
    return require_count(batch_size, "batch_size")
