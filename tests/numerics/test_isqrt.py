"""Integer roots against Python's own."""

import math
import random

import torch

from vitquant.numerics.isqrt import bit_length, isqrt


def check(values: list[int]) -> None:
    x = torch.tensor(values, dtype=torch.int64)
    assert isqrt(x).tolist() == [math.isqrt(v) for v in values]
    assert bit_length(x).tolist() == [v.bit_length() for v in values]


def test_all_of_16_bits() -> None:
    check(list(range(2**16 + 2)))


def test_random_numbers_of_every_width() -> None:
    rng = random.Random(0)
    check([rng.getrandbits(bits) for bits in range(1, 63) for _ in range(200)])


def test_around_squares_and_powers() -> None:
    rng = random.Random(1)
    roots = [rng.randrange(1, 2**31) for _ in range(3000)] + [2**31 - 1, 2**31, 2**16, 3_037_000_499 // 2]
    near = [r * r + delta for r in roots for delta in (-1, 0, 1)]
    check([v for v in near if v <= 2**62])
    check([2**k + delta for k in range(1, 62) for delta in (-1, 0, 1)] + [2**62, 2**62 - 1])


def test_each_value_on_its_own_and_none_at_all() -> None:
    for value in (0, 1, 2, 3, 4, 2**62):
        assert isqrt(torch.tensor(value)).item() == math.isqrt(value)
    assert isqrt(torch.zeros(0, dtype=torch.int64)).tolist() == []
