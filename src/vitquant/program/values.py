"""Tensors of codes, and what the codes mean."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

Array: TypeAlias = NDArray[Any]


@dataclass(frozen=True)
class Value:
    """A tensor of codes, and what they mean: ``scale * (code - zero_point)``.

    ``shape`` leaves the batch out: ``(tokens, channels)``, ``(heads, tokens, tokens)``, or the image's
    ``(channels, height, width)``. Codes lie in ``[low, high]``. ``scale`` (float32) and ``zero_point`` (int32) have
    ``G`` elements: one for each of ``G`` runs of neighbours along the last axis, or along the heads. Scales are there
    for people and for those who compare; no operation computes with them.
    """

    name: str
    shape: tuple[int, ...]
    low: int
    high: int
    scale: Array
    zero_point: Array

    @property
    def axis_length(self) -> int:
        """Length of the axis along which scale and zero point run."""
        return self.shape[0] if len(self.shape) == 3 else self.shape[-1]

    @property
    def dtype(self) -> np.dtype[Any]:
        """The narrowest integer type that holds the codes."""
        return narrowest(self.low, self.high)

    @property
    def centred_limit(self) -> int:
        """Largest ``|code - zero_point|``."""
        zero = self.zero_point.astype(np.int64)
        return max(int(np.max(zero - self.low)), int(np.max(self.high - zero)), 1)

    @property
    def is_plain(self) -> bool:
        """Whether the zero point is 0 everywhere."""
        return not np.any(self.zero_point)

    def spread(self, array: Array) -> Array:
        """``scale`` or ``zero_point`` with one element for each place of the axis, ``[axis_length]``."""
        repeated: Array = np.repeat(array, self.axis_length // len(array))
        return repeated

    def per_place(self, array: Array) -> Array:
        """``scale`` or ``zero_point`` with one element for all places, or else one for each."""
        return array if len(array) == 1 else self.spread(array)

    @property
    def kind(self) -> str:
        """The codes' type as people write it, such as ``uint8`` or ``int16``; odd widths by their range."""
        unsigned = self.low >= 0
        bits = max(self.high.bit_length(), (-self.low - 1).bit_length() if not unsigned else 0) + (not unsigned)
        return f"{'uint' if unsigned else 'int'}{bits}"


def narrowest(low: int, high: int) -> np.dtype[Any]:
    """The narrowest of int8, uint8, int16, int32 and int64 that holds ``[low, high]``."""
    for name in ("int8", "uint8", "int16", "int32"):
        info = np.iinfo(name)
        if info.min <= low and high <= info.max:
            return np.dtype(name)
    return np.dtype("int64")
