"""Range between two quantiles, averaged over batches."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from vitquant.errors import ConfigError
from vitquant.numerics.quantile import Tiles, two_sided_quantiles
from vitquant.observers.base import Extremes, Observer, long_axis_first
from vitquant.observers.layout import ChannelLayout

if TYPE_CHECKING:
    from typing_extensions import Self


@dataclass(frozen=True)
class MovingAverage:
    """Exponential moving average: the newest of ``batches`` weighs ``sigma``, each older one ``1 - sigma`` times less.

    ``total`` is the weighted sum, ``weight`` the sum of the weights. Their quotient has no bias towards the start:
    a small ``sigma`` gives the plain mean (Kingma and Ba, 2015, section 3, correct theirs in the same way).
    """

    total: Tensor
    weight: float
    batches: int

    def then(self, later: MovingAverage, sigma: float) -> MovingAverage:
        """The average of these batches followed by ``later``'s."""
        fade = (1 - sigma) ** later.batches
        return MovingAverage(
            self.total * fade + later.total, self.weight * fade + later.weight, self.batches + later.batches
        )

    @property
    def value(self) -> Tensor:
        """The average, in the shape of ``total``."""
        return self.total / self.weight


class PercentileObserver(Observer):
    """Range between the quantiles ``1 - alpha`` and ``alpha`` of each channel, averaged over batches.

    Percentile calibration is described in Wu et al., 2020, "Integer quantization for deep learning inference",
    section 4; the exponential moving average over batches in Jacob et al., 2018, section 3. The quantiles of a batch
    are exact, with linear interpolation between order statistics; a batch is whatever one ``observe`` is given.

    Args:
        layout: which elements share a scale.
        alpha: upper quantile, above 0.5, at most 1 (minimum and maximum of a batch).
        sigma: weight of the newest batch, above 0, at most 1 (the last batch alone).

    Raises:
        ConfigError: ``alpha`` or ``sigma`` is out of bounds.
    """

    def __init__(self, layout: ChannelLayout, alpha: float, sigma: float) -> None:
        if not 0.5 < alpha <= 1:
            raise ConfigError("percentile_alpha is out of range", got=alpha, expected="above 0.5 and at most 1")
        if not 0 < sigma <= 1:
            raise ConfigError("percentile_sigma is out of range", got=sigma, expected="above 0 and at most 1")
        super().__init__(layout)
        self.alpha = alpha
        self.sigma = sigma
        self._average: MovingAverage | None = None

    @property
    def settings(self) -> dict[str, object]:
        return {**super().settings, "alpha": self.alpha, "sigma": self.sigma}

    @property
    def average(self) -> MovingAverage:
        """Low and high quantile, ``[2, channels]``, over the batches.

        Raises:
            LifecycleError: nothing was observed.
        """
        if self._average is None:
            raise self._unobserved()
        return self._average

    def range(self, *, bits: int, signed: bool, narrow: bool = False) -> tuple[Tensor, Tensor]:
        low, high = self.average.value
        return low, high

    def _summary(self, values: Tensor) -> Extremes:
        return Extremes.by_tiles(values)

    def _accumulate(self, values: Tensor, batch: Extremes, images: int) -> None:
        quantiles = torch.stack(two_sided_quantiles(batch.tiles or Tiles.of(long_axis_first(values)), self.alpha))
        self._append(MovingAverage(self.sigma * quantiles, self.sigma, 1))

    def _absorb(self, other: Self) -> None:
        self._append(other.average)

    def _append(self, later: MovingAverage) -> None:
        self._average = later if self._average is None else self._average.then(later, self.sigma)
