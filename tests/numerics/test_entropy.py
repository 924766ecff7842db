import math

import numpy as np
import pytest
import torch

from vitquant.numerics.clip import fractions
from vitquant.numerics.entropy import entropy_range, fold, window_divergence


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
def test_divergence_equals_the_definition(cells, occupancy):
    rng = np.random.default_rng(cells)
    h = rng.poisson(occupancy * np.exp(-(np.linspace(-3, 3, 64) ** 2)), (5, 64)) + 0
    h[:, 30] += 1
    windows = [(a, b) for a in (0, 3, 17) for b in (40, 51, 64) if b - a >= cells]
    first, stop = (torch.tensor(ends).expand(5, -1) for ends in zip(*windows, strict=True))
    found = window_divergence(torch.from_numpy(h), first, stop, cells)
    for c in range(5):
        expected = [slow_divergence(h[c], a, b, cells) for a, b in windows]
        np.testing.assert_allclose(found[c], expected, rtol=1e-9, atol=1e-12)


def test_divergence_by_hand():
    # Two cells over four bins: P = (1, 3, 2, 2) / 8, Q = (2, 2, 2, 2) / 8.
    h = torch.tensor([[1, 3, 2, 2]])
    found = window_divergence(h, torch.tensor([[0]]), torch.tensor([[4]]), 2)
    assert found.item() == pytest.approx((math.log(1 / 2) + 3 * math.log(3 / 2)) / 8)


def test_fold_adds_both_signs_by_magnitude():
    assert fold(torch.tensor([[1, 2, 3, 4, 5, 6]])).tolist() == [[4 + 3, 5 + 2, 6 + 1]]


@pytest.mark.parametrize("signed", [True, False])
@pytest.mark.parametrize("bits", [2, 3, 4, 6])
def test_choice_equals_the_search_in_the_open(bits, signed):
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


def range_of(counts: torch.Tensor, low: float, high: float, **kind) -> tuple[float, float]:
    one = torch.ones(1, dtype=torch.float64)
    found = entropy_range(counts[None], one, low * one, high * one, **kind)
    return found[0].item(), found[1].item()


def test_an_outlier_is_clipped():
    h = (1000 * torch.exp(-((torch.arange(2048) - 1024) ** 2) / (2 * 40**2))).round().long()
    h[1024 + 1000] = 1
    low, high = range_of(h, -151.0, 1000.5, bits=6, signed=True)
    assert 80 < high < 200
    assert low == max(-151.0, -high)


def test_a_uniform_tensor_is_not_clipped():
    assert range_of(torch.full((2048,), 3), -1024.0, 1023.5, bits=6, signed=False) == (-1024, 1023.5)


@pytest.mark.parametrize("bits", [11, 16])
def test_more_codes_than_bins_keep_the_full_range(bits):
    assert range_of(torch.ones(2048), 2.0, 9.0, bits=bits, signed=False) == (0, 9)  # zero is inside though no value is
    assert range_of(torch.ones(2048), -3.0, 9.0, bits=max(bits, 12), signed=True) == (-3, 9)
