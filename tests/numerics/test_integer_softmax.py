"""Integer softmax: its three exponentials and its three forms."""

import math

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from vitquant.numerics.affine import QuantParams, fake_quantize
from vitquant.numerics.softmax import (
    FINE_SCALE,
    FINEST_SCALE,
    LOG2_MAX,
    exponential,
    exponential_table,
    log2_quantize,
    probabilities,
    row_codes,
)

APPROXIMATIONS = ["table", "ibert", "shiftmax"]
SCALES = [3.0, 0.37, 0.1, 0.02, 2.0**-8, 2.0**-10, 0.51 * 2.0**-10, 1e-5]
ERROR = {"table": 0.0, "ibert": 2.1e-3, "shiftmax": 0.046}
"""Largest absolute error. I-BERT states 1.9e-3 for its polynomial (section 3.4); I-ViT's is its linear 2^-f."""


def ibert_numpy(d: npt.NDArray[np.int64], scale: float) -> npt.NDArray[np.float64]:
    """I-BERT, algorithm 2, in its own terms: q <= 0, q = -z * q_ln2 + q_p, then 0.3585 (q_p + b)^2 + c >> z."""
    q, q_ln2 = -d, np.int64(math.floor(math.log(2) / scale))
    q_b, q_c = np.int64(math.floor(1.353 / scale)), np.int64(math.floor(0.344 / (0.3585 * scale * scale)))
    z = np.floor_divide(-q, q_ln2)
    q_p = q + z * q_ln2
    poly = (q_p + q_b) * (q_p + q_b) + q_c
    value: npt.NDArray[np.float64] = np.right_shift(poly, np.minimum(z, 62)) / (q_b * q_b + q_c)
    return value


def shiftmax_numpy(d: npt.NDArray[np.int64], scale: float) -> npt.NDArray[np.float64]:
    """I-ViT, algorithm 1: I + (I >> 1) - (I >> 4) on the magnitude, then 2^-q * (1 - r/2)."""
    i = d + (d >> 1) - (d >> 4)
    i0 = np.int64(round(1 / scale))
    q, r = i // i0, i % i0
    value: npt.NDArray[np.float64] = (((i0 - (r >> 1)) << 20) >> np.minimum(q, 62)) / (i0 << 20)
    return value


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("approximation", APPROXIMATIONS)
def test_error_of_the_exponential(approximation: str, scale: float) -> None:
    table = exponential_table(scale, 4096, approximation)
    expected = [math.exp(-scale * d) for d in range(4096)]
    assert table[0] == 1
    assert (table.diff() <= 0).all()
    assert (table >= 0).all()
    torch.testing.assert_close(
        table, torch.tensor(expected, dtype=torch.float64), rtol=1e-14, atol=ERROR[approximation]
    )


@pytest.mark.parametrize(("approximation", "below"), [("ibert", 1e-3), ("shiftmax", 0.03)])
def test_the_bounds_are_not_idle(approximation: str, below: float) -> None:
    """An approximation that quietly became the exact exponential would pass every upper bound."""
    error = exponential_table(2.0**-10, 4096, approximation) - torch.exp(-torch.arange(4096).double() / 1024)
    assert error.abs().max() > below


def test_integers_agree_with_numpy() -> None:
    d = np.arange(70_000, dtype=np.int64)
    for scale in (2.0**-10, 0.7 * 2.0**-10, 2.0**-13, 2.0**-20):
        for name, reference in (("ibert", ibert_numpy), ("shiftmax", shiftmax_numpy)):
            assert np.array_equal(exponential(torch.from_numpy(d), scale, name).numpy(), reference(d, scale)), name


def test_coarse_scales_are_refined_by_whole_shifts() -> None:
    d = np.arange(256, dtype=np.int64)
    for name, reference in (("ibert", ibert_numpy), ("shiftmax", shiftmax_numpy)):
        ours = exponential(torch.from_numpy(d), 0.37, name).numpy()
        assert np.array_equal(ours, reference(d << 9, 0.37 / 512)), name  # 0.37 / 512 < 2^-10 < 0.37 / 256


@pytest.mark.parametrize("scale", [1e-7, 1e-9, 1e-12, 1e-20, 1e-37])
@pytest.mark.parametrize("approximation", APPROXIMATIONS)
def test_scores_that_hardly_differ(approximation: str, scale: float) -> None:
    """A dead head has scores around nothing; the polynomial's constants must not outgrow 64 bits."""
    assert scale < 2 * FINEST_SCALE
    d = torch.arange(65536)
    torch.testing.assert_close(
        exponential(d, scale, approximation), torch.exp(-scale * d.double()), rtol=0, atol=scale * 65536 + 1e-6
    )


