"""Observers that search a histogram for the range that clips best."""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from vitquant.errors import ConfigError
from vitquant.numerics.entropy import entropy_range
from vitquant.numerics.squared_error import least_error_range
from vitquant.observers.base import Extremes, Observer
from vitquant.observers.histogram import Histogram, thinning_stride
from vitquant.observers.layout import ChannelLayout

if TYPE_CHECKING:
    from typing_extensions import Self


class HistogramObserver(Observer):
    """Keeps exact extremes and a histogram of each channel.

    Of a tensor with more than 2^12 elements an image a sample is counted: one row in ``stride``
    (:func:`~vitquant.observers.histogram.thinning_stride`), each as one, so larger images weigh no more. The stride
    depends on the shape of one image's tensor, and rows (tokens) are numbered through all images, so the sample does
    not depend on how the images are cut into batches. After ``a.merge(b)`` the sample is the one that both took: as
    large as that of a single observer, and the same if ``a`` had seen a multiple of ``stride`` rows.

    Args:
        layout: which elements share a scale.
        bins: of a channel's histogram over negative and positive values together; even, 64 to 65536.

    Raises:
        ConfigError: ``bins`` is out of bounds.
    """

    def __init__(self, layout: ChannelLayout, bins: int) -> None:
        if bins % 2 or not 64 <= bins <= 65536:
            raise ConfigError("kl_bins is out of range", got=bins, expected="an even number from 64 to 65536")
        super().__init__(layout)
        self.bins = bins
        self._histogram: Histogram | None = None
        self._rows = 0

    @property
    def settings(self) -> dict[str, object]:
        return {**super().settings, "bins": self.bins}

    @property
    def histogram(self) -> Histogram:
        """The counts.

        Raises:
            LifecycleError: nothing was observed.
        """
        if self._histogram is None:
            raise self._unobserved()
        return self._histogram

    @property
    def counts(self) -> Tensor:
        """The histogram's counts, and one for an extreme that the sample missed: clipping it must cost something."""
        return self.histogram.holding(torch.stack([self.extremes.low, self.extremes.high]).unsqueeze(2))

    def range(self, *, bits: int, signed: bool, narrow: bool = False) -> tuple[Tensor, Tensor]:
        width, extremes = self.histogram.width, self.extremes
        return self._choose(self.counts, width, extremes, bits=bits, signed=signed, narrow=narrow)

    @abstractmethod
    def _choose(
        self, counts: Tensor, width: Tensor, extremes: Extremes, *, bits: int, signed: bool, narrow: bool
    ) -> tuple[Tensor, Tensor]:
        """The range that clips best, by counts ``[channels, bins]`` over bins of a ``width``, ``[channels]``."""

    def _accumulate(self, values: Tensor, batch: Extremes, images: int) -> None:
        histogram = self._ensure_histogram(values.shape[1], values.device)
        histogram.reach(batch.peak)
        histogram.count(self._sample(values, images))

    def _sample(self, values: Tensor, images: int) -> Tensor:
        """The values to count of a tensor ``[outer, channels, inner]``, as a view of it.

        Where ``outer`` runs over images and tokens, its rows are thinned, going on where the last tensor ended. Where
        there is nothing between image and channel, as in the scores of a head or in a weight, the same positions along
        ``inner`` are counted in every image.
        """
        outer, _, inner = values.shape
        elements = values.numel() // images
        if outer <= images:
            return values[..., :: thinning_stride(inner, elements)]
        stride = thinning_stride(outer // images, elements)
        start = -self._rows % stride
        self._rows += outer
        return values[start::stride]

    def _absorb(self, other: Self) -> None:
        self._rows += other._rows
        theirs = other.histogram
        self._ensure_histogram(len(theirs.counts), theirs.counts.device).merge(theirs)

    def _ensure_histogram(self, channels: int, device: torch.device) -> Histogram:
        if self._histogram is None:
            self._histogram = Histogram(channels, self.bins, device)
        return self._histogram


class KLObserver(HistogramObserver):
    """The range whose quantized histogram diverges least from the whole: :mod:`vitquant.numerics.entropy`."""

    def _choose(
        self, counts: Tensor, width: Tensor, extremes: Extremes, *, bits: int, signed: bool, narrow: bool
    ) -> tuple[Tensor, Tensor]:
        return entropy_range(counts, width, extremes.low, extremes.high, bits=bits, signed=signed)


class OmseObserver(HistogramObserver):
    """The range with the least expected squared error: :mod:`vitquant.numerics.squared_error`."""

    def _choose(
        self, counts: Tensor, width: Tensor, extremes: Extremes, *, bits: int, signed: bool, narrow: bool
    ) -> tuple[Tensor, Tensor]:
        ends = extremes.low, extremes.high
        return least_error_range(counts, width, *ends, bits=bits, signed=signed, narrow=narrow)
