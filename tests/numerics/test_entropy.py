import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vitquant.numerics.clip import fractions
from vitquant.numerics.entropy import Windows, best_window, entropy_range, fold


def slow_divergence(h: np.ndarray, first: int, stop: int, cells: int) -> float:
    """The definition, step by step, as in the TensorRT talk's pseudocode."""
    inside = h[first:stop].astype(float)
    p = inside.copy()
    p[0] += h[:first].sum()
    p[-1] += h[stop:].sum()
    q = np.zeros_like(p)
    for cell in range(cells):
        a, b = len(p) * cell // cells, len(p) * (cell + 1) // cells
        occupied = p[a:b] != 0
        if occupied.any():
            q[a:b][occupied] = inside[a:b].sum() / occupied.sum()
    if not inside.sum() or ((p > 0) & (q == 0)).any():
        return math.inf
    p, q = p / p.sum(), q / q.sum()
    return float((p[p > 0] * np.log(p[p > 0] / q[p > 0])).sum())


@pytest.mark.parametrize("cells", [2, 4, 8, 16])
@pytest.mark.parametrize("occupancy", [0.3, 5, 300])
def test_divergence_equals_the_definition(cells: int, occupancy: float) -> None:
    rng = np.random.default_rng(cells)
    h = rng.poisson(occupancy * np.exp(-(np.linspace(-3, 3, 64) ** 2)), (5, 64)) + 0
    h[:, 30] += 1
    windows = [(a, b) for a in (0, 3, 17) for b in (40, 51, 64) if b - a >= cells]
    first, stop = (torch.tensor(ends).expand(5, -1) for ends in zip(*windows, strict=True))
    found = Windows.of(torch.from_numpy(h), first, stop).divergence(cells)
    for c in range(5):
        expected = [slow_divergence(h[c], a, b, cells) for a, b in windows]
        np.testing.assert_allclose(found[c], expected, rtol=1e-9, atol=1e-12)


BINS = 128


def histograms() -> dict[str, np.ndarray]:
    """Rows of counts, alike within a kind and hard in a way of their own."""
    rng = np.random.default_rng(0)
    bell = np.exp(-((np.linspace(-4, 4, BINS) + rng.uniform(-1, 1, (20, 1))) ** 2))
    few = np.zeros((20, BINS))
    few[np.arange(20)[:, None], rng.integers(0, BINS, (20, 6))] = rng.integers(1, 50, (20, 6))
    flat = np.repeat(np.arange(20)[:, None], BINS, axis=1)  # the first row is empty; every window of a row is a tie
    alone = np.eye(BINS)[rng.integers(0, BINS, 20)] * rng.integers(1, 2**40, (20, 1))
    outliers = np.where(np.isin(np.arange(BINS), (0, BINS - 1)), rng.integers(0, 3, (20, BINS)), 0)
    comb = np.where(np.arange(BINS) % 4, 0, 7) + np.zeros((20, 1))
    return {
        "dense": rng.poisson(1000 * bell),
        "sparse": rng.poisson(3 * bell),
        "huge": rng.poisson(1e9 * bell) * 2**12,
        "tails": rng.poisson(500 * bell**4) + (rng.random(bell.shape) < 0.03),
        "random": rng.integers(0, 5, bell.shape),
        "few": few,
        "flat": flat,
        "alone": alone,
        "outliers": outliers,
        "comb": comb,
    }


