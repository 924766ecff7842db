"""Shares, powers of two and quotients: the integers of a row of softmax against rational numbers."""

from __future__ import annotations

import itertools
from fractions import Fraction

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from vitquant.numerics.limits import INT32_MAX, LOG2_ROW_LIMIT
from vitquant.numerics.mean import rounded_mean
from vitquant.numerics.softmax import (
    LOG2_MAX,
    diffused,
    divide,
    division_bits,
    exponential_table,
    log2_weights,
    row_codes,
    shares,
)

TOP = 2**15 - 1

exponentials = st.lists(st.integers(0, TOP) | st.sampled_from([0, 1, 2, TOP]), min_size=1, max_size=300).filter(any)
"""15-bit exponentials of a row, not all of them 0."""


def nearest_exponent(e: int, total: int) -> int:
    """``round(log2(total / e))`` by whole numbers: ``2^(q - 1/2) < total / e < 2^(q + 1/2)``, which are never equal."""
    q = 0
    while e * e << (2 * q + 1) < total * total:
        q += 1
    assert q == 0 or e * e << (2 * q - 1) < total * total < e * e << (2 * q + 1)
    return q


@given(exponentials, st.integers(0, LOG2_MAX))
def test_powers_of_two(row: list[int], last: int) -> None:
    weights = log2_weights(torch.tensor(row, dtype=torch.int32), last).tolist()
    exponents = [nearest_exponent(e, sum(row)) if e else last + 1 for e in row]
    assert weights == [2 ** (15 - q) if q <= last else 0 for q in exponents]
    assert sum(weights) <= LOG2_ROW_LIMIT


def test_powers_of_two_for_every_exponential() -> None:
    """Each of the 15-bit exponentials beside a largest one, and beside many."""
    e = torch.arange(1, TOP + 1)
    for others in (1, 3, 196):
        rows = torch.cat([e[:, None], torch.full((len(e), others), TOP)], dim=1)
        found = log2_weights(rows, LOG2_MAX)[:, 0].tolist()
        exponents = [nearest_exponent(v, v + others * TOP) for v in e.tolist()]
        assert found == [2 ** (15 - q) if q <= LOG2_MAX else 0 for q in exponents]


def test_a_row_of_powers_can_reach_its_limit_almost() -> None:
    """Ratios just below 2^(k + 1/2): each weight is sqrt(2) times too large. Few rows come near; none goes beyond."""
    worst = 0
    for count in range(1, 400):
        worst = max(worst, int(log2_weights(torch.full((1, count), TOP), LOG2_MAX).sum()))
    assert 45_000 < worst <= LOG2_ROW_LIMIT


