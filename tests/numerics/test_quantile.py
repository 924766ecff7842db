import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from vitquant.numerics.quantile import Tiles, extreme_values, two_sided_quantiles

TINY = 1e-45  # the smallest subnormal float32


def test_hand_computed() -> None:
    low, high = two_sided_quantiles(Tiles.of(torch.tensor([0.0, 1, 2, 3, 10]).view(5, 1, 1)), 0.875)
    assert high.item() == 3 + 0.5 * 7  # rank 0.875 * 4 = 3.5
    assert low.item() == 0.5


def test_alpha_one_is_minmax_and_one_value_is_itself() -> None:
    x = torch.randn(100, 3, 5)
    low, high = two_sided_quantiles(Tiles.of(x), 1.0)
    assert torch.equal(low, x.amin((0, 2)).double())
    assert torch.equal(high, x.amax((0, 2)).double())
    low, high = two_sided_quantiles(Tiles.of(torch.tensor([-2.5]).view(1, 1, 1)), 0.9)
    assert low.item() == high.item() == -2.5


def test_subnormals_are_kept() -> None:
    x = torch.tensor([0.0, -TINY, TINY, 2 * TINY]).view(4, 1, 1)
    low, high = two_sided_quantiles(Tiles.of(x), 1.0)
    assert low.item() == x.min().double().item() < 0
    assert high.item() == x.max().double().item() > 0


@settings(max_examples=60, deadline=None)
@given(
    n=st.integers(1, 400),
    channels=st.integers(1, 4),
    m=st.integers(1, 5),
    alpha=st.one_of(st.sampled_from([1.0, 0.99999, 0.999, 0.99, 0.9, 0.51]), st.floats(0.5, 1)),
    seed=st.integers(0, 2**20),
    distinct=st.sampled_from([2, 7, 10**6]),
)
def test_equals_numpy(n: int, channels: int, m: int, alpha: float, seed: int, distinct: int) -> None:
    rng = np.random.default_rng(seed)
    x = (rng.integers(-distinct, distinct + 1, (n, channels, m)) / 7).astype(np.float32)
    low, high = two_sided_quantiles(Tiles.of(torch.from_numpy(x)), alpha)
    flat = x.transpose(1, 0, 2).reshape(channels, -1).astype(np.float64)
    tolerance = 1e-9 * max(1, distinct)
    np.testing.assert_allclose(high, np.quantile(flat, alpha, axis=1), rtol=0, atol=tolerance)
    np.testing.assert_allclose(low, np.quantile(flat, 1 - alpha, axis=1), rtol=0, atol=tolerance)


@settings(max_examples=60, deadline=None)
@given(
    x=hnp.arrays(np.float32, st.tuples(st.integers(1, 90), st.integers(1, 3), st.integers(1, 3)),
                 elements=st.floats(width=32, allow_nan=False, allow_infinity=False)),
    data=st.data(),
    largest=st.booleans(),
)  # fmt: skip
def test_extreme_values_equal_a_sort(x: np.ndarray, data: st.DataObject, largest: bool) -> None:
    count = data.draw(st.integers(1, x.shape[0] * x.shape[2]))
    found = extreme_values(Tiles.of(torch.from_numpy(x)), count, largest)
    ordered = np.sort(x.transpose(1, 0, 2).reshape(x.shape[1], -1), axis=1)
    expected = ordered[:, ::-1][:, :count] if largest else ordered[:, :count]
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("largest", [False, True])
def test_tiles_with_a_tail_and_a_strided_view(largest: bool) -> None:
    qkv = torch.randn(2, 57, 12)
    view = qkv[..., 4:8].reshape(114, 4, 1)
    assert not view.is_contiguous()
    found = extreme_values(Tiles.of(view), 2, largest)
    assert torch.equal(found, view[..., 0].T.sort(dim=1, descending=largest).values[:, :2])