def shrinking_windows(rows: int, signed: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """Windows ``[rows, 33]``, the first of which is full; where unsigned they end in about a row's own place."""
    zero = torch.zeros(rows, 1) if signed else torch.linspace(0, BINS - 1, rows).unsqueeze(1)
    fraction = fractions(4, torch.device("cpu"))
    return ((1 - fraction) * zero).floor().long(), (zero + (BINS - zero) * fraction).ceil().long()


def exhaustive_choice(cost: torch.Tensor, size: torch.Tensor, cells: int) -> torch.Tensor:
    refused = (size < cells) | (size[:, :1] < 2 * cells)
    refused[:, 0] = False
    return torch.from_numpy(cost.masked_fill(refused, math.inf).numpy().argmin(1))  # numpy's is the first of equals


@pytest.mark.parametrize("cells", [2, 4, 8, 16, 32, 64, 128])
@pytest.mark.parametrize("signed", [True, False])
@pytest.mark.parametrize("kind", histograms())
def test_choice_equals_that_among_all_windows(kind: str, signed: bool, cells: int) -> None:
    h = torch.from_numpy(histograms()[kind]).long()
    first, stop = shrinking_windows(len(h), signed)
    windows = Windows.of(h, first, stop)
    cost = windows.divergence(cells)
    assert torch.equal(best_window(h, first, stop, cells), exhaustive_choice(cost, stop - first, cells))
    assert (windows.least_divergence(cells) <= cost + 1e-12).all()


@pytest.mark.job
@settings(deadline=None, max_examples=200)
@given(st.data())
def test_choice_equals_that_among_any_windows(data: st.DataObject) -> None:
    cells = data.draw(st.sampled_from([2, 4, 8]))
    count = st.one_of(st.just(0), st.integers(0, 3), st.integers(0, 2**40))
    h = torch.tensor([data.draw(st.lists(count, min_size=16, max_size=24))])
    end = st.integers(0, h.shape[1])
    ends = data.draw(st.lists(st.tuples(end, end).filter(lambda w: w[0] < w[1]), min_size=1, max_size=12))
    first, stop = (torch.tensor([side]) for side in zip(*ends, strict=True))
    windows = Windows.of(h, first, stop)
    cost = windows.divergence(cells)
    assert torch.equal(best_window(h, first, stop, cells), exhaustive_choice(cost, stop - first, cells))
    assert (windows.least_divergence(cells) <= cost + 1e-12).all()


def test_most_windows_are_passed_over_by_their_outliers() -> None:
    h = torch.from_numpy(histograms()["dense"])
    windows = Windows.of(h, *shrinking_windows(len(h), signed=True))
    full = windows[:, 0].divergence(16)
    assert (windows.least_divergence(16) > full.unsqueeze(1)).double().mean() > 0.7


def test_bound_by_hand() -> None:
    # Three values of ten clipped: P = (5, 1, 4) / 10 and Q = (3, 1, 3) / 7 in the first cell, those between, the last.
    windows = Windows.of(torch.tensor([[2, 3, 1, 0, 3, 1]]), torch.tensor([[1]]), torch.tensor([[5]]))
    expected = (5 * math.log(5 / 3) + 1 * math.log(1 / 1) + 4 * math.log(4 / 3)) / 10 + math.log(7 / 10)
    assert windows.least_divergence(4).item() == pytest.approx(expected)


def test_divergence_by_hand() -> None:
    # Two cells over four bins: P = (1, 3, 2, 2) / 8, Q = (2, 2, 2, 2) / 8.
    h = torch.tensor([[1, 3, 2, 2]])
    found = Windows.of(h, torch.tensor([[0]]), torch.tensor([[4]])).divergence(2)
    assert found.item() == pytest.approx((math.log(1 / 2) + 3 * math.log(3 / 2)) / 8)


def test_fold_adds_both_signs_by_magnitude() -> None:
    assert fold(torch.tensor([[1, 2, 3, 4, 5, 6]])).tolist() == [[4 + 3, 5 + 2, 6 + 1]]


@pytest.mark.parametrize("signed", [True, False])
@pytest.mark.parametrize("bits", [2, 3, 4, 6])
def test_choice_equals_the_search_in_the_open(bits: int, signed: bool) -> None:
    rng = np.random.default_rng(bits)
    half = 256
    x = np.concatenate([rng.normal(0, 10, 4000), rng.normal(20, 60, 40)]).clip(-255, 255)
    h = np.histogram(x, bins=np.arange(-half, half + 1))[0]
    low, high = x.min(), x.max()
    tops = (-max(-low, high), max(-low, high)) if signed else (low, high)
    cells = 2 ** (bits - 1) if signed else 2**bits
    search = h[half:] + h[:half][::-1] if signed else h
    offset = 0 if signed else half
    best = (math.inf, 1.0)
    for f in fractions(int(math.log2(len(search) / cells)), torch.device("cpu")).tolist():
        a, b = 0 if signed else math.floor(f * low) + half, math.floor(f * tops[1]) + 1 + offset
        if f == 1 or b - a >= cells:
            best = min(best, (slow_divergence(search, a, b, cells), -f))
    f = -best[1]
    ends = [torch.tensor([v], dtype=torch.float64) for v in (low, high)]
    found = entropy_range(
        torch.from_numpy(h)[None], torch.ones(1, dtype=torch.float64), *ends, bits=bits, signed=signed
    )
    expected = (max(f * tops[0], low), min(f * tops[1], high)) if signed else (f * low, f * high)
    assert tuple(end.item() for end in found) == pytest.approx(expected)
    assert f < 1  # otherwise the search was not tried


def range_of(counts: torch.Tensor, low: float, high: float, **kind: Any) -> tuple[float, float]:
    one = torch.ones(1, dtype=torch.float64)
    found = entropy_range(counts[None], one, low * one, high * one, **kind)
    return found[0].item(), found[1].item()


def test_an_outlier_is_clipped() -> None:
    h = (1000 * torch.exp(-((torch.arange(2048) - 1024) ** 2) / (2 * 40**2))).round().long()
    h[1024 + 1000] = 1
    low, high = range_of(h, -151.0, 1000.5, bits=6, signed=True)
    assert 80 < high < 200
    assert low == max(-151.0, -high)


def test_a_uniform_tensor_is_not_clipped() -> None:
    assert range_of(torch.full((2048,), 3), -1024.0, 1023.5, bits=6, signed=False) == (-1024, 1023.5)


@pytest.mark.parametrize("bits", [11, 16])
def test_more_codes_than_bins_keep_the_full_range(bits: int) -> None:
    assert range_of(torch.ones(2048), 2.0, 9.0, bits=bits, signed=False) == (0, 9)  # zero is inside though no value is
    assert range_of(torch.ones(2048), -3.0, 9.0, bits=max(bits, 12), signed=True) == (-3, 9)
