"""Opening images of any kind: a folder, an archive, a tensor, or an iterable."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from os import PathLike
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from PIL import Image
from torch import Tensor

from vitquant.arguments import require_count, require_path
from vitquant.data.arrays import as_tensor
from vitquant.data.folder import open_folder
from vitquant.data.items import Indexed, MapStyle, is_labelled, split_item
from vitquant.data.npz import open_npz
from vitquant.data.preprocessing import Preprocessing
from vitquant.data.sources import Batch, ImageSource, unlabelled
from vitquant.data.tensors import IterableSource, open_tensor
from vitquant.errors import ConfigError, DataError

__all__ = ["Batch", "ImageSource", "ImagesLike", "open_images"]

ImagesLike: TypeAlias = ImageSource | str | PathLike[str] | Tensor | np.ndarray | Iterable[Any] | MapStyle
SOURCES = "a folder, an .npz file, a tensor, (tensor, labels), a dataset, or an iterable of tensors or PIL images"


def open_images(
    source: ImagesLike, preprocessing: Preprocessing, *, limit: int | None = None, ignore_labels: bool = False
) -> ImageSource:
    """Images of any kind as a source that yields the model's input batch by batch.

    Args:
        source: a folder (flat, or one subfolder per class); an ``.npz`` with ``images`` and optional ``labels``; a
            tensor or array ``[N, C, h, w]`` of ``uint8`` pixels or of normalised floats, alone or as
            ``(tensor, labels)``; or the data of a training loop: a ``DataLoader``, a dataset, or another iterable of
            single images or batches, each alone, with labels, or in a dictionary. PIL images are resized and cropped
            like images in files. An open source is returned unchanged.
        preprocessing: the preprocessing of the model.
        limit: use at most N images: the first ones, or evenly spaced ones of class folders.
        ignore_labels: ignore labels, including labels that would be an error.

    Warns:
        FolderWarning: files in a folder are ignored, or class folders are in an unexpected order.

    Raises:
        DataError: there are no images, or they have the wrong shape or type.
        ConfigError: ``limit`` is not an integer of at least 1, or is given with a source that is already open.
    """
    if limit is not None:
        limit = require_count(limit, "limit")
    if isinstance(source, ImageSource):
        if limit is not None or source.preprocessing != preprocessing:
            fix = "open the images with the model's preprocessing and the limit"
            raise ConfigError("the image source is already open with other settings", where="images", fix=fix)
        return unlabelled(source) if ignore_labels else source
    if isinstance(source, str | PathLike):
        return _open_path(require_path(source, "images"), preprocessing, limit, ignore_labels)
    if isinstance(source, Tensor | np.ndarray):
        return open_tensor(as_tensor(source, "images"), None, preprocessing, limit)
    if isinstance(source, Image.Image):
        return IterableSource([source], limit, preprocessing)
    if isinstance(source, Mapping) or is_labelled(source):
        images, labels = split_item(source, "images")
        return _open_whole(images, None if ignore_labels else labels, preprocessing, limit)
    if isinstance(source, Iterable) and not isinstance(source, bytes | bytearray):
        return IterableSource(source, limit, preprocessing, ignore_labels)
    if isinstance(source, MapStyle) and not isinstance(source, bytes | bytearray):
        return IterableSource(Indexed(source), limit, preprocessing, ignore_labels)
    raise DataError("not a source of images", where="images", got=type(source).__name__, expected=SOURCES)


def _open_path(path: Path, preprocessing: Preprocessing, limit: int | None, ignore_labels: bool) -> ImageSource:
    try:
        if path.is_dir():
            return open_folder(path, preprocessing, limit, ignore_labels=ignore_labels)
        if not path.exists():
            raise DataError("no such folder or file", where=str(path), expected="a folder of images or an .npz file")
    except OSError as error:
        raise DataError(f"cannot be read ({error.strerror or error})", where=str(path)) from error
    if path.suffix.lower() != ".npz":
        raise DataError(
            "not a source of images", where=str(path), got=f"a file {path.suffix or path.name}", expected=SOURCES
        )
    return open_npz(path, preprocessing, limit, ignore_labels=ignore_labels)


def _open_whole(images: Any, labels: Any, preprocessing: Preprocessing, limit: int | None) -> ImageSource:
    """All images in one object, with their labels unless these are ``None``."""
    if isinstance(images, Tensor | np.ndarray):
        return open_tensor(as_tensor(images, "images"), labels, preprocessing, limit)
    if not isinstance(images, list | tuple):
        raise DataError("not a source of images", where="images", got=type(images).__name__, expected=SOURCES)
    if labels is not None and len(labels) != len(images):
        got, expected = f"{len(labels)} labels", f"integers [{len(images)}]"
        raise DataError("the labels do not match the images", where="labels", got=got, expected=expected)
    return IterableSource(images if labels is None else list(zip(images, labels, strict=True)), limit, preprocessing)