@pytest.mark.parametrize("approximation", APPROXIMATIONS)
def test_far_from_the_maximum_nothing_is_left(approximation: str) -> None:
    table = exponential(torch.tensor([100, 10_000, 65_535]), 0.9, approximation)
    assert (table < 1e-15).all()
    assert (table >= 0).all()


@given(
    st.lists(st.integers(-128, 127), min_size=1, max_size=60),
    st.floats(1e-3, 2.0),
    st.sampled_from(APPROXIMATIONS),
    st.integers(2, 16),
)
def test_a_row_sums_to_one(row: list[int], scale: float, approximation: str, bits: int) -> None:
    scores = torch.tensor(row)
    codes = row_codes(exponential(scores.max() - scores, scale, approximation), bits)
    assert codes.max() == 2**bits - 1, "the row's maximum takes the last code, so the sum is never 0"
    assert codes.min() >= 0
    assert torch.equal(codes, codes.round())
    p = codes / codes.sum()
    assert p.sum().item() == pytest.approx(1)
    order = scores.argsort()
    assert (p[order].diff() >= 0).all()


def test_row_codes_by_hand() -> None:
    codes = row_codes(torch.tensor([1.0, 0.5, 0.1, 0.001, 0.002]).double(), 8)
    assert codes.tolist() == [255, 128, 26, 0, 1]  # 127.5 goes to the even 128


def test_row_against_softmax() -> None:
    """8-bit codes of a row: half a code of 255, before and after dividing by the sum."""
    scores = torch.randint(0, 256, (50, 197), generator=torch.Generator().manual_seed(0))
    e = exponential(scores.amax(-1, keepdim=True) - scores, 0.05, "table")
    codes = row_codes(e, 8)
    exact = torch.softmax(scores.double() * 0.05, -1)
    error = (codes / codes.sum(-1, keepdim=True) - exact).abs()
    share = e.sum(-1, keepdim=True)
    assert (error <= (0.5 / 255 * (1 + exact * 197)) / (share - 197 * 0.5 / 255)).all()


@given(st.lists(st.integers(0, 255), min_size=1, max_size=300), st.sampled_from([0.01, 0.05, 0.3]))
def test_probabilities_are_within_their_15_bits(row: list[int], scale: float) -> None:
    scores = torch.tensor(row)
    p = probabilities(exponential(scores.max() - scores, scale, "table"))
    exact = torch.softmax(scores.double() * scale, -1)
    assert p.sum().item() == pytest.approx(1)
    assert (p - exact).abs().max() <= 2**-15 * len(row) / max(1, len(row) - 1) * 2


def test_uniform_of_probabilities() -> None:
    grid = QuantParams(torch.tensor(1 / 255).double(), torch.tensor(0.0).double(), 0, 255)
    p = probabilities(torch.tensor([1.0, 1.0, 1.0, 1.0]).double())
    assert (fake_quantize(p, grid) * 255).round().tolist() == [64, 64, 64, 64]


def test_log2_leaves_powers_as_they_are() -> None:
    powers = torch.exp2(-torch.arange(LOG2_MAX + 1).double())
    assert torch.equal(log2_quantize(powers, 4), powers)
    assert torch.equal(log2_quantize(powers, 8), powers)
    assert log2_quantize(powers, 3).tolist() == [*powers[:8].tolist(), *[0.0] * 8]
    assert log2_quantize(torch.tensor([0.0, 2.0**-16, 2.0**-17]), 8).tolist() == [0, 0, 0]


def test_log2_goes_to_the_nearest_exponent() -> None:
    for k in range(LOG2_MAX):
        tie = 2.0 ** -(k + 0.5)
        just_above, just_below = torch.tensor([tie * 1.001, tie * 0.999]).double()
        assert log2_quantize(just_above, 4) == 2.0**-k
        assert log2_quantize(just_below, 4) == 2.0 ** -(k + 1)
    assert log2_quantize(torch.tensor(2.0**-15.4), 4) == 2.0**-15
    assert log2_quantize(torch.tensor(2.0**-15.6), 4) == 0


def test_what_is_no_grid_of_its_own_enters_finely() -> None:
    assert exponential(torch.tensor([1024]), FINE_SCALE, "table").item() == pytest.approx(math.exp(-1))
