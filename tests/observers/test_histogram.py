import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from vitquant.observers.histogram import (
    COUNTED_PER_IMAGE,
    Histogram,
    coarsen,
    power_of_two,
    smallest_exponent,
    thinning_stride,
)

CPU = torch.device("cpu")


def add(histogram: Histogram, x: np.ndarray) -> None:
    values = torch.from_numpy(x)
    histogram.reach(values.double().abs().amax((0, 2)))
    histogram.count(values)


def counted(x: np.ndarray, bins: int) -> Histogram:
    histogram = Histogram(x.shape[1], bins, CPU)
    add(histogram, x)
    return histogram


def same(a: Histogram, b: Histogram) -> bool:
    return torch.equal(a.counts, b.counts) and torch.equal(a.exponent, b.exponent) and a.counted == b.counted


def test_hand_computed() -> None:
    h = counted(np.array([0.0, 0.25, -0.25, 0.9, -1.0, 1.9]).reshape(6, 1, 1), 8)
    assert h.width.item() == 0.5  # four bins for [0, 2)
    assert h.counts.tolist() == [[0, 0, 1, 1, 2, 1, 0, 1]]  # -1 | -0.25 | 0, 0.25 | 0.9 | 1.9


def test_power_of_two_is_exact() -> None:
    exponents = torch.arange(-1022, 1024)
    assert power_of_two(exponents).tolist() == [2.0 ** int(e) for e in exponents]


@settings(max_examples=100)
@given(peak=st.floats(min_value=1e-280, max_value=1e300), bins=st.sampled_from([64, 66, 100, 2048]))
def test_the_smallest_exponent_fits_and_one_less_does_not(peak: float, bins: int) -> None:
    exponent = smallest_exponent(torch.tensor([peak], dtype=torch.float64), bins)
    assert peak / 2.0 ** exponent.item() < bins / 2
    assert peak / 2.0 ** (exponent.item() - 1) >= bins / 2 * (1 - 1e-15)


@given(st.lists(st.integers(0, 9), min_size=12, max_size=12), st.integers(0, 70), st.integers(0, 70))
def test_coarsening_twice_is_coarsening_by_both_and_loses_nothing(row: list[int], first: int, second: int) -> None:
    counts = torch.tensor([row], dtype=torch.int32)
    once = coarsen(counts, torch.tensor([first + second]))
    assert torch.equal(coarsen(coarsen(counts, torch.tensor([first])), torch.tensor([second])), once)
    assert once.sum() == counts.sum()


def test_coarsening_by_hand() -> None:
    assert coarsen(torch.tensor([[1, 2, 3, 4, 5, 6]]), torch.tensor([1])).tolist() == [[0, 1, 5, 9, 6, 0]]


FLOATS = st.floats(width=32, allow_nan=False, allow_infinity=False)


@settings(max_examples=80)
@given(
    x=hnp.arrays(np.float32, st.tuples(st.integers(2, 12), st.integers(1, 3), st.integers(1, 3)), elements=FLOATS),
    data=st.data(),
    bins=st.sampled_from([64, 66, 130]),
)
def test_neither_order_nor_batches_nor_merging_changes_it(x: np.ndarray, data: st.DataObject, bins: int) -> None:
    whole = counted(x, bins)
    order = data.draw(st.permutations(range(len(x))))
    cut = data.draw(st.integers(1, len(x) - 1))
    parts = x[order[:cut]], x[order[cut:]]
    streamed, merged, later = Histogram(x.shape[1], bins, CPU), counted(parts[0], bins), counted(parts[1], bins)
    for part in parts:
        add(streamed, part)
    before = later.counts.clone()
    merged.merge(later)
    assert same(streamed, whole)
    assert same(merged, whole)
    assert torch.equal(later.counts, before)
    assert whole.counts.sum(dim=1).tolist() == [x.shape[0] * x.shape[2]] * x.shape[1]


@given(hnp.arrays(np.float32, (20, 2, 1), elements=st.floats(-100, 100, width=32)))
def test_equals_numpy(x: np.ndarray) -> None:
    h = counted(x, 64)
    for c in range(2):
        edges = np.arange(-32, 33) * h.width[c].item()
        expected, _ = np.histogram(x[:, c].astype(np.float64), edges)
        assert h.counts[c].tolist() == expected.tolist()


@pytest.mark.parametrize("memory", [(0, 1, 2), (2, 1, 0), (1, 2, 0), (1, 0, 2)])
def test_the_order_in_memory_changes_nothing(memory: tuple[int, ...]) -> None:
    x = np.random.default_rng(0).normal(size=(7, 3, 5))
    as_stored = np.ascontiguousarray(x.transpose(memory)).transpose(np.argsort(memory))
    assert as_stored.strides != x.strides or memory == (0, 1, 2)
    assert same(counted(as_stored, 64), counted(x, 64))


def test_zeros_take_the_grid_of_what_comes_later() -> None:
    h = counted(np.zeros((5, 1, 1)), 64)
    add(h, np.full((2, 1, 1), 3.0))
    assert h.counts.nonzero()[:, 1].tolist() == [32, 32 + int(3.0 / h.width.item())]
    assert h.counts.sum() == 7


def test_counts_widen_before_they_overflow() -> None:
    h = counted(np.ones((2**14, 2, 1)), 64)
    assert h.counts.dtype == torch.int16
    for times, dtype in ((2, torch.int32), (4, torch.int32), (2**16, torch.int32), (2**17, torch.int64)):
        while h.counted < times * 2**14:
            other = Histogram(2, 64, CPU)
            other.merge(h)
            h.merge(other)
        assert h.counts.max() == h.counted == times * 2**14
        assert h.counts.sum() == 2 * h.counted
        assert h.counts.dtype == dtype


def test_holding_adds_what_was_not_counted_and_nothing_else() -> None:
    h = counted(np.array([[[0.5]], [[0.5]], [[0.99]]]), 64)
    held = h.holding(torch.tensor([[[0.5]], [[-0.75]]]))
    assert (held - h.counts).nonzero().tolist() == [[0, 32 - 24]]
    assert held.sum() == h.counts.sum() + 1 == 4


@pytest.mark.parametrize(
    ("rows", "row", "stride"),
    [
        (257, 384, 25),  # 24.09 and up, coprime to 257
        (257, 1536, 97),
        (257 * 257, 6, 97),  # scores by head: positions of [257, 257], 6 heads
        (197, 192, 10),
        (196, 192, 11),  # 9.2 and up, coprime to 196
        (384, 1, 1),  # one row of a weight
        (5, 4, 1),
        (5, 10**7, 4),  # at least one row of every image, not always the same
        (1, 10**7, 1),
    ],
)
def test_stride(rows: int, row: int, stride: int) -> None:
    assert thinning_stride(rows, rows * row) == stride
    assert len({i % rows for i in range(0, rows * stride, stride)}) == rows  # every position gets its turn
    if rows * row / stride > COUNTED_PER_IMAGE:
        assert stride == max(1, rows - 1)
