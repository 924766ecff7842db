"""A sample of the images that are read, for work that needs some of them once more."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor

from vitquant.data.sources import Batch


def evenly_spaced(count: int, most: int) -> list[int]:
    """At most ``most`` of the numbers below ``count``.

    >>> evenly_spaced(10, 4)
    [0, 2, 5, 7]
    """
    size = min(count, most)
    return [i * count // size for i in range(size)]


class ImageSample:
    """Keeps at most ``most`` of the images that are read: evenly spaced ones, or the first ones of an unknown number.

    Args:
        most: how many to keep.
        count: number of images that will be read, if it is known.
    """

    def __init__(self, most: int, count: int | None) -> None:
        self.places = set(range(most) if count is None else evenly_spaced(count, most))
        self.read = 0
        self.kept: list[Tensor] = []

    def watch(self, batches: Iterable[Batch]) -> Iterator[Batch]:
        """Yield the batches unchanged and keep images of them."""
        for batch in batches:
            chosen = [i for i in range(len(batch)) if self.read + i in self.places]
            if chosen:
                self.kept.append(batch.pixels[chosen])
            self.read += len(batch)
            yield batch

    @property
    def images(self) -> Tensor:
        """What was kept, ``uint8 [N, C, h, w]``.

        Raises:
            IndexError: nothing was read.
        """
        return torch.cat(self.kept) if len(self.kept) > 1 else self.kept[0]
