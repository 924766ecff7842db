"""Where images come from: one interface. Each kind of source has a file of its own."""

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
"""How far beyond 0 to 255 pixels may lie: bicubic and Lanczos filters overshoot by less."""


@dataclass(frozen=True)
class Batch:
    """Pixels ``uint8 [B, C, h, w]`` of the model's size, labels ``int64 [B]`` or none, and names.

    The tensors are in main memory. Where floats were given, ``given_range`` is the range of pixels that those of the
    source so far stand for.
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
        """How many images a pass gives (unreadable ones included), or ``None`` where only a pass can tell."""

    @property
    def class_names(self) -> tuple[str, ...] | None:
        """What the labels count, where the source knows."""
        return None

    @property
    def repeatable(self) -> bool:
        """Whether there can be a second pass."""
        return True

    @abstractmethod
    def batches(self, batch_size: int) -> Iterator[Batch]:
        """One pass over the images, in a fixed order, ``batch_size`` at a time; the last batch may be shorter.

        Raises:
            DataError: if images are missing, unreadable or not of the model's shape.
            NumericsError: if given tensors hold NaN or Inf.
        """

    def batch_count(self, batch_size: int) -> int | None:
        """How many batches a pass gives, or ``None`` where only a pass can tell.

        Raises:
            ConfigError: if ``batch_size`` is no integer of at least 1.
        """
        size = check_batch_size(batch_size)
        return None if self.count is None else math.ceil(self.count / size)


@dataclass(frozen=True)
class Mapped(ImageSource):
    """Another source, each of whose batches goes through a function; ``labelled`` if its classes are kept."""

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
    """Refuse a batch of nothing."""
    return require_count(batch_size, "batch_size")
