"""Streaming comparison of a tensor with what quantization left of it."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

from vitquant.numerics.affine import QuantParams
from vitquant.numerics.sqnr import SqnrMeter, energy
from vitquant.results import PointMetrics

HISTOGRAM_BINS = 64


@dataclass
class MetricsMeter:
    """Accumulates :class:`PointMetrics`. The first batch fixes the histogram's range; later values fall to its ends."""

    grid: QuantParams | None = None
    energy: SqnrMeter = field(default_factory=SqnrMeter)
    dot: float = 0.0
    energy_after: float = 0.0
    count: int = 0
    images: int = 0
    clipped: int = 0
    low: float = math.inf
    high: float = -math.inf
    tail: float = 0.0
    seconds: float = 0.0
    edges: tuple[float, float] | None = None
    before_counts: Tensor = field(default_factory=lambda: torch.zeros(HISTOGRAM_BINS))
    after_counts: Tensor = field(default_factory=lambda: torch.zeros(HISTOGRAM_BINS))

    def add(self, before: Tensor, after: Tensor, seconds: float, images: int) -> None:
        """Take in one batch: the tensor, what it became, how long its layer took and for how many images."""
        self.energy.add(before, after)
        self.dot += float(torch.linalg.vecdot(before, after).double().sum())
        self.energy_after += energy(after)
        self.count += before.numel()
        self.images += images
        self.seconds += seconds
        low, high = (float(v) for v in torch.aminmax(before))
        self.low, self.high = min(self.low, low), max(self.high, high)
        magnitude = before.abs().flatten()
        rank = max(1, math.ceil(0.999 * magnitude.numel()))
        self.tail = max(self.tail, float(magnitude.kthvalue(rank).values))
        if self.grid is not None:
            codes = before / self.grid.scale + self.grid.zero_point
            self.clipped += int(((codes < self.grid.qmin - 0.5) | (codes > self.grid.qmax + 0.5)).sum())
        if self.edges is None:
            self.edges = (low, high if high > low else low + 1)
        self.before_counts += self._histogram(before)
        self.after_counts += self._histogram(after)

    def _histogram(self, x: Tensor) -> Tensor:
        low, high = self.edges or (0.0, 1.0)
        return torch.histc(x.float().clamp(low, high), HISTOGRAM_BINS, low, high).cpu()

    def result(self) -> PointMetrics:
        """The metrics of everything taken in."""
        norm = math.sqrt(self.energy.signal * self.energy_after)
        return PointMetrics(
            sqnr_db=self.energy.db,
            mse=self.energy.noise / self.count,
            cosine=self.dot / norm if norm else 1.0,
            low=self.low,
            high=self.high,
            outlier_ratio=max(abs(self.low), abs(self.high)) / self.tail if self.tail else 1.0,
            clipped=self.clipped / self.count,
            kl_divergence=kl_divergence(self.before_counts, self.after_counts),
            histogram=tuple(int(c) for c in self.before_counts.tolist()),
            seconds=self.seconds / self.images,
        )


def kl_divergence(p: Tensor, q: Tensor) -> float:
    """Kullback-Leibler divergence of two histograms, in nats, half a count added to each bin so that none is empty."""
    p, q = p.double() + 0.5, q.double() + 0.5
    p, q = p / p.sum(), q / q.sum()
    return float((p * (p / q).log()).sum())
