"""Images from a NumPy ``.npz`` archive, streamed: a member is decompressed as it is read, never as a whole."""

from __future__ import annotations

import lzma
import math
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import IO

import numpy as np
import torch
from numpy.lib import format as npy
from PIL import Image
from torch import Tensor

from vitquant.data.arrays import as_labels
from vitquant.data.preprocessing import MAX_PIXELS, Preprocessing, require_regular_file, to_tensor
from vitquant.data.sources import Batch, ImageSource, check_batch_size
from vitquant.errors import DataError

EXPECTED = "uint8 images [N, H, W], [N, H, W, C] or [N, C, H, W] with 1 or 3 channels"
READ_ERRORS = (OSError, EOFError, RuntimeError, zlib.error, lzma.LZMAError, zipfile.BadZipFile, UnicodeDecodeError)
"""Errors of ``zipfile`` for archives that are damaged, encrypted or compressed by unknown methods."""
MAX_IMAGES = 1 << 24
"""Most images of an archive; their labels are kept in memory."""
MAX_LABELS = 1 << 28
"""Most bytes of an archive's labels."""
MAX_HEADER = 10_000
"""Most bytes of an array's header, as in NumPy; checked before the header is read into memory."""


@dataclass(frozen=True)
class NpzSource(ImageSource):
    """The first ``size`` images of the archive, resized and cropped to the model's size if necessary."""

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
            for start in range(0, self.size, batch_size):
                stop = min(start + batch_size, self.size)
                pixels = torch.stack([self._fit(self._next(stream)) for _ in range(start, stop)])
                labels = None if self.labels is None else self.labels[start:stop]
                names = [f"{self.path.name}[{i}]" for i in range(start, stop)]
                yield Batch(pixels, labels, names)

    def _next(self, stream: IO[bytes]) -> np.ndarray:
        """The next image of the stream, ``uint8 [H, W, C]``."""
        data = _read(stream, math.prod(self.shape[1:]), self.path)
        image: np.ndarray = channels_last(np.frombuffer(data, np.uint8).reshape(1, *self.shape[1:]))[0]
        return image

    def _fit(self, image: np.ndarray) -> Tensor:
        """One image ``uint8 [H, W, C]`` as the model's ``[C, h, w]``."""
        if image.shape[:2] == self.preprocessing.img_size and image.shape[2] == self.preprocessing.channels:
            return torch.from_numpy(image.transpose(2, 0, 1).copy())
        picture = Image.fromarray(image[:, :, 0] if image.shape[2] == 1 else image)
        if image.shape[:2] != self.preprocessing.img_size:
            return self.preprocessing.apply(picture)
        return to_tensor(self.preprocessing.convert(picture))


