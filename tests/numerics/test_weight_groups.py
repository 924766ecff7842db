"""Weights with a multiplier per group: by hand, and against every multiplier there is."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from vitquant.numerics.weight_groups import best_multipliers, covering_multipliers, group_maxima, quantize_grouped

WEIGHT = torch.tensor([[11.2, -3.0, 0.5, 0.4, 2.1], [0.0, 0.0, -0.7, 0.6, 1.0]], dtype=torch.float64)
SCALE = torch.tensor([[0.1], [0.1 / 16]], dtype=torch.float64)


def test_by_hand() -> None:
    """Four bits, groups of two, the last one short: 11.2 = 0.1 * 16 * 7, and 2.1 = 0.1 * 3 * 7."""
    assert group_maxima(WEIGHT, 2).tolist() == [[11.2, 0.5, 2.1], [0.0, 0.7, 1.0]]
    covering = covering_multipliers(WEIGHT, SCALE, 7, 2)
    assert covering.tolist() == [[16, 1, 3], [1, 16, 16]]  # the last one would need 22.9
    codes = quantize_grouped(WEIGHT, SCALE, covering, 7, 2)
    assert codes.tolist() == [[112, -32, 5, 4, 21], [0, 0, -112, 96, 112]]
    # 16: errors of 0 and 0.2; 15 clips 11.2 to 10.5, and so on. Of -0.7 and 0.6 14 and fewer clip the first.
    assert best_multipliers(WEIGHT, SCALE, 7, 2).tolist() == [[16, 1, 3], [1, 16, 16]]


def test_what_is_important_is_exact() -> None:
    """With a multiplier of 2 the small weights are exact and the large one is clipped; with 3 it is the other way."""
    weight, scale = torch.tensor([[2.1, 0.2, 0.8]], dtype=torch.float64), torch.full((1, 1), 0.1, dtype=torch.float64)
    for importance, expected in (([1.0, 1, 1], 3), ([1e-3, 1, 1], 2), ([1.0, 1e-3, 1e-3], 3)):
        found = best_multipliers(weight, scale, 7, 3, torch.tensor(importance, dtype=torch.float64))
        assert found.tolist() == [[expected]]


def error(weight: Tensor, scale: Tensor, chosen: Tensor, limit: int, group: int, importance: Tensor) -> Tensor:
    codes = quantize_grouped(weight, scale, chosen, limit, group)
    return ((weight - codes * scale).square() * importance).sum(1)


@given(st.integers(0, 2**32 - 1), st.sampled_from([1, 3, 7]), st.integers(1, 6), st.integers(1, 8))
def test_the_best_of_all_multipliers(seed: int, limit: int, group: int, columns: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(4, columns, generator=generator, dtype=torch.float64)
    importance = torch.rand(columns, generator=generator, dtype=torch.float64) + 0.01
    scale = weight.abs().amax(1, keepdim=True) / (16 * limit)
    covering = covering_multipliers(weight, scale, limit, group)
    best = best_multipliers(weight, scale, limit, group, importance)
    for index in range(covering.shape[1]):
        part = slice(index * group, (index + 1) * group)
        least = torch.full((4,), torch.inf, dtype=torch.float64)
        for multiplier in range(1, 17):
            tried = torch.full((4, 1), float(multiplier), dtype=torch.float64)
            found = error(weight[:, part], scale, tried, limit, group, importance[part])
            allowed = (multiplier >= covering[:, index] / 2) & (multiplier <= covering[:, index])
            least = torch.where(allowed & (found < least), found, least)
        chosen = error(weight[:, part], scale, best[:, index : index + 1], limit, group, importance[part])
        torch.testing.assert_close(chosen, least)


@pytest.mark.parametrize("limit", [1, 3, 7])
def test_the_covering_multiplier_clips_nothing(limit: int) -> None:
    for peak, other in itertools.product((0.01, 0.3, 1.0), (0.001, 0.02, 0.5, 1.0)):
        weight = torch.tensor([[peak, other * peak]])
        scale = weight.abs().amax(1, keepdim=True) / (16 * limit)
        chosen = covering_multipliers(weight, scale, limit, 1)
        assert ((weight.abs() / (scale * chosen)) <= limit + 1e-3).all()
        assert (((weight.abs() / (scale * (chosen - 1))) > limit) | (chosen == 1)).all()
