"""SQNR against cases computed by hand."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from vitquant.numerics.sqnr import SqnrMeter, decibel


def test_sqnr_by_hand() -> None:
    meter = SqnrMeter()
    meter.add(torch.tensor([3.0, 4.0]), torch.tensor([3.0, 3.0]))
    assert meter.db == pytest.approx(10 * math.log10(25 / 1))
    meter.add(torch.tensor([5.0]), torch.tensor([8.0]))  # signal 50, noise 10
    assert meter.db == pytest.approx(10 * math.log10(5))


@pytest.mark.parametrize(
    ("signal", "noise", "db"), [(1, 0.1, 10), (100, 1, 20), (1, 1, 0), (1, 10, -10), (1, 0, 300), (0, 0, 0), (0, 1, 0)]
)
def test_decibel(signal: float, noise: float, db: float) -> None:
    assert decibel(signal, noise) == pytest.approx(db)


@given(st.lists(st.lists(st.floats(-1e3, 1e3, width=32), min_size=1, max_size=8), min_size=1, max_size=5))
def test_sqnr_does_not_depend_on_the_batches(batches: list[list[float]]) -> None:
    apart, together = SqnrMeter(), SqnrMeter()
    tensors = [torch.tensor(batch) for batch in batches]
    for x in tensors:
        apart.add(x, x.round())
    together.add(torch.cat(tensors), torch.cat(tensors).round())
    assert apart.db == pytest.approx(together.db)