@given(st.lists(st.integers(0, 255 << 8) | st.sampled_from([0, 127, 128, 255 << 8]), min_size=1, max_size=300))
def test_diffused_codes(row: list[int]) -> None:
    """Every run of neighbouring codes sums to what its exponentials do, to less than one; no code is out of range."""
    codes = diffused(torch.tensor(row, dtype=torch.int32), 255 << 8).tolist()
    assert all(e // 256 <= code <= -(-e // 256) <= 255 for e, code in zip(row, codes, strict=True))
    assert sum(codes) == (sum(row) + 128) // 256
    ends = [0, *(2 * total // 256 + 1 >> 1 for total in itertools.accumulate(row))]
    assert codes == [b - a for a, b in itertools.pairwise(ends)]
    for first in range(0, len(row), 7):
        assert abs(sum(codes[first:]) - Fraction(sum(row[first:]), 256)) < 1


def test_diffused_codes_by_hand() -> None:
    row = torch.tensor([[127, 1, 128, 255, 1, 65280, 0]], dtype=torch.int32)
    assert diffused(row, 65280).tolist() == [[0, 1, 0, 1, 0, 255, 0]]


def test_diffused_codes_of_every_pair() -> None:
    """One exponential after another of every fraction: 65,536 pairs around each multiple that matters."""
    first, second = torch.cartesian_prod(torch.arange(256), torch.arange(256) + 65025).int().unbind(1)
    codes = diffused(torch.stack([first, second], 1), 65280)
    assert torch.equal(codes[:, 0], (first >= 128).int())
    assert torch.equal(codes.sum(1), (first + second + 128) // 256)


def test_diffused_codes_of_rows_beyond_32_bits() -> None:
    """Sums modulo 2^16 tell the codes, so a row may have any length."""
    row = torch.randint(0, 65281, (1, 40_000), generator=torch.Generator().manual_seed(0), dtype=torch.int32)
    row[0, :36_000] = 65280
    assert int(row.sum()) > INT32_MAX
    after = ((row.long().cumsum(1) + 128) % 65536) >> 8
    before = torch.cat([torch.zeros(1, 1, dtype=torch.int64), after[:, :-1]], 1)
    assert torch.equal(diffused(row, 65280).long(), (after - before) % 256)


@given(exponentials)
def test_shares_are_short_by_less_than_two_units(row: list[int]) -> None:
    """``e / sum - 2^-30 - 2^-35 < share <= e / sum``."""
    found = shares(torch.tensor(row, dtype=torch.int32)).tolist()
    for e, share in zip(row, found, strict=True):
        error = Fraction(share, 2**30) - Fraction(e, sum(row))
        assert -Fraction(1, 2**30) - Fraction(1, 2**35) < error <= 0


@given(st.data(), st.integers(1, 2**17))
def test_quotients(data: st.DataObject, limit: int) -> None:
    """The bound of docs/numerics.md, for every accumulator that fits 32 bits."""
    total = data.draw(st.integers(1, (2**31 - 1) // limit))
    acc = data.draw(st.integers(-total * limit, total * limit) | st.sampled_from([total * limit, -total * limit]))
    reciprocal, fraction = division_bits(limit)
    y = int(divide(torch.tensor([acc], dtype=torch.int32), torch.tensor([total]), reciprocal, fraction))
    assert abs(y) <= limit << fraction < 2**30
    error = Fraction(y, 2**fraction) - Fraction(acc, total)
    short = Fraction(abs(acc), 2**reciprocal)
    assert short < Fraction(2) ** (limit.bit_length() - 21)
    if acc >= 0:
        assert -short - Fraction(1, 2**fraction) < error <= 0
    else:
        assert -Fraction(1, 2**fraction) < error <= short


def test_quotients_by_hand() -> None:
    acc = torch.tensor([0, 1, 255, 10, -10], dtype=torch.int32)
    assert divide(acc, torch.tensor([1, 1, 255, 4, 4]), 44, 22).tolist() == [0, 2**22, 2**22 - 1, 10 << 20, -10 << 20]


@given(st.lists(st.integers(0, 255), min_size=1, max_size=300), st.floats(1e-3, 1.0), st.integers(2, 16))
def test_the_probability_of_a_code(row: list[int], scale: float, bits: int) -> None:
    """``|p / sum(p) - probability| <= (1 + N probability) / (2 sum(p))``, as docs/numerics.md derives."""
    table = exponential_table(scale, 256, "table")
    codes = row_codes(table, bits)
    distance = max(row) - torch.tensor(row)
    e, p = table[distance], codes[distance]
    probability = e / e.sum()
    bound = (1 + len(row) * probability) / (2 * p.sum())
    assert ((p / p.sum() - probability).abs() <= bound * (1 + 1e-9) + 1e-15).all()
    assert p.sum() >= 2**bits - 1


@given(st.floats(1e-4, 3.0), st.integers(2, 16))
def test_exponentials_are_within_half_a_unit(scale: float, bits: int) -> None:
    codes = row_codes(exponential_table(scale, 1024, "table"), bits)
    exact = torch.exp(-scale * torch.arange(1024).double()) * (2**bits - 1)
    assert (codes - exact).abs().max() <= 0.5 + 1e-9


def check_means(codes: Tensor) -> None:
    expected = [
        [floor_of_half_up(Fraction(sum(column), len(column))) for column in zip(*image, strict=True)]
        for image in codes.tolist()
    ]
    assert rounded_mean(codes).tolist() == expected


def floor_of_half_up(x: Fraction) -> int:
    return (x + Fraction(1, 2)).__floor__()


def test_means() -> None:
    for count in range(1, 7):
        grid = torch.cartesian_prod(*[torch.arange(-3, 4)] * min(count, 4)).reshape(-1, min(count, 4))
        check_means(grid.t()[None].to(torch.int8))
    generator = torch.Generator().manual_seed(0)
    for count in (1, 2, 3, 197, 256):
        check_means(torch.randint(-(2**15), 2**15, (2, count, 50), generator=generator).to(torch.int16))
    check_means(torch.full((1, 3, 1), 2**30, dtype=torch.int32))
    check_means(torch.tensor([[[1], [0]], [[-1], [0]], [[-3], [0]]]))  # 1/2, -1/2 and -3/2 go up