def open_npz(path: Path, preprocessing: Preprocessing, limit: int | None, *, ignore_labels: bool = False) -> NpzSource:
    """An archive with ``images`` and, optionally, ``labels``: integers ``[N]`` or one-hot ``[N, K]``.

    Raises:
        DataError: the archive is damaged, or its arrays are not as described above.
    """
    with _member(path, "images") as (_, shape, dtype):
        layout_known = len(shape) == 3 or (len(shape) == 4 and (shape[3] in (1, 3) or shape[1] in (1, 3)))
        if dtype != np.uint8 or not layout_known:
            raise DataError(
                "wrong shape or type", where=f"{path} images", got=f"{dtype} {list(shape)}", expected=EXPECTED
            )
        if 0 in shape:
            raise DataError("the archive has no images", where=f"{path} images", got=f"shape {list(shape)}")
        if math.prod(shape[1:]) > 3 * MAX_PIXELS:
            expected = f"at most {MAX_PIXELS:,} pixels per image"
            raise DataError("the images are too large", where=f"{path} images", got=f"{list(shape)}", expected=expected)
        if shape[0] > MAX_IMAGES:
            fix = "split the archive"
            raise DataError(
                "too many images", where=f"{path} images", got=shape[0], expected=f"at most {MAX_IMAGES:,}", fix=fix
            )
    size = shape[0] if limit is None else min(limit, shape[0])
    labels = None if ignore_labels else _labels(path, shape[0])
    return NpzSource(path, shape, size, labels, preprocessing)


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
        got, size = f"{dtype} {list(shape)}", math.prod(shape) * dtype.itemsize
        if shape[:1] != (count,) or dtype.kind not in "biuf":
            expected = f"integers [{count}], one per image"
            raise DataError("wrong shape or type", where=f"{path} labels", got=got, expected=expected)
        if size > MAX_LABELS:
            expected, fix = f"at most {MAX_LABELS:,} bytes", "store the index of each image's class"
            raise DataError("the labels are too large", where=f"{path} labels", got=got, expected=expected, fix=fix)
        data = _read(stream, size, path)
    return as_labels(np.frombuffer(data, dtype).reshape(shape), count, where=f"{path} labels")


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Convert errors while reading an archive to ``DataError``."""
    try:
        yield
    except READ_ERRORS as error:
        detail = str(error) or type(error).__name__
        raise DataError(f"the archive cannot be read ({detail})", where=str(path), expected="an .npz file") from error


@contextmanager
def _archive(path: Path) -> Iterator[zipfile.ZipFile]:
    require_regular_file(path)
    with _reading(path):
        archive = zipfile.ZipFile(path)
    with archive:
        yield archive


@contextmanager
def _member(path: Path, key: str) -> Iterator[tuple[IO[bytes], tuple[int, ...], np.dtype]]:
    """The open stream of one array, after its header, with shape and type. Pickled arrays are an error."""
    with _archive(path) as archive:
        names = archive.namelist()
        if f"{key}.npy" not in names:
            keys = ", ".join(name.removesuffix(".npy") for name in names[:5]) + (", ..." if len(names) > 5 else "")
            raise DataError(f"no array {key!r}", where=str(path), got=keys, expected="images and, optionally, labels")
        with _reading(path):
            stream = archive.open(f"{key}.npy")
        with stream:
            shape, dtype = _header(stream, archive.getinfo(f"{key}.npy").file_size, path, key)
            yield stream, shape, dtype


def _header(stream: IO[bytes], size: int, path: Path, key: str) -> tuple[tuple[int, ...], np.dtype]:
    """Shape and type of an array in a member of ``size`` bytes; the stream is then at the array's first byte."""
    where = f"{path} {key}"
    with _reading(path):
        start = stream.read(npy.MAGIC_LEN)
        width = 2 if start[-2:-1] == b"\x01" else 4  # of the header's length, in bytes: version 1, later versions
        start += stream.read(width)
        length = int.from_bytes(start[npy.MAGIC_LEN :], "little")
        if length > MAX_HEADER:
            raise DataError("the array's header is too long", where=where, got=f"{length} bytes")
        header = BytesIO(start + stream.read(length))
    try:
        npy.read_magic(header)
        read_header = npy.read_array_header_1_0 if width == 2 else npy.read_array_header_2_0
        shape, fortran_order, dtype = read_header(header)
    except Exception as error:  # NumPy parses the header as a literal, which can fail in many ways
        raise DataError(f"bad array header ({error})", where=where) from error
    if dtype.hasobject or (fortran_order and len(shape) > 1):
        got = "pickled objects" if dtype.hasobject else "Fortran order"
        fix = "save np.ascontiguousarray(array) of plain numbers"
        raise DataError("unsupported array", where=where, got=got, expected="numbers in C order", fix=fix)
    held = size - len(header.getvalue())
    if min(shape, default=0) < 0 or math.prod(shape) * dtype.itemsize != held:
        raise DataError(
            "the array header does not match the data",
            where=where,
            got=f"{held} bytes of data",
            expected=f"{math.prod(shape) * dtype.itemsize} bytes for {dtype} {list(shape)}",
            fix="save the archive again with np.savez",
        )
    return shape, dtype


def _read(stream: IO[bytes], size: int, path: Path) -> bytes:
    with _reading(path):
        data = stream.read(size)
    if len(data) != size:
        raise DataError("the archive is truncated", where=str(path), got=f"{len(data)} bytes", expected=f"{size} bytes")
    return data
