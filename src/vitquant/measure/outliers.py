"""Points whose range a few values take up, so that all others share the few integers that are left.

The figure is the range that a point's integers cover over the range that its ordinary values need, each value in units
of its own channel's range. What ordinary values need is the least of three: the 99.9th percentile of all magnitudes
(few outliers), twice the median over channels of their largest magnitudes (outlying channels), and twice the same over
tokens (outlying tokens). An outlier that the observer clipped, or that has a channel and so a scale of its own, does no
harm and does not show.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from vitquant.config import QuantConfig, section_of
from vitquant.numerics.affine import QuantParams

QUANTILE = 0.999
MIN_RATIO = 8.0
"""Three bits of the width go to the outliers. The embedded model stays below 7 even with one 8-bit scale a tensor."""
MIN_LEVELS = 32.0
"""Where ordinary values still have so many levels of either sign, as in 16 bits, nothing is amiss."""


class OutlierWarning(UserWarning):
    """Outliers take up most of the range of some points."""


@dataclass(frozen=True)
class Outlier:
    """A point with outliers: how many times its range is that of the ordinary values, and the setting that helps."""

    point: str
    ratio: float
    fix: str

    def __str__(self) -> str:
        return f"{self.point} ({self.ratio:.0f} times, try {self.fix})"


@dataclass
class RangeMeter:
    """Accumulates how a tensor fills the range of its integers. Each image counts as much as any other.

    ``channel_dim`` is the dimension whose members could have a scale each.
    """

    params: QuantParams
    channel_dim: int
    images: int = 0
    tail: float = 0.0
    token_peak: float = 0.0
    channel_peaks: Tensor | None = None

    def add(self, x: Tensor) -> None:
        """Take in one batch ``[B, ...]`` of float values."""
        share = x.abs() / (steps(self.params) * self.params.scale)
        flat = share.flatten(1)
        rank = max(1, math.ceil(QUANTILE * flat.shape[1]))
        self.images += len(x)
        largest = flat.topk(flat.shape[1] - rank + 1, dim=1).values  # several times faster than kthvalue
        self.tail += float(largest[:, -1].double().sum())
        tokens = share.amax(-1).reshape(len(x), -1)
        self.token_peak += float(tokens.median(dim=1).values.double().sum())
        peaks = share.amax([dim for dim in range(share.ndim) if dim != self.channel_dim % share.ndim])
        self.channel_peaks = peaks if self.channel_peaks is None else torch.maximum(self.channel_peaks, peaks)

    @property
    def few(self) -> float:
        """The range over the 99.9th percentile; 1 for a tensor of zeros."""
        return self.images / self.tail if self.tail else 1.0

    @property
    def channels(self) -> float:
        """The range over the largest magnitude of an ordinary channel; channels of zeros left out."""
        peaks = self.channel_peaks
        alive = None if peaks is None else peaks[peaks > 0]
        return 1.0 if alive is None or not len(alive) else 1 / float(alive.median())

    @property
    def tokens(self) -> float:
        """The range over the largest magnitude of an ordinary token."""
        return self.images / self.token_peak if self.token_peak else 1.0

    @property
    def ratio(self) -> float:
        """The range over the range that ordinary values need."""
        return max(self.few, self.channels / 2, self.tokens / 2)

    @property
    def levels(self) -> float:
        """How many integers of one sign the ordinary values have."""
        return float(steps(self.params).max()) / self.ratio


def steps(params: QuantParams) -> Tensor:
    """The larger of the numbers of integers above and below zero, in the form of ``params.zero_point``."""
    zero = params.zero_point
    return torch.maximum((params.qmax - zero).abs(), (params.qmin - zero).abs())


def outlier_of(name: str, config: QuantConfig, meter: RangeMeter) -> Outlier | None:
    """The point as an outlier, if it is one."""
    if meter.ratio < MIN_RATIO or meter.levels >= MIN_LEVELS:
        return None
    return Outlier(name, meter.ratio, advice(section_of(name), config, meter))


def advice(section: str, config: QuantConfig, meter: RangeMeter) -> str:
    """The setting that helps most, among those that integers can execute."""
    if section in ("pos_embed", "residual1", "residual2"):
        return "bit_type: {bits: 16}"
    if section == "intSoft":
        return "softmax: row"
    if config.calibration_mode == "layer_wise" and meter.channels >= MIN_RATIO:
        return "calibration_mode: channel_wise"
    if section.endswith(".weight"):
        return "observer_type: OmseObserver"
    if meter.few >= MIN_RATIO and config.observer_type != "PercentileObserver":
        return "observer_type: PercentileObserver with percentile_alpha: 0.9999"
    return "bit_type: {bits: 16}"


def outlier_message(found: Sequence[Outlier]) -> str:
    """One line about the points, the worst first.

    >>> outlier_message([Outlier("pos_embed", 20.4, "bit_type: {bits: 16}")])
    'outliers take up most of the range at 1 point: pos_embed (20 times, try bit_type: {bits: 16})'
    """
    worst = sorted(found, key=lambda outlier: -outlier.ratio)
    count = f"{len(worst)} points" if len(worst) > 1 else "1 point"
    more = f" and {len(worst) - 3} more" if len(worst) > 3 else ""
    named = ", ".join(map(str, worst[:3]))
    return f"outliers take up most of the range at {count}: {named}{more}"
