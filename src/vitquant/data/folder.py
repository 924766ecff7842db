"""Images from a folder: flat, or with one subfolder per class."""

from __future__ import annotations

import os
import re
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from vitquant.data.preprocessing import Preprocessing
from vitquant.data.sources import Batch, ImageSource, check_batch_size
from vitquant.errors import DataError

PICTURE_FORMATS = frozenset(
    "AVIF BMP DIB GIF HEIF JPEG JPEG2000 JXL MPO PNG PPM QOI SGI TGA TIFF WEBP".split(" ")  # noqa: SIM905
)
"""Format names of Pillow and its plugins. The other formats are documents, videos, icons and scientific data."""
SEARCHED = ".bmp .gif .jpeg .jpg .pgm .png .ppm .tif .tiff .webp and other image formats that Pillow reads"
JUNK = {
    *("__macosx", "@eadir", "@tmp", "#recycle", "#snapshot", "@recycle", "@recently-snapshot", "$recycle.bin"),
    *("system volume information", "lost+found", "__pycache__", "thumbs.db", "desktop.ini"),
}
"""Names, in lower case, that operating systems, storage devices and archives add to folders."""
MAX_SKIPPED = 0.01
"""Largest share of unreadable images in a source; one unreadable image is always allowed."""
SHOWN = 5
"""Number of names listed in a message."""


class SkippedImagesWarning(UserWarning):
    """Some images could not be read and were skipped."""


class FolderWarning(UserWarning):
    """Files or folders were ignored, or the class folders may be in an unintended order."""


@dataclass(frozen=True)
class FolderSource(ImageSource):
    """Image files, decoded batch by batch. ``labels`` has one class index per file."""

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
        size = check_batch_size(batch_size)
        skipped: list[DataError] = []
        readable = self._readable(skipped)
        while loaded := list(islice(readable, size)):
            index, pixels = zip(*loaded, strict=True)
            labels = None if self.labels is None else torch.tensor([self.labels[i] for i in index])
            names = [self.files[i].relative_to(self.root).as_posix() for i in index]
            yield Batch(torch.stack(pixels), labels, names)
        if skipped:
            listed = "; ".join(str(error.where) for error in skipped[:SHOWN])
            message = f"{self.root}: {len(skipped)} of {len(self)} images could not be read and were skipped: {listed}"
            warnings.warn(message, SkippedImagesWarning, stacklevel=2)

    def _readable(self, skipped: list[DataError]) -> Iterator[tuple[int, Tensor]]:
        allowed = min(max(1, int(MAX_SKIPPED * len(self))), len(self) - 1)
        for index, path in enumerate(self.files):
            try:
                yield index, self.preprocessing.load(path)
            except DataError as error:
                skipped.append(error)
                if len(skipped) > allowed:
                    raise DataError(
                        f"{len(skipped)} of {len(self)} images cannot be read; last error: {error.problem}",
                        where=", ".join(str(error.where) for error in skipped[-SHOWN:]),
                        expected=f"at most {allowed} (one image or {MAX_SKIPPED:.0%}, whichever is more)"
                        if allowed
                        else "at least one readable image",
                        fix="replace or remove these files",
                    ) from error


@dataclass(frozen=True)
class Listing:
    """The content of a folder, each part sorted by name; hidden names are skipped.

    ``others`` counts the files that are not images, by suffix; ``junk`` lists folders that are never searched.
    """

    images: tuple[Path, ...]
    folders: tuple[Path, ...]
    junk: tuple[Path, ...]
    others: Counter[str]


