"""Images as tensors from Python: one tensor, or an iterable of batches."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from vitquant.data.arrays import as_labels
from vitquant.data.items import split_item, to_images
from vitquant.data.normalization import NormalizationCheck
from vitquant.data.preprocessing import Preprocessing
from vitquant.data.sources import Batch, ImageSource, check_batch_size
from vitquant.errors import DataError, NumericsError

MAX_OVER_RANGE = 16
"""A float larger than the largest normalised pixel by this factor was not normalised."""
FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


@dataclass
class TensorSource(ImageSource):
    """A tensor ``[N, C, h, w]``: ``uint8`` pixels or normalised floats; ``[N, h, w]`` is accepted if C is 1."""

    images: Tensor
    labels: Tensor | None
    preprocessing: Preprocessing
    _check: NormalizationCheck = field(init=False)

    def __post_init__(self) -> None:
        self._check = NormalizationCheck(self.preprocessing)

    @property
    def count(self) -> int:
        return len(self.images)

    def __len__(self) -> int:
        return len(self.images)

    def batches(self, batch_size: int) -> Iterator[Batch]:
        check_batch_size(batch_size)
        for number, start in enumerate(range(0, len(self), batch_size), start=1):
            stop = min(start + batch_size, len(self))
            pixels = pixels_of(self.images[start:stop], self.preprocessing, self._check, where=f"batch {number}")
            labels = None if self.labels is None else self.labels[start:stop]
            yield Batch(pixels, labels, [f"image {i}" for i in range(start, stop)], self._check.pixel_range)
        self._check.warn_once()


def open_tensor(images: Tensor, labels: Any | None, preprocessing: Preprocessing, limit: int | None) -> TensorSource:
    """A tensor, with the labels of all its images if given, as a source.

    Raises:
        DataError: the shapes are wrong, or there is no image.
    """
    if images.ndim and len(images) == 0:
        raise DataError("the tensor has no images", got=f"shape {list(images.shape)}")
    _with_channels(images, preprocessing, where="images")
    found = None if labels is None else as_labels(labels, len(images), where="labels")[:limit]
    return TensorSource(images[:limit], found, preprocessing)


@dataclass
class IterableSource(ImageSource):
    """Batches from Python, split and joined to the requested size.

    Each item is a batch or a single image, alone or with labels, in one of the forms of
    :func:`vitquant.data.items.split_item`. An object that can be iterated only once, such as a generator, allows one
    pass; a second pass is an error.
    """

    items: Iterable[Any]
    limit: int | None
    preprocessing: Preprocessing
    ignore_labels: bool = False
    _started: bool = field(default=False, init=False)
    _check: NormalizationCheck = field(init=False)

    def __post_init__(self) -> None:
        self._check = NormalizationCheck(self.preprocessing)

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
                "the images were consumed by an earlier pass and cannot be iterated again",
                where=f"images ({type(self.items).__name__})",
                fix="pass a list, a tensor or a DataLoader, or create a new iterator for each pass",
            )
        self._started = True
        total = 0
        for images, labels in _rebatch(_limited(self._checked(iter(self.items)), self.limit), batch_size):
            names = [f"image {i}" for i in range(total, total + len(images))]
            yield Batch(images, labels, names, self._check.pixel_range)
            total += len(images)
        if total == 0:
            raise DataError("the iterable has no images", where=f"images ({type(self.items).__name__})")
        self._check.warn_once()

    def _checked(self, items: Iterator[Any]) -> Iterator[tuple[Tensor, Tensor | None]]:
        for number, item in enumerate(items, start=1):
            where = f"batch {number}"
            given, given_labels = split_item(item, where)
            images = pixels_of(
                to_images(given, self.preprocessing, where), self.preprocessing, self._check, where=where
            )
            labelled = given_labels is not None and not self.ignore_labels
            yield images, as_labels(given_labels, len(images), where) if labelled else None


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
    """Split and join the batches so that all but the last have ``size`` images."""
    held: list[Tensor] = []
    held_labels: list[Tensor] = []
    labelled: bool | None = None
    for images, labels in items:
        if labelled is not None and labelled != (labels is not None):
            raise DataError("some batches have labels and others do not", where="images", expected="all or none")
        labelled = labels is not None
        held.append(images.clone() if len(images) < size else images)  # a loader may reuse its buffer
        held_labels += [] if labels is None else [labels]
        while sum(map(len, held)) >= size:
            joined, joined_labels = torch.cat(held), torch.cat(held_labels) if labelled else None
            yield joined[:size], None if joined_labels is None else joined_labels[:size]
            held = [joined[size:]]
            held_labels = [] if joined_labels is None else [joined_labels[size:]]
    if sum(map(len, held)):
        yield torch.cat(held), torch.cat(held_labels) if labelled else None


def pixels_of(images: Tensor, preprocessing: Preprocessing, check: NormalizationCheck, *, where: str) -> Tensor:
    """Tensors of either kind, pixels or normalised floats, as ``uint8 [B, C, h, w]`` in main memory.

    Raises:
        DataError: the shape is wrong, or floats are far outside the normalised range.
        NumericsError: an image contains NaN or Inf; the message names the first such image.
    """
    images = _with_channels(images, preprocessing, where).cpu()
    if images.dtype == torch.uint8:
        return images
    images = images.float()
    finite = images.isfinite().flatten(1).all(1)
    if not finite.all():
        first = int(finite.logical_not().nonzero()[0])
        bad = int(images[first].isfinite().logical_not().sum())
        got = f"{bad} non-finite value{'s' if bad > 1 else ''}"
        raise NumericsError("the image contains NaN or Inf", where=f"{where}, image {first}", got=got)
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
            fix="pass uint8 pixels, or normalise with Preprocessing.normalize",
        )
    check.add(images)
    return preprocessing.to_pixels(images)


def _with_channels(images: Tensor, preprocessing: Preprocessing, where: str) -> Tensor:
    shaped = images.unsqueeze(1) if images.ndim == 3 and preprocessing.channels == 1 else images
    if tuple(shaped.shape[1:]) != preprocessing.shape or shaped.ndim != 4:
        raise DataError(
            "the images have the wrong shape",
            where=where,
            got=f"{list(images.shape)}",
            expected=f"[N, {', '.join(map(str, preprocessing.shape))}]",
            fix=_shape_fix(tuple(images.shape), preprocessing),
        )
    if shaped.dtype != torch.uint8 and shaped.dtype not in FLOATS:
        raise DataError(
            "the images have the wrong type",
            where=where,
            got=f"{images.dtype} {list(images.shape)}",
            expected="uint8 pixels, or normalised 16-bit to 64-bit floats",
            fix="convert pixels from 0 to 255 with images.to(torch.uint8)",
        )
    return shaped


def _shape_fix(shape: tuple[int, ...], preprocessing: Preprocessing) -> str:
    height, width, channels = *preprocessing.img_size, preprocessing.channels
    if shape == preprocessing.shape:
        return "pass a batch of one image, images[None]"
    if shape[1:] == (height, width, channels):
        return "the channels are last; move them with images.permute(0, 3, 1, 2), in NumPy images.transpose(0, 3, 1, 2)"
    if shape == (height, width, channels):
        return "the channels are last; pass images.permute(2, 0, 1)[None], in NumPy images.transpose(2, 0, 1)[None]"
    return "resize the images, or use another img_size for the model"
