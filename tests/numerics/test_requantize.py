"""Integer rescaling against Python's integers, which have no width."""

from fractions import Fraction
from math import floor

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from vitquant.errors import NumericsError
from vitquant.numerics.limits import MAX_SHIFT
from vitquant.numerics.requantize import dyadic, requantize, rescale

LOWEST, HIGHEST = 2.0**-31, float(2**22 - 1)


def exact(acc: int, m: int, n: int, zero_point: int, qmin: int, qmax: int) -> int:
    """The contract, in rational numbers."""
    return min(max(zero_point + floor(Fraction(acc * m, 2**n) + Fraction(1, 2)), qmin), qmax)


def test_small_accumulators_exhaustively() -> None:
    acc = torch.arange(-260, 261)
    for m in (2**21, 2**21 + 1, 3_000_001, 2**22 - 1):
        for n in range(MAX_SHIFT + 1):
            codes = requantize(acc, torch.tensor(m), torch.tensor(n), 3, -128, 127)
            assert codes.tolist() == [exact(a, m, n, 3, -128, 127) for a in acc.tolist()], (m, n)


def test_extreme_accumulators() -> None:
    acc = torch.tensor([-(2**31), -(2**31) + 1, -1, 0, 1, 2**31 - 2, 2**31 - 1])
    for m in (2**21, 2**22 - 1):
        for n in range(MAX_SHIFT + 1):
            codes = requantize(acc, torch.tensor(m), torch.tensor(n), -7, -(2**40), 2**40)
            assert codes.tolist() == [exact(a, m, n, -7, -(2**40), 2**40) for a in acc.tolist()], (m, n)


def test_halves_go_up() -> None:
    x = torch.tensor([-6, -5, -3, -2, -1, 0, 1, 2, 3, 5, 6])
    one = torch.tensor(1)
    assert rescale(x, one, one).tolist() == [-3, -2, -1, -1, 0, 0, 1, 1, 2, 3, 3]
    assert rescale(x, one, 0 * one).tolist() == x.tolist()


def test_one_multiplier_a_channel() -> None:
    m, n = dyadic(torch.tensor([0.5, 1.0, 3.0]))
    codes = requantize(torch.tensor([[10, 10, 10], [-3, -3, -3]]), m, n, torch.tensor([0, 1, 2]), -8, 31)
    assert codes.tolist() == [[5, 11, 31], [-1, -2, -7]]


def test_dyadic_by_hand() -> None:
    m, n = dyadic(torch.tensor([1.0, 0.75, LOWEST, HIGHEST, 1 - 2.0**-30]).double())
    assert m.tolist() == [2**21, 3 * 2**20, 2**21, 2**22 - 1, 2**21]
    assert n.tolist() == [21, 22, 52, 0, 21]  # the last multiplier's mantissa is rounded up to 1


@given(st.lists(st.floats(LOWEST, HIGHEST), min_size=1, max_size=50))
def test_dyadic_is_within_2_to_the_minus_22(multipliers: list[float]) -> None:
    m, n = dyadic(torch.tensor(multipliers, dtype=torch.float64))
    assert all(2**21 <= v < 2**22 for v in m.tolist())
    assert all(0 <= v <= MAX_SHIFT for v in n.tolist())
    for multiplier, mantissa, shift in zip(multipliers, m.tolist(), n.tolist(), strict=True):
        error = abs(Fraction(mantissa, 2**shift) / Fraction(multiplier) - 1)
        assert error <= Fraction(1, 2**22)


@given(
    st.integers(-(2**31), 2**31 - 1),
    st.floats(LOWEST, HIGHEST),
    st.integers(-(2**15), 2**16),
    st.sampled_from([(-128, 127), (0, 255), (-32768, 32767)]),
)
def test_requantize_equals_the_contract(acc: int, multiplier: float, zero: int, ends: tuple[int, int]) -> None:
    m, n = dyadic(torch.tensor(multiplier, dtype=torch.float64))
    code = requantize(torch.tensor(acc, dtype=torch.int32), m, n, zero, *ends)
    assert code.dtype == torch.int64
    assert code.item() == exact(acc, int(m), int(n), zero, *ends)


@pytest.mark.parametrize(
    "multiplier", [0.0, -1.0, float("nan"), float("inf"), -float("inf"), 2.0**22, 2.0**22 - 0.25, 2.0**-31 * 0.999]
)
def test_what_no_shift_expresses_is_refused(multiplier: float) -> None:
    with pytest.raises(NumericsError, match=r"cannot be expressed by integers\. Got .*\[2\^-31, 2\^22\)"):
        dyadic(torch.tensor([1.0, multiplier], dtype=torch.float64))
