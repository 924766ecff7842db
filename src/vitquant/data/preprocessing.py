"""The preprocessing of a model: image size, crop, and the mean and standard deviation for normalisation.

The geometry is that of timm's evaluation transform (``timm.data.transforms_imagenet_eval``, crop mode ``center``):
the shorter side is resized to ``floor(size / crop_pct)``, then the centre is cropped.
"""

from __future__ import annotations

import math
import os
import warnings
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from numbers import Integral, Real
from os import PathLike
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from vitquant.errors import ConfigError, DataError
from vitquant.numerics import pixels

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
HALF = (0.5, 0.5, 0.5)
RESAMPLING = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}
MAX_PIXELS = 89_478_485
"""Most pixels of an image; Pillow treats larger ones as decompression bombs. Decoding needs less than 1 GB."""
GREEDY_DECODERS = {"AVIF": 2, "HEIF": 2, "JPEG2000": 3, "JXL": 3, "WEBP": 2}
"""Formats whose decoders need more memory per pixel; their pixel limit is lower by this factor."""
MAX_RESIZED = 1 << 25
"""An image with more pixels than this after resizing (a very long one) is cropped and resized in one step."""


@dataclass(frozen=True)
class Preprocessing:
    """How images are converted to the model's input.

    ``img_size`` is ``(height, width)`` in pixels. ``mean`` and ``std`` have one value per channel, for pixels scaled to
    ``[0, 1]``; their length is the number of channels, 1 (grey) or 3 (RGB). ``interpolation`` is ``"bicubic"`` or
    ``"bilinear"``. ``crop_pct`` is the fraction of the resized image's side that the centre crop keeps.

    Raises:
        ConfigError: a value is out of range.
    """

    img_size: tuple[int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    interpolation: str = "bicubic"
    crop_pct: float = 0.9

    def __post_init__(self) -> None:
        for key in ("img_size", "mean", "std"):  # the caller could change a list
            if isinstance(getattr(self, key), list):
                object.__setattr__(self, key, tuple(getattr(self, key)))
        channels = _count(self.mean)
        size = _count(self.img_size) == 2 and all(isinstance(side, Integral) and side > 0 for side in self.img_size)
        checks = (
            ("img_size", size, "two positive numbers (height, width)"),
            ("mean", channels in (1, 3), "one value per channel (1 or 3 channels)"),
            ("std", _count(self.std) == channels and min(self.std) > 0, "one positive value per channel, as in mean"),
            ("interpolation", str(self.interpolation) in RESAMPLING, " or ".join(RESAMPLING)),
            ("crop_pct", _count((self.crop_pct,)) == 1 and 0 < self.crop_pct <= 1, "a number above 0 and at most 1"),
        )
        for key, valid, expected in checks:
            if not valid:
                value = getattr(self, key)
                raise ConfigError("bad value", where=f"preprocessing {key}", got=repr(value), expected=expected)

    @property
    def channels(self) -> int:
        """Colour channels of the input: 1 (grey) or 3 (RGB)."""
        return len(self.mean)

    @property
    def shape(self) -> tuple[int, int, int]:
        """Shape of one input image, ``(C, h, w)``."""
        return self.channels, *self.img_size

    def replaced(self, **changes: Any) -> Preprocessing:
        """A copy with other values in some fields; a single number as ``mean`` or ``std`` applies to every channel.

        Raises:
            ConfigError: there is no such field, or a value is out of range.

        >>> Preprocessing((224, 224), (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)).replaced(mean=0.4, crop_pct=1.0).mean
        (0.4, 0.4, 0.4)
        """
        known = [field.name for field in fields(self)]
        if unknown := [name for name in changes if name not in known]:
            got, expected = repr(unknown[0]), f"one of {', '.join(known)}"
            raise ConfigError("unknown field", where="preprocessing", got=got, expected=expected)
        values: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value for name, value in changes.items()
        }
        for name in {"mean", "std"} & set(values):
            value = values[name]
            if isinstance(value, tuple) and len(value) == 1:
                value = value[0]
            values[name] = (value,) * self.channels if isinstance(value, Real) else value
        return replace(self, **values)

    def load(self, path: str | PathLike[str]) -> Tensor:
        """Read an image file as ``uint8 [C, h, w]``, rotated according to its EXIF orientation.

        For an animation or a file with several pages, the first image is read.

        Raises:
            DataError: the path is not a regular file, or the image cannot be decoded, has more than ``MAX_PIXELS``
                pixels, or has pixels without a known range (32-bit integers, floats).
        """
        require_regular_file(path)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # MAX_PIXELS is the same limit
                image = Image.open(os.fspath(path))  # older Pillows resolve a Path, and name that in messages
            with image:
                check_pixels(image.size, image.format)
                image.load()
                check_pixels(image.size, image.format)  # some formats know the size only now
                ImageOps.exif_transpose(image, in_place=True)
                return self.apply(image)
        except Image.DecompressionBombError as error:
            problem = f"it has more than {MAX_PIXELS:,} pixels"
            raise DataError(f"the image cannot be read ({problem})", where=str(path)) from error
        except Exception as error:  # a decoder may raise anything when a file is damaged
            problem = error.problem if isinstance(error, DataError) else str(error) or type(error).__name__
            raise DataError(f"the image cannot be read ({problem})", where=str(path)) from error

    def apply(self, image: Image.Image) -> Tensor:
        """Convert, resize and crop an image to ``uint8 [C, h, w]``."""
        return to_tensor(self._resized_and_cropped(self.convert(image)))

    def convert(self, image: Image.Image) -> Image.Image:
        """The image in the model's colour mode; an alpha channel is dropped, as in timm."""
        sixteen_bits = image.mode.startswith("I;16") or (image.mode, image.format) == ("I", "PNG")  # before Pillow 10.3
        if sixteen_bits:  # Pillow would clip 16-bit values to 255
            image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
        elif image.mode in ("I", "F"):
            raise ValueError(f"pixels in Pillow's mode {image.mode} have no known range")
        elif image.mode in ("P", "PA"):
            image = image.convert("RGBA")
        mode = "L" if self.channels == 1 else "RGB"
        return image if image.mode == mode else image.convert(mode)

    def _resized_and_cropped(self, image: Image.Image) -> Image.Image:
        height, width = self.img_size
        resized = self._resized_size(*image.size)
        left, top = round((resized[0] - width) / 2), round((resized[1] - height) / 2)
        method = RESAMPLING[self.interpolation]
        if math.prod(resized) <= max(MAX_RESIZED, 4 * height * width):
            return image.resize(resized, method).crop((left, top, left + width, top + height))
        # Skips the pixels outside the crop. Clipping between Pillow's two passes may differ.
        step_x, step_y = image.width / resized[0], image.height / resized[1]
        right, bottom = min((left + width) * step_x, image.width), min((top + height) * step_y, image.height)
        return image.resize((width, height), method, box=(left * step_x, top * step_y, right, bottom))

    def _resized_size(self, width: int, height: int) -> tuple[int, int]:
        """``(width, height)`` of an image of this size after resizing, before the crop."""
        target_h, target_w = (math.floor(size / self.crop_pct) for size in self.img_size)
        if target_h == target_w:
            short = target_h
            return (short, int(short * height / width)) if width <= height else (int(short * width / height), short)
        ratio = min(height / target_h, width / target_w)
        return round(width / ratio), round(height / ratio)

    def normalize(self, images: Tensor) -> Tensor:
        """Pixels ``uint8 [B, C, h, w]`` to the float model's input, ``float32`` of the same shape."""
        return pixels.normalize(images, self.mean, self.std)

    def denormalize(self, images: Tensor) -> Tensor:
        """The inverse of :meth:`normalize`: normalised ``[B, C, h, w]`` to real numbers on the scale 0 to 255."""
        return pixels.denormalize(images, self.mean, self.std)

    def to_pixels(self, images: Tensor) -> Tensor:
        """Normalised ``[B, C, h, w]`` to the nearest pixels, ``uint8``; ``to_pixels(normalize(x))`` is ``x``."""
        return pixels.nearest_pixels(images, self.mean, self.std)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON or YAML."""
        return {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Preprocessing:
        """The inverse of :meth:`to_dict`.

        Raises:
            ConfigError: a key is missing or unknown, or a value is out of range.
        """
        known = {field.name for field in fields(cls)}
        if set(values) != known:
            raise ConfigError("wrong keys", where="preprocessing", got=sorted(values), expected=str(sorted(known)))
        plain: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
        return cls(**plain)

    def __str__(self) -> str:
        height, width = self.img_size
        colours = "grey" if self.channels == 1 else "RGB"
        mean, std = (" ".join(f"{value:g}" for value in values) for values in (self.mean, self.std))
        return f"{height}x{width} {colours}, {self.interpolation}, crop {self.crop_pct:g}, mean {mean}, std {std}"


def _count(values: object) -> int:
    """The length of a tuple of finite numbers; 0 for any other value."""
    numbers = isinstance(values, tuple) and all(isinstance(v, Real) and not isinstance(v, bool) for v in values)
    return len(values) if isinstance(values, tuple) and numbers and all(map(math.isfinite, values)) else 0


def check_pixels(size: tuple[int, int], kind: str | None) -> None:
    """Check that decoding an image would not need too much memory.

    Raises:
        DataError: ``size``, width and height in either order, exceeds the pixel limit of this format.
    """
    most = MAX_PIXELS // GREEDY_DECODERS.get(kind or "", 1)
    if math.prod(size) > most:
        raise DataError(f"{size[0]} x {size[1]} pixels exceed the limit of {most:,}")


def require_regular_file(path: str | PathLike[str]) -> None:
    """Check that a path is a regular file or a link to one. Reading pipes, sockets and devices could block.

    Raises:
        DataError: there is no such file, or it is not a regular file.
    """
    if not os.path.isfile(path):
        problem = "not a regular file" if os.path.exists(path) else "no such file"
        raise DataError(problem, where=str(path))


def to_tensor(image: Image.Image) -> Tensor:
    """A grey or RGB image as ``uint8 [C, h, w]``."""
    array = np.array(image)
    return torch.from_numpy(array[None] if array.ndim == 2 else array.transpose(2, 0, 1).copy())
