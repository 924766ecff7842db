"""The interface of image sources. Each kind of source has its own file."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from vitquant.arguments import require_count
from vitquant.data.preprocessing import Preprocessing


@dataclass(frozen=True)
class Batch:
    """Images ready for the model: normalised ``float32 [B, C, h, w]``, labels ``int64 [B]`` or none, and names.

    The tensors are in main memory.
    """

    images: Tensor
    labels: Tensor | None
    names: list[str]

    def __len__(self) -> int:
        return len(self.images)


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
    return Mapped(source, lambda batch: Batch(batch.images, None, batch.names), labelled=False)


def check_batch_size(batch_size: Any) -> int:
    """The batch size, if it is an integer of at least 1."""
    return require_count(batch_size, "batch_size")
