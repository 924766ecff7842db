"""Where images come from: one interface, and the sources that read files. Tensors have their own, ``tensors.py``."""

from __future__ import annotations

import warnings
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import torch
from torch import Tensor

from vitquant.data.preprocessing import Preprocessing
from vitquant.errors import ConfigError, DataError

SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")
MAX_SKIPPED = 0.01
"""Share of a source's images that may be unreadable before the whole is refused."""


class SkippedImagesWarning(UserWarning):
    """Some images could not be read and were left out."""


@dataclass(frozen=True)
class Batch:
    """Images ready for the model: normalised ``float32 [B, C, h, w]``, labels ``int64 [B]`` or none, and names."""

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


@dataclass(frozen=True)
class FolderSource(ImageSource):
    """Image files, each decoded when its batch is due. ``labels`` has one class index per file."""

    root: Path
    files: tuple[Path, ...]
    labels: tuple[int, ...] | None
    classes: tuple[str, ...] | None
    preprocessing: Preprocessing

    @property
    def count(self) -> int:
        return len(self.files)

    def __len__(self) -> int:
        return len(self.files)

    @property
    def class_names(self) -> tuple[str, ...] | None:
        return self.classes

    def batches(self, batch_size: int) -> Iterator[Batch]:
        check_batch_size(batch_size)
        skipped: list[DataError] = []
        readable = self._readable(skipped)
        while loaded := list(islice(readable, batch_size)):
            index, pixels = zip(*loaded, strict=True)
            labels = None if self.labels is None else torch.tensor([self.labels[i] for i in index])
            names = [self.files[i].relative_to(self.root).as_posix() for i in index]
            yield Batch(self.preprocessing.normalize(torch.stack(pixels)), labels, names)
        if skipped:
            listed = "; ".join(str(error.where) for error in skipped[:5])
            message = f"{self.root}: {len(skipped)} of {len(self)} images could not be read and were skipped: {listed}"
            warnings.warn(message, SkippedImagesWarning, stacklevel=2)

    def _readable(self, skipped: list[DataError]) -> Iterator[tuple[int, Tensor]]:
        for index, path in enumerate(self.files):
            try:
                yield index, self.preprocessing.load(path)
            except DataError as error:
                skipped.append(error)
                if len(skipped) > MAX_SKIPPED * len(self):
                    raise DataError(
                        f"{len(skipped)} of {len(self)} images cannot be read, the last for: {error.problem}",
                        where=", ".join(str(error.where) for error in skipped[-5:]),
                        expected=f"at most {MAX_SKIPPED:.0%}",
                        fix="mend or remove the named files",
                    ) from error


def open_folder(root: Path, preprocessing: Preprocessing, limit: int | None) -> FolderSource:
    """A folder of images, sorted by name; or of one subfolder a class, labelled by the subfolders' sorted names.

    ``limit`` takes the first files of a flat folder. Of class folders it takes evenly spaced ones, since the first
    would all be of one class. Hidden files and folders are left out.

    Raises:
        DataError: if there is no image, or if images stand both in the folder and in its subfolders.
    """
    flat = _image_files(root)
    folders = sorted(path for path in root.iterdir() if path.is_dir() and not path.name.startswith("."))
    labelled = [(path, label) for label, folder in enumerate(folders) for path in _image_files(folder)]
    if flat and labelled:
        raise DataError(
            "images stand both in the folder and in its subfolders",
            where=str(root),
            got=f"{len(flat)} and {len(labelled)} images",
            expected="a flat folder, or one subfolder a class",
            fix="name the folder that is meant, or move the others away",
        )
    if not flat and not labelled:
        raise DataError(
            f"0 images in {root}; suffixes searched: {' '.join(SUFFIXES)}",
            where=str(root),
            fix="give a folder of images, or of one subfolder of images a class",
        )
    if flat:
        return FolderSource(root, tuple(flat[:limit]), None, None, preprocessing)
    files, labels = zip(*_evenly(labelled, limit), strict=True)
    return FolderSource(root, files, labels, tuple(folder.name for folder in folders), preprocessing)


def _image_files(folder: Path) -> list[Path]:
    return sorted(
        path
        for path in folder.iterdir()
        if path.suffix.lower() in SUFFIXES and not path.name.startswith(".") and path.is_file()
    )


def _evenly(items: Sequence[tuple[Path, int]], limit: int | None) -> Sequence[tuple[Path, int]]:
    if limit is None or limit >= len(items):
        return items
    return [items[i * len(items) // limit] for i in range(limit)]


def check_batch_size(batch_size: int) -> None:
    """Refuse a batch of nothing.

    Raises:
        ConfigError: if ``batch_size`` is below 1.
    """
    if batch_size < 1:
        raise ConfigError("bad value", where="batch_size", got=batch_size, expected="at least 1")
