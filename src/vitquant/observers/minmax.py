"""The full range of everything seen."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor

from vitquant.observers.base import Extremes, Observer

if TYPE_CHECKING:
    from typing_extensions import Self


class MinmaxObserver(Observer):
    """Range from the smallest to the largest value (Jacob et al., 2018, section 3, without their moving average)."""

    def range(self, *, bits: int, signed: bool, narrow: bool = False) -> tuple[Tensor, Tensor]:
        return self.extremes.low, self.extremes.high

    def _accumulate(self, values: Tensor, batch: Extremes, images: int) -> None:
        """Extremes are all it needs, and every observer keeps these."""

    def _absorb(self, other: Self) -> None:
        """As above."""
