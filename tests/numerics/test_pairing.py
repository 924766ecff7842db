"""Scales of Q and K whose product leaves the sum."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from vitquant.numerics.pairing import pair_scales

positive = st.floats(1e-6, 1e3)
scales = st.one_of(st.just(0.0), positive)


def heads(heads: int, width: int) -> st.SearchStrategy[tuple[list[float], list[float], int]]:
    one = st.lists(scales, min_size=heads * width, max_size=heads * width)
    return st.tuples(one, one, st.just(heads))


cases = st.tuples(st.integers(1, 4), st.integers(1, 6)).flatmap(lambda shape: heads(*shape))


def test_by_hand() -> None:
    q, k = pair_scales(torch.tensor([4.0, 1.0, 1.0, 1.0]), torch.tensor([1.0, 1.0, 9.0, 1.0]), num_heads=2)
    assert q.tolist() == [4, 2, 1, 3]  # heads 1: product 4, both of the quiet channel widened by 2; head 2: product 9
    assert k.tolist() == [1, 2, 9, 3]


def test_what_is_paired_already_stays() -> None:
    q = torch.tensor([1.0, 2.0, 4.0, 0.5]).double()
    paired_q, paired_k = pair_scales(q, 8 / q, num_heads=1)
    torch.testing.assert_close(paired_q, q)
    torch.testing.assert_close(paired_k, 8 / q)


def test_channels_without_range() -> None:
    q, k = torch.tensor([0.0, 3.0, 0.0, 2.0]).double(), torch.tensor([0.0, 0.0, 5.0, 4.0]).double()
    paired_q, paired_k = pair_scales(q, k, num_heads=1)
    torch.testing.assert_close(paired_q * paired_k, torch.full((4,), 8.0).double())
    torch.testing.assert_close(paired_q, torch.tensor([8**0.5, 3, 8 / 5, 2]).double())  # each tight where it can be


def test_a_head_of_zeros_gets_a_product_of_one_and_disturbs_no_other() -> None:
    q, k = pair_scales(torch.tensor([0.0, 0.0, 2.0, 2.0]), torch.tensor([0.0, 0.0, 3.0, 1.5]), num_heads=2)
    torch.testing.assert_close(q * k, torch.tensor([1.0, 1, 6, 6]))


@given(cases, st.booleans())
def test_one_product_a_head_and_nothing_tighter(case: tuple[list[float], list[float], int], power_of_two: bool) -> None:
    q, k, num_heads = torch.tensor(case[0]).double(), torch.tensor(case[1]).double(), case[2]
    paired_q, paired_k = pair_scales(q, k, num_heads, power_of_two)
    assert paired_q.shape == paired_k.shape == q.shape
    assert (paired_q > 0).all()
    assert (paired_k > 0).all()
    product = (paired_q * paired_k).reshape(num_heads, -1)
    torch.testing.assert_close(product, product[:, :1].expand_as(product), rtol=1e-12, atol=0)
    assert (paired_q >= q * (1 - 1e-12)).all()
    assert (paired_k >= k * (1 - 1e-12)).all()
    if power_of_two:
        for scale in (paired_q, paired_k):
            assert (torch.frexp(scale).mantissa == 0.5).all()


@given(cases)
def test_the_product_is_the_smallest_that_clips_nothing(case: tuple[list[float], list[float], int]) -> None:
    q, k, num_heads = torch.tensor(case[0]).double(), torch.tensor(case[1]).double(), case[2]
    paired_q, paired_k = pair_scales(q, k, num_heads)
    needed = (q * k).reshape(num_heads, -1).amax(1)
    product = (paired_q * paired_k).reshape(num_heads, -1)[:, 0]
    torch.testing.assert_close(product, torch.where(needed > 0, needed, 1.0), rtol=1e-12, atol=0)
