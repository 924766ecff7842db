"""Items of loaders and datasets: images, alone or with labels, in the usual forms."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol, TypeGuard, runtime_checkable

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from vitquant.data.arrays import as_tensor
from vitquant.data.preprocessing import Preprocessing, check_pixels
from vitquant.errors import DataError

IMAGE_KEYS = ("pixel_values", "images", "image", "img")
LABEL_KEYS = ("labels", "label")


@runtime_checkable
class MapStyle(Protocol):
    """A dataset that is indexed from 0, as in ``torch.utils.data``."""

    def __getitem__(self, index: int, /) -> Any: ...

    def __len__(self) -> int: ...


@dataclass(frozen=True)
class Indexed:
    """The items of a map-style dataset, in order."""

    dataset: MapStyle

    def __iter__(self) -> Iterator[Any]:
        for index in range(len(self.dataset)):
            yield self.dataset[index]


def are_images(value: object) -> bool:
    """Whether this is an image, a tensor or array of images, or a list of these; not a label."""
    if isinstance(value, Tensor | np.ndarray):
        return value.ndim >= 3
    if isinstance(value, list | tuple):
        return bool(value) and all(map(are_images, value))
    return isinstance(value, Image.Image)


def is_labelled(source: object) -> TypeGuard[list[Any] | tuple[Any, ...]]:
    """Whether it is ``(all images, all labels)``, possibly with further elements, and not a list of batches."""
    if not isinstance(source, list | tuple) or len(source) < 2 or not are_images(source[0]):
        return False
    images, labels = source[:2]
    if isinstance(images, Image.Image) or are_images(labels):
        return False
    if isinstance(labels, Tensor | np.ndarray):
        return labels.ndim == 1 or (labels.ndim == 2 and len(labels) == len(images))
    return isinstance(labels, list | tuple)


def split_item(item: Any, where: str) -> tuple[Any, Any | None]:
    """The images and the labels of an item.

    Items are ``images``; ``(images, labels)``, a list or tuple that may have further elements, such as paths; a list
    of images; or a mapping with one of ``IMAGE_KEYS`` and optionally one of ``LABEL_KEYS``.

    Raises:
        DataError: a mapping has none of the image keys.
    """
    if isinstance(item, Mapping):
        images = next((item[key] for key in IMAGE_KEYS if key in item), None)
        if images is None:
            keys = ", ".join(str(key) for key in list(item)[:5])
            expected = f"one of {', '.join(IMAGE_KEYS)}"
            raise DataError("the item has no images", where=where, got=f"the keys {keys}", expected=expected)
        return images, next((item[key] for key in LABEL_KEYS if key in item), None)
    if isinstance(item, list | tuple) and item and not are_images(item):
        return item[0], item[1] if len(item) > 1 else None
    return item, None


def to_images(value: Any, preprocessing: Preprocessing, where: str) -> Tensor:
    """PIL images, arrays, tensors or a list of these as one tensor ``[N, ...]``; a single image has N = 1.

    Raises:
        DataError: they are of another type, differ in shape, or cannot be read.
    """
    if isinstance(value, list | tuple) and value:
        parts = [to_images(part, preprocessing, where) for part in value]
        if len({(part.shape[1:], part.dtype) for part in parts}) > 1:
            shapes = sorted({str(list(part.shape[1:])) for part in parts})
            fix = "resize the images, or pass PIL images"
            raise DataError(
                "the images of a batch differ in shape", where=where, got=f"shapes {', '.join(shapes)}", fix=fix
            )
        return torch.cat(parts)
    if isinstance(value, Image.Image):
        return _picture(value, preprocessing, where)[None]
    if not isinstance(value, Tensor | np.ndarray):
        raise DataError(
            "unsupported item type",
            where=where,
            got=type(value).__name__,
            expected="a tensor, an array or a PIL image, alone or with labels",
        )
    images = as_tensor(value, where)
    if tuple(images.shape) == preprocessing.shape or (
        preprocessing.channels == 1 and tuple(images.shape) == preprocessing.img_size
    ):
        return images.reshape(1, *preprocessing.shape)
    return images


def _picture(image: Image.Image, preprocessing: Preprocessing, where: str) -> Tensor:
    try:
        check_pixels(image.size, image.format)
        return preprocessing.apply(ImageOps.exif_transpose(image))
    except Exception as error:  # as in Preprocessing.load
        problem = error.problem if isinstance(error, DataError) else str(error) or type(error).__name__
        raise DataError(f"the image cannot be read ({problem})", where=where) from error
