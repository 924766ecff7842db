"""Images that come as tensors from Python: one tensor, or any iterable of batches."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vitquant.data.preprocessing import Preprocessing
from vitquant.data.sources import Batch, ImageSource, check_batch_size
from vitquant.errors import DataError, NumericsError

MAX_OVER_RANGE = 16
"""A float this many times beyond the largest normalised pixel cannot have been normalised."""


@dataclass(frozen=True)
class TensorSource(ImageSource):
    """A tensor ``[N, C, h, w]``: ``uint8`` pixels or normalised floats; ``[N, h, w]`` will do where C is 1."""

    images: Tensor
    labels: Tensor | None
    preprocessing: Preprocessing

    @property
    def count(self) -> int:
        return len(self.images)

    def __len__(self) -> int:
        return len(self.images)

    def batches(self, batch_size: int) -> Iterator[Batch]:
        check_batch_size(batch_size)
        for number, start in enumerate(range(0, len(self), batch_size), start=1):
            stop = min(start + batch_size, len(self))
            images = model_input(self.images[start:stop], self.preprocessing, where=f"batch {number}")
            labels = None if self.labels is None else self.labels[start:stop]
            yield Batch(images, labels, [f"image {i}" for i in range(start, stop)])


def open_tensor(images: Tensor, labels: Tensor | None, preprocessing: Preprocessing, limit: int | None) -> TensorSource:
    """A tensor, and labels ``[N]`` if there are any, as a source.

    Raises:
        DataError: if the shapes are wrong or there is no image.
    """
    if len(images) == 0:
        raise DataError("0 images in the given tensor", got=f"shape {list(images.shape)}")
    source = TensorSource(
        images[:limit], None if labels is None else _labels(labels, len(images))[:limit], preprocessing
    )
    _with_channels(source.images, preprocessing, where="images")
    return source


@dataclass
class IterableSource(ImageSource):
    """Batches from Python, cut and joined to the size that is asked for.

    Each item is ``images`` or ``(images, labels)``, ``images`` as in :class:`TensorSource` or one image ``[C, h, w]``.
    What can be iterated only once, such as a generator, gives one pass; a second one is an error.
    """

    items: Iterable[Any]
    limit: int | None
    preprocessing: Preprocessing
    _started: bool = field(default=False, init=False)

    @property
    def count(self) -> None:
        return None

    @property
    def repeatable(self) -> bool:
        return not isinstance(self.items, Iterator)

    def batches(self, batch_size: int) -> Iterator[Batch]:
        check_batch_size(batch_size)
        if self._started and not self.repeatable:
            raise DataError(
                "the images were used up by an earlier pass, and what they come from cannot be iterated twice",
                where=f"images ({type(self.items).__name__})",
                fix="give a list, a tensor or a DataLoader, or make a new iterator for each pass",
            )
        self._started = True
        total = 0
        for images, labels in _rebatch(_limited(self._checked(iter(self.items)), self.limit), batch_size):
            yield Batch(images, labels, [f"image {i}" for i in range(total, total + len(images))])
            total += len(images)
        if total == 0:
            raise DataError("0 images in the given iterable", where=f"images ({type(self.items).__name__})")

    def _checked(self, items: Iterator[Any]) -> Iterator[tuple[Tensor, Tensor | None]]:
        for number, item in enumerate(items, start=1):
            where = f"batch {number}"
            images, labels = item if isinstance(item, tuple | list) and len(item) == 2 else (item, None)
            if isinstance(images, np.ndarray):
                images = torch.from_numpy(images)
            if not isinstance(images, Tensor):
                got, expected = type(images).__name__, "a tensor, or a tensor and its labels"
                raise DataError("an item of the images is of an unknown kind", where=where, got=got, expected=expected)
            if tuple(images.shape) == self.preprocessing.shape:
                images = images.unsqueeze(0)
            images = model_input(images, self.preprocessing, where=where)
            yield images, None if labels is None else _labels(labels, len(images), where)


def _limited(
    items: Iterator[tuple[Tensor, Tensor | None]], limit: int | None
) -> Iterator[tuple[Tensor, Tensor | None]]:
    if limit is None:
        yield from items
        return
    for images, labels in items:
        yield images[:limit], None if labels is None else labels[:limit]
        limit -= len(images)
        if limit <= 0:
            return


def _rebatch(items: Iterator[tuple[Tensor, Tensor | None]], size: int) -> Iterator[tuple[Tensor, Tensor | None]]:
    """Cut and join so that all but the last have ``size`` images."""
    held: list[Tensor] = []
    held_labels: list[Tensor] = []
    labelled: bool | None = None
    for images, labels in items:
        if labelled is not None and labelled != (labels is not None):
            raise DataError("some batches have labels and others do not", where="images", expected="all or none")
        labelled = labels is not None
        held.append(images)
        held_labels += [] if labels is None else [labels]
        while sum(map(len, held)) >= size:
            joined, joined_labels = torch.cat(held), torch.cat(held_labels) if labelled else None
            yield joined[:size], None if joined_labels is None else joined_labels[:size]
            held = [joined[size:]]
            held_labels = [] if joined_labels is None else [joined_labels[size:]]
    if sum(map(len, held)):
        yield torch.cat(held), torch.cat(held_labels) if labelled else None


def model_input(images: Tensor, preprocessing: Preprocessing, *, where: str) -> Tensor:
    """Tensors of either kind as the model's normalised ``float32 [B, C, h, w]``.

    Raises:
        DataError: on another shape, or on floats that cannot have been normalised.
        NumericsError: on NaN or Inf; the message names the first image that holds one.
    """
    images = _with_channels(images, preprocessing, where)
    if images.dtype == torch.uint8:
        return preprocessing.normalize(images)
    images = images.float()
    finite = images.isfinite().flatten(1).all(1)
    if not finite.all():
        first = int(finite.logical_not().nonzero()[0])
        bad = int(images[first].isfinite().logical_not().sum())
        raise NumericsError("NaN or Inf in the given images", where=f"{where}, image {first}", got=f"{bad} such values")
    ends = preprocessing.normalize(
        torch.tensor([0, 255], dtype=torch.uint8).view(2, 1, 1, 1).expand(2, *images.shape[1:])
    )
    low, high = float(ends.min()), float(ends.max())
    if len(images) and images.abs().max() > MAX_OVER_RANGE * max(-low, high):
        raise DataError(
            "the images are not normalised",
            where=where,
            got=f"floats from {float(images.min()):.4g} to {float(images.max()):.4g}",
            expected=f"about {low:.4g} to {high:.4g} ({preprocessing})",
            fix="give uint8 pixels, or normalise with Preprocessing.normalize",
        )
    return images


def _with_channels(images: Tensor, preprocessing: Preprocessing, where: str) -> Tensor:
    shaped = images.unsqueeze(1) if images.ndim == 3 and preprocessing.channels == 1 else images
    if tuple(shaped.shape[1:]) != preprocessing.shape or shaped.ndim != 4:
        raise DataError(
            "images of the wrong shape",
            where=where,
            got=f"{list(images.shape)}",
            expected=f"[N, {', '.join(map(str, preprocessing.shape))}]",
            fix="resize the images, or give the model another img_size",
        )
    if shaped.dtype != torch.uint8 and not shaped.is_floating_point():
        raise DataError("images of the wrong type", where=where, got=shaped.dtype, expected="uint8 pixels or floats")
    return shaped


def _labels(given: Any, count: int, where: str = "labels") -> Tensor:
    try:
        labels: Tensor = torch.as_tensor(given)
        labels = labels.reshape(-1) if labels.ndim == 0 else labels
    except (TypeError, ValueError, RuntimeError) as error:
        raise DataError("labels are no numbers", where=where, got=type(given).__name__) from error
    if tuple(labels.shape) != (count,) or labels.is_floating_point() or labels.is_complex():
        got = f"{labels.dtype} {list(labels.shape)}"
        raise DataError("labels do not fit the images", where=where, got=got, expected=f"integers [{count}]")
    return labels.long()
