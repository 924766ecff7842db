"""One door for images: a folder, an archive, a tensor, or anything that can be iterated."""

from __future__ import annotations

from collections.abc import Iterable
from os import PathLike
from pathlib import Path
from typing import Any, TypeAlias, TypeGuard

import numpy as np
import torch
from torch import Tensor

from vitquant.data.npz import open_npz
from vitquant.data.preprocessing import Preprocessing
from vitquant.data.sources import Batch, ImageSource, open_folder
from vitquant.data.tensors import IterableSource, open_tensor
from vitquant.errors import ConfigError, DataError

__all__ = ["Batch", "ImageSource", "ImagesLike", "open_images"]

ImagesLike: TypeAlias = ImageSource | str | PathLike[str] | Tensor | np.ndarray | Iterable[Any]
KINDS = "a folder, an .npz file, a tensor, (tensor, labels), or an iterable of tensors"


def open_images(source: ImagesLike, preprocessing: Preprocessing, *, limit: int | None = None) -> ImageSource:
    """Images from wherever they are, as a source that gives the model's input batch by batch.

    Args:
        source: a folder (flat, or one subfolder a class); an ``.npz`` with ``images`` and optional ``labels``; a
            tensor ``[N, C, h, w]`` of ``uint8`` pixels or of normalised floats, alone or as ``(tensor, labels)``; or an
            iterable of such tensors or pairs, each a batch. An open source is given back as it is.
        preprocessing: what the model expects.
        limit: at most so many images; the first ones, but evenly spaced ones of class folders.

    Raises:
        DataError: if there are no images there, or of the wrong shape or type.
        ConfigError: if ``limit`` is below 1, or is given with a source that is open already.
    """
    if limit is not None and limit < 1:
        raise ConfigError("bad value", where="limit", got=limit, expected="at least 1")
    if isinstance(source, ImageSource):
        if limit is not None or source.preprocessing != preprocessing:
            fix = "open the images with the model's preprocessing and the limit"
            raise ConfigError("the images are open already, with other settings", where="images", fix=fix)
        return source
    if isinstance(source, str | PathLike):
        return _open_path(Path(source), preprocessing, limit)
    if isinstance(source, Tensor | np.ndarray):
        return open_tensor(torch.as_tensor(source), None, preprocessing, limit)
    if _is_pair(source):
        images, labels = source
        return open_tensor(torch.as_tensor(images), torch.as_tensor(labels), preprocessing, limit)
    if isinstance(source, Iterable):
        return IterableSource(source, limit, preprocessing)
    raise DataError("these cannot be images", where="images", got=type(source).__name__, expected=KINDS)


def _open_path(path: Path, preprocessing: Preprocessing, limit: int | None) -> ImageSource:
    if path.is_dir():
        return open_folder(path, preprocessing, limit)
    if not path.exists():
        raise DataError("no such folder or file", where=str(path), expected="a folder of images or an .npz file")
    if path.suffix.lower() != ".npz":
        raise DataError(
            "not a source of images", where=str(path), got=f"a file {path.suffix or path.name}", expected=KINDS
        )
    return open_npz(path, preprocessing, limit)


def _is_pair(source: object) -> TypeGuard[tuple[Tensor | np.ndarray, Tensor | np.ndarray]]:
    """Whether it is all images with all labels, not two batches of images."""
    arrays = Tensor | np.ndarray
    return (
        isinstance(source, tuple)
        and len(source) == 2
        and all(isinstance(item, arrays) for item in source)
        and source[0].ndim >= 3
        and source[1].ndim == 1
    )
