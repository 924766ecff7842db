"""Meters against cases computed by hand, and against plain numpy."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from vitquant.measure.meters import HISTOGRAM_BINS, MetricsMeter, kl_divergence
from vitquant.numerics.affine import QuantParams, fake_quantize


def grid(scale: float, zero_point: int, qmin: int, qmax: int) -> QuantParams:
    return QuantParams(torch.tensor(scale), torch.tensor(float(zero_point)), qmin, qmax)


def test_metrics_by_hand() -> None:
    # Codes -4 .. 3 of scale 1: -4.5 and 3.5 are the last values that lose no more than half a step.
    before = torch.tensor([[-6.0, -4.5, 0.0], [1.25, 3.5, 4.0]])
    after = torch.tensor([[-4.0, -4.0, 0.0], [1.0, 3.0, 3.0]])
    meter = MetricsMeter(grid(1, 0, -4, 3))
    assert torch.equal(fake_quantize(before, grid(1, 0, -4, 3)), after)
    meter.add(before, after, seconds=0.5, images=2)
    found = meter.result()
    signal = 36 + 20.25 + 0 + 1.5625 + 12.25 + 16
    noise = 4 + 0.25 + 0 + 0.0625 + 0.25 + 1
    dot = 24 + 18 + 0 + 1.25 + 10.5 + 12
    assert found.sqnr_db == pytest.approx(10 * math.log10(signal / noise))
    assert found.mse == pytest.approx(noise / 6)
    assert found.cosine == pytest.approx(dot / math.sqrt(signal * (16 + 16 + 1 + 9 + 9)))
    assert (found.low, found.high) == (-6, 4)
    assert found.clipped == pytest.approx(2 / 6)
    assert found.outlier_ratio == 1  # of six values the 99.9th percentile is the largest
    assert found.seconds == 0.25
    expected, _ = np.histogram(before.numpy(), HISTOGRAM_BINS, (-6, 4))
    assert found.histogram == tuple(expected)


def test_clipping_knows_the_zero_point_and_the_scales_of_channels() -> None:
    before = torch.tensor([[-0.5, -0.5], [1.0, 1.0], [2.0, 2.0]])
    params = QuantParams(torch.tensor([0.5, 0.25]), torch.tensor([1.0, 1.0]), 0, 7)  # [-0.5, 3] and [-0.25, 1.5]
    meter = MetricsMeter(params)
    meter.add(before, fake_quantize(before, params), 0, images=1)
    assert meter.result().clipped == pytest.approx(2 / 6)


def test_outliers_against_the_percentile() -> None:
    x = torch.full((2000,), 0.5)
    x[0] = -8  # the 1,998th of 2,000 magnitudes is the 99.9th percentile
    meter = MetricsMeter()
    meter.add(x, x, 0, images=1)
    found = meter.result()
    assert found.outlier_ratio == 16
    assert found.clipped == 0
    assert (found.sqnr_db, found.mse) == (300, 0)
    assert found.cosine == pytest.approx(1)
    assert found.kl_divergence == 0


def test_later_batches_fall_to_the_ends_of_the_histogram() -> None:
    meter = MetricsMeter()
    for values in ([0.0, 1.0], [-5.0, 9.0, 0.5]):
        meter.add(torch.tensor(values), torch.tensor(values), 0, images=1)
    histogram = meter.result().histogram
    assert (histogram[0], histogram[-1], histogram[HISTOGRAM_BINS // 2], sum(histogram)) == (2, 2, 1, 5)
    assert (meter.result().low, meter.result().high) == (-5, 9)


def test_a_constant_tensor_has_metrics() -> None:
    meter = MetricsMeter()
    meter.add(torch.zeros(4), torch.zeros(4), 0, images=1)
    found = meter.result()
    assert (found.sqnr_db, found.cosine, found.outlier_ratio, sum(found.histogram)) == (0, 1, 1, 4)


def test_divergence_by_hand() -> None:
    # With half a count more in each bin: (3/4, 1/4) against (1/4, 3/4).
    assert kl_divergence(torch.tensor([1, 0]), torch.tensor([0, 1])) == pytest.approx(0.5 * math.log(3))
    assert kl_divergence(torch.tensor([5, 2, 9]), torch.tensor([5, 2, 9])) == 0


@given(st.lists(st.tuples(st.integers(0, 50), st.integers(0, 50)), min_size=2, max_size=9))
def test_divergence_is_not_negative(counts: list[tuple[int, int]]) -> None:
    p, q = (torch.tensor(side) for side in zip(*counts, strict=True))
    assert kl_divergence(p, q) >= -1e-12
