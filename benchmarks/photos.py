"""Real images for the measurements: a folder of photos, split in two, and made more by deterministic crops."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from vitquant.data import open_images
from vitquant.data.folder import FolderSource
from vitquant.data.preprocessing import Preprocessing

SMALLEST_WINDOW = 0.5
"""Side of the smallest crop, as a share of the photo's shorter side."""


def split(folder: Path, preprocessing: Preprocessing) -> tuple[list[Path], list[Path]]:
    """Calibration and evaluation photos: of the files in the order of their names, those at even and at odd places."""
    source = open_images(folder, preprocessing)
    if not isinstance(source, FolderSource) or len(source) < 2:
        raise SystemExit(f"{folder}: a folder with at least two photos is needed")
    return list(source.files[::2]), list(source.files[1::2])


def load(files: Sequence[Path], preprocessing: Preprocessing) -> Tensor:
    """The photos as the model sees them, pixels ``uint8 [N, C, h, w]``."""
    return torch.stack([preprocessing.load(path) for path in files])


def load_crops(files: Sequence[Path], preprocessing: Preprocessing, count: int, draw: int = 0) -> Tensor:
    """``count`` different images made of the photos, pixels ``uint8 [count, C, h, w]``.

    They go round the photos: first each photo as it is, then of each a square window whose place and side (50 to
    100 % of the shorter side) come from a generator seeded with the photo's index, every second one mirrored. Another
    ``draw`` gives other windows.
    """
    rounds = -(-count // len(files))
    per_photo = [list(_crops(path, preprocessing, rounds, [i, draw] if draw else i)) for i, path in enumerate(files)]
    return torch.stack([crops[turn] for turn in range(rounds) for crops in per_photo][:count])


def _crops(path: Path, preprocessing: Preprocessing, count: int, seed: int | list[int]) -> Iterator[Tensor]:
    rng = np.random.default_rng(seed)
    with Image.open(path) as opened:
        image = ImageOps.exif_transpose(opened).convert("RGB")
    yield preprocessing.apply(image)
    for turn in range(1, count):
        side = round(min(image.size) * rng.uniform(SMALLEST_WINDOW, 1))
        left, top = (int(rng.integers(0, size - side + 1)) for size in image.size)
        window = image.crop((left, top, left + side, top + side))
        yield preprocessing.apply(ImageOps.mirror(window) if turn % 2 else window)


def save_folder(pixels: Tensor, folder: Path) -> None:
    """Write pixels ``[N, 3, h, w]`` as PNG files, so that they can be read back one by one."""
    for index, image in enumerate(pixels.permute(0, 2, 3, 1).numpy()):
        Image.fromarray(image).save(folder / f"{index:04}.png", compress_level=1)