def open_folder(
    root: Path, preprocessing: Preprocessing, limit: int | None, *, ignore_labels: bool = False
) -> FolderSource:
    """A folder of images, sorted by name; or of one subfolder per class, labelled by the subfolders' sorted names.

    A subfolder without images is not a class. ``limit`` selects the first files of a flat folder, and evenly spaced
    files of class folders, since the first files would all belong to one class. Hidden files and folders are skipped,
    as are those that storage devices and archives add. Names are sorted as text, as in torchvision's ``ImageFolder``.

    Warns:
        FolderWarning: files or folders were ignored, or class folders have numeric names in another order.

    Raises:
        DataError: there is no image, or images are both in the folder and in its subfolders.
    """
    top = list_folder(root)
    inner = {folder: list_folder(folder) for folder in top.folders}
    classes = [folder for folder in top.folders if inner[folder].images]
    labelled = [(path, label) for label, folder in enumerate(classes) for path in inner[folder].images]
    if top.images and labelled:
        raise DataError(
            "images are both in the folder and in its subfolders",
            where=str(root),
            got=f"{len(top.images)} and {len(labelled)} images",
            expected="a flat folder, or one subfolder per class",
            fix="give the folder to use, or move the other images away",
        )
    passed = _passed_over(root, top, inner)
    if not top.images and not labelled:
        raise _no_images(root, inner, passed)
    if passed:
        warnings.warn(f"{root}: ignored {passed}", FolderWarning, stacklevel=1)
    if top.images:
        return FolderSource(root, top.images[:limit], None, None, preprocessing)
    files, labels = zip(*_evenly(labelled, limit), strict=True)
    if ignore_labels:
        return FolderSource(root, files, None, None, preprocessing)
    names = tuple(folder.name for folder in classes)
    if _numbers_in_other_order(names):
        order = ", ".join(names[:12]) + (", ..." if len(names) > 12 else "")
        message = f"{root}: the class folders are numbered but ordered as text: {order}"
        warnings.warn(f"{message}. Fix: add leading zeros (01, 02, ... 10).", FolderWarning, stacklevel=1)
    return FolderSource(root, files, labels, names, preprocessing)


def list_folder(folder: Path) -> Listing:
    """List the content of a folder by kind. Links are followed; only regular files can be images."""
    suffixes = image_suffixes()
    images: list[Path] = []
    folders: list[Path] = []
    junk: list[Path] = []
    others: Counter[str] = Counter()
    for path in sorted(folder.iterdir(), key=lambda path: path.name):
        if path.name.startswith("."):
            continue
        known_junk = path.name.casefold() in JUNK
        suffix = path.suffix.lower()
        if suffix in suffixes and os.path.isfile(path):
            images.append(path)
        elif os.path.isdir(path):
            (junk if known_junk else folders).append(path)
        elif suffix in suffixes:
            others[f"{suffix} that is not a regular file"] += 1
        elif not known_junk:
            others[suffix or "without a suffix"] += 1
    return Listing(tuple(images), tuple(folders), tuple(junk), others)


def image_suffixes() -> frozenset[str]:
    """The suffixes of image formats that the installed Pillow and its registered plugins can read."""
    registered = Image.registered_extensions()
    return frozenset(
        suffix
        for suffix, kind in registered.items()
        if kind in PICTURE_FORMATS and (kind in Image.OPEN or kind == "MPO")
    )


def _passed_over(root: Path, top: Listing, inner: dict[Path, Listing]) -> str:
    """A description of the files and folders that are not used; empty if all are used."""
    others = top.others + sum((listing.others for listing in inner.values() if listing.images), Counter())
    folders = [*top.junk, *(folder for folder, listing in inner.items() if not listing.images)]
    for listing in inner.values():
        if listing.images:
            folders += [*listing.junk, *listing.folders]
    parts = []
    if others:
        listed = _shortened([f"{number} {kind}" for kind, number in others.most_common()])
        parts.append(f"{_counted(others.total(), 'file')} that cannot be read as images ({listed})")
    if folders:
        listed = _shortened(sorted(folder.relative_to(root).as_posix() for folder in folders))
        parts.append(f"{_counted(len(folders), 'folder')} ({listed})")
    return " and ".join(parts)


def _no_images(root: Path, inner: dict[Path, Listing], passed: str) -> DataError:
    deeper = (path for listing in inner.values() for path in listing.folders if list_folder(path).images)
    below = next(deeper, None)
    return DataError(
        f"no images found; suffixes searched: {SEARCHED}",
        where=str(root),
        got=passed or None,
        fix=f"give the parent folder of the images or of the class folders; images were found in {below}"
        if below
        else "give a folder of images, or one subfolder of images per class",
    )


def _numbers_in_other_order(names: Sequence[str]) -> bool:
    """Whether names such as ``1, 10, 2`` or ``class_1, class_10, class_2`` would have another order as numbers."""
    matches = [re.fullmatch(r"(\D*)([0-9]+)", name) for name in names]
    keys = [(match[1], int(match[2])) for match in matches if match]
    return len(keys) == len(names) and len({prefix for prefix, _ in keys}) == 1 and keys != sorted(keys)


def _evenly(items: Sequence[tuple[Path, int]], limit: int | None) -> Sequence[tuple[Path, int]]:
    if limit is None or limit >= len(items):
        return items
    return [items[i * len(items) // limit] for i in range(limit)]


def _counted(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _shortened(items: Sequence[str]) -> str:
    more = len(items) - SHOWN
    return ", ".join(items[:SHOWN]) + (f", and {more} more" if more > 0 else "")
