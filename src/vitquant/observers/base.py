"""The base class of observers: channel layout, exact extremes, and the check for NaN and Inf."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from vitquant.errors import LifecycleError, NumericsError
from vitquant.numerics.quantile import Tiles
from vitquant.observers.layout import ChannelLayout

if TYPE_CHECKING:
    from typing_extensions import Self


@dataclass(frozen=True)
class Extremes:
    """Smallest and largest value of every channel, float64 ``[channels]``; and the tiles, where found through them."""

    low: Tensor
    high: Tensor
    tiles: Tiles | None = None

    @classmethod
    def by_tiles(cls, values: Tensor) -> Extremes:
        """The same as :meth:`of`, for those who need the tiles too."""
        tiles = Tiles.of(values)
        low, high = tiles.extremes()
        return cls(low.double(), high.double(), tiles)

    @classmethod
    def of(cls, values: Tensor) -> Extremes:
        """Of values ``[n, channels, m]``. NaN propagates."""
        # Of a wide row it is quicker to make one number first; torch is slow in reducing around the channel.
        dims = (2, 0) if values.stride(2) == 1 and values.shape[2] >= 32 else (0, 2)
        low, high = values, values
        for dim in dims:
            low, high = low.amin(dim, keepdim=True), high.amax(dim, keepdim=True)
        return cls(low.flatten().double(), high.flatten().double())

    def union(self, other: Extremes) -> Extremes:
        """The extremes of both."""
        return Extremes(torch.minimum(self.low, other.low), torch.maximum(self.high, other.high))

    @property
    def peak(self) -> Tensor:
        """Largest magnitude, ``[channels]``."""
        return torch.maximum(self.low.abs(), self.high.abs())


class Observer(ABC):
    """Statistics of the tensors seen so far, from which a quantization range can be chosen.

    Streaming (memory does not depend on the number of tensors), deterministic, and mergeable: after ``a.merge(b)``
    ``a`` is as if it had seen its own tensors and then those of ``b``; an observer that counts a sample of large
    tensors keeps the sample that ``b`` took. Which range fits a bit width is a pure function of the statistics, so one
    observed point can be asked for several.
    """

    def __init__(self, layout: ChannelLayout) -> None:
        self.layout = layout
        self._extremes: Extremes | None = None

    @property
    def settings(self) -> dict[str, object]:
        """What two observers must share to be merged."""
        return {"layout": self.layout}

    @property
    def observed(self) -> bool:
        """Whether any value has been seen."""
        return self._extremes is not None

    @property
    def extremes(self) -> Extremes:
        """Exact minimum and maximum of everything seen.

        Raises:
            LifecycleError: nothing was observed.
        """
        if self._extremes is None:
            raise self._unobserved()
        return self._extremes

    def observe(self, x: Tensor) -> None:
        """Take in a tensor; one without elements changes nothing.

        Args:
            x: of a shape that the layout fits; for activations the first dimension counts images.

        Raises:
            NumericsError: ``x`` holds NaN or Inf. The statistics stay as they were.
            LifecycleError: ``x`` has another number of channels than the tensors before it.
            ModelError: ``x`` does not fit the layout.
        """
        if not x.numel():
            return
        x = x.detach()
        values = self.layout.split(x)
        batch = self._summary(long_axis_first(values))
        if not bool((batch.low.isfinite() & batch.high.isfinite()).all()):
            raise _not_finite(x)
        seen = self._joined(batch)
        self._accumulate(values, batch, images=x.shape[0] if x.ndim else 1)
        self._extremes = seen

    def merge(self, other: Self) -> Self:
        """Add what ``other`` has seen, as if it had come after; ``other`` stays as it is. Returns ``self``.

        Raises:
            LifecycleError: ``other`` is of another class, or differs in layout, settings or number of channels.
        """
        if type(self) is not type(other) or self.settings != other.settings:
            raise LifecycleError(
                "observers that differ cannot be merged",
                where=type(self).__name__,
                got=f"{type(other).__name__} with {other.settings}",
                expected=f"{type(self).__name__} with {self.settings}",
            )
        if other._extremes is not None:
            seen = self._joined(other._extremes)
            self._absorb(other)
            self._extremes = seen
        return self

    @abstractmethod
    def range(self, *, bits: int, signed: bool, narrow: bool = False) -> tuple[Tensor, Tensor]:
        """The range that codes of this kind should cover.

        Args:
            bits: width of a code, 2 to 16.
            signed: symmetric or unsigned affine.
            narrow: without the most negative code.

        Returns:
            Low and high end, float64 ``[channels]``.

        Raises:
            LifecycleError: nothing was observed.
        """

    def _summary(self, values: Tensor) -> Extremes:
        """What the one pass over all values ``[n, channels, m]`` finds; ``n`` is the longer of ``n`` and ``m``."""
        return Extremes.of(values)

    @abstractmethod
    def _accumulate(self, values: Tensor, batch: Extremes, images: int) -> None:
        """Take in finite values as the layout splits them, ``[outer, channels, inner]``, whose extremes are ``batch``.

        ``images`` is the size of the tensor's first dimension.
        """

    @abstractmethod
    def _absorb(self, other: Self) -> None:
        """Add the statistics of an observer of the same class and settings that has seen something."""

    def _unobserved(self) -> LifecycleError:
        return LifecycleError(
            "no statistics: nothing was observed", where=type(self).__name__, fix="calibrate with at least one image"
        )

    def _joined(self, batch: Extremes) -> Extremes:
        if self._extremes is None:
            return Extremes(batch.low, batch.high)
        if len(batch.low) != len(self._extremes.low):
            raise LifecycleError(
                "the number of channels changed",
                where=type(self).__name__,
                got=len(batch.low),
                expected=f"{len(self._extremes.low)}, as in earlier batches",
            )
        return self._extremes.union(batch)


def long_axis_first(values: Tensor) -> Tensor:
    """``[outer, channels, inner]`` with the longer of outer and inner put first; a view."""
    return values if values.shape[0] >= values.shape[2] else values.transpose(0, 2)


def _not_finite(x: Tensor) -> NumericsError:
    bad = ~x.isfinite()
    first = int(bad.reshape(x.shape[0] if x.ndim else 1, -1).any(dim=1).nonzero()[0])
    return NumericsError(
        f"found {int(x.isinf().sum())} Inf and {int(x.isnan().sum())} NaN, "
        f"first at index {first} of the first dimension (the image in a batch)",
        expected="finite numbers",
        fix="check this image and the weights of the preceding layers",
    )
