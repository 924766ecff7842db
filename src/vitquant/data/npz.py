"""Images from a NumPy ``.npz`` archive, streamed: a member is unpacked as it is read, never as a whole."""

from __future__ import annotations

import math
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np
import torch
from numpy.lib import format as npy
from PIL import Image
from torch import Tensor

from vitquant.data.preprocessing import Preprocessing, to_tensor
from vitquant.data.sources import Batch, ImageSource, check_batch_size
from vitquant.errors import DataError

EXPECTED = "uint8 images [N, H, W], [N, H, W, C] or [N, C, H, W] with 1 or 3 channels"


@dataclass(frozen=True)
class NpzSource(ImageSource):
    """The first ``size`` of the archive's ``images``; those not of the model's size are resized and cropped."""

    path: Path
    shape: tuple[int, ...]
    size: int
    labels: Tensor | None
    preprocessing: Preprocessing

    @property
    def count(self) -> int:
        return self.size

    def __len__(self) -> int:
        return self.size

    def batches(self, batch_size: int) -> Iterator[Batch]:
        check_batch_size(batch_size)
        with _member(self.path, "images") as (stream, _, _):
            bytes_each = math.prod(self.shape[1:])
            for start in range(0, self.size, batch_size):
                stop = min(start + batch_size, self.size)
                data = _read(stream, (stop - start) * bytes_each, self.path)
                images = np.frombuffer(bytearray(data), np.uint8).reshape(stop - start, *self.shape[1:])
                pixels = torch.stack([self._fit(image) for image in channels_last(images)])
                labels = None if self.labels is None else self.labels[start:stop]
                names = [f"{self.path.name}[{i}]" for i in range(start, stop)]
                yield Batch(self.preprocessing.normalize(pixels), labels, names)

    def _fit(self, image: np.ndarray) -> Tensor:
        """One image ``uint8 [H, W, C]`` as the model's ``[C, h, w]``."""
        if image.shape[:2] == self.preprocessing.img_size and image.shape[2] == self.preprocessing.channels:
            return torch.from_numpy(image).permute(2, 0, 1)
        picture = Image.fromarray(image[:, :, 0] if image.shape[2] == 1 else image)
        if image.shape[:2] != self.preprocessing.img_size:
            return self.preprocessing.apply(picture)
        return to_tensor(self.preprocessing.convert(picture))


def open_npz(path: Path, preprocessing: Preprocessing, limit: int | None) -> NpzSource:
    """An archive with ``images`` and, optionally, integer ``labels [N]``.

    Raises:
        DataError: if the archive is damaged, or its arrays are not as described above.
    """
    with _member(path, "images") as (_, shape, dtype):
        layout_known = len(shape) == 3 or (len(shape) == 4 and (shape[3] in (1, 3) or shape[1] in (1, 3)))
        if dtype != np.uint8 or not layout_known:
            raise DataError("wrong array", where=f"{path} images", got=f"{dtype} {list(shape)}", expected=EXPECTED)
        if 0 in shape:
            raise DataError(f"0 images in {path}", where=f"{path} images", got=f"shape {list(shape)}")
    size = shape[0] if limit is None else min(limit, shape[0])
    return NpzSource(path, shape, size, _labels(path, shape[0]), preprocessing)


def channels_last(images: np.ndarray) -> np.ndarray:
    """``[N, H, W]``, ``[N, H, W, C]`` or ``[N, C, H, W]`` as ``[N, H, W, C]``."""
    if images.ndim == 3:
        return images[..., None]
    return images if images.shape[3] in (1, 3) else np.ascontiguousarray(images.transpose(0, 2, 3, 1))


def _labels(path: Path, count: int) -> Tensor | None:
    with _archive(path) as archive:
        if "labels.npy" not in archive.namelist():
            return None
    with _member(path, "labels") as (stream, shape, dtype):
        if shape != (count,) or dtype.kind not in "iu":
            got, expected = f"{dtype} {list(shape)}", f"integers [{count}], one per image"
            raise DataError("wrong array", where=f"{path} labels", got=got, expected=expected)
        data = _read(stream, count * dtype.itemsize, path)
    return torch.from_numpy(np.frombuffer(data, dtype).astype(np.int64))


@contextmanager
def _archive(path: Path) -> Iterator[zipfile.ZipFile]:
    try:
        with zipfile.ZipFile(path) as archive:
            yield archive
    except (OSError, EOFError, zlib.error, zipfile.BadZipFile) as error:
        raise DataError(f"the archive cannot be read ({error})", where=str(path), expected="an .npz file") from error


@contextmanager
def _member(path: Path, key: str) -> Iterator[tuple[IO[bytes], tuple[int, ...], np.dtype]]:
    """The open stream of one array, past its header, with shape and type. Pickled arrays are refused."""
    with _archive(path) as archive:
        if f"{key}.npy" not in archive.namelist():
            keys = ", ".join(name.removesuffix(".npy") for name in archive.namelist())
            raise DataError(f"no array {key!r}", where=str(path), got=keys, expected="images and, optionally, labels")
        with archive.open(f"{key}.npy") as stream:
            try:
                version = npy.read_magic(stream)
                read_header = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
                shape, fortran_order, dtype = read_header(stream)
            except ValueError as error:
                raise DataError(f"bad array header ({error})", where=f"{path} {key}") from error
            if dtype.hasobject or (fortran_order and len(shape) > 1):
                got = "pickled objects" if dtype.hasobject else "Fortran order"
                fix = "save np.ascontiguousarray(array) of plain numbers"
                raise DataError(
                    "unsupported array", where=f"{path} {key}", got=got, expected="C order numbers", fix=fix
                )
            yield stream, shape, dtype


def _read(stream: IO[bytes], size: int, path: Path) -> bytes:
    data = stream.read(size)
    if len(data) != size:
        raise DataError("the archive ends early", where=str(path), got=f"{len(data)} bytes", expected=f"{size} bytes")
    return data
