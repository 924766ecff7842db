"""Packed integers: by hand, exhaustively where small, and against Python's own big integers."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vitquant.numerics.packing import (
    PIECE,
    Packing,
    multipliers,
    pack,
    pack_rows,
    packed_width,
    spread_multipliers,
    unpack,
    unpack_rows,
)


def test_by_hand() -> None:
    """Three bits each: 1 = 001, -1 = 111, 3 = 011 in a row are 0 1111 1001 and a bit, the first in the lowest bits."""
    packed = pack(np.array([[1, -1, 3], [0, -4, 2]]), bits=3)
    assert packed.tolist() == [[0b11111001, 0b0], [0b10100000, 0b0]]
    assert unpack(packed, 3, 3, signed=True).tolist() == [[1, -1, 3], [0, -4, 2]]
    assert unpack(packed, 3, 3, signed=False).tolist() == [[1, 7, 3], [0, 4, 2]]


def test_four_bits_are_two_codes_a_byte_the_first_one_lower() -> None:
    assert pack(np.array([[-8, 7, -1]]), bits=4).tolist() == [[0x78, 0x0F]]


@pytest.mark.parametrize("signed", [True, False])
@pytest.mark.parametrize("bits", [2, 3])
@pytest.mark.parametrize("columns", [1, 2, 3])
def test_every_row_there_is(columns: int, bits: int, signed: bool) -> None:
    low = -(2 ** (bits - 1)) if signed else 0
    rows = np.array(list(itertools.product(range(low, low + 2**bits), repeat=columns)), dtype=np.int8)
    packed = pack(rows, bits)
    assert packed.shape == (len(rows), packed_width(columns, bits))
    numbers = [int.from_bytes(row.tobytes(), "little") for row in packed]
    assert numbers == [sum(int(x) % 2**bits << (i * bits) for i, x in enumerate(row)) for row in rows]
    found = unpack(packed, bits, columns, signed=signed)
    assert found.dtype == np.int8
    assert np.array_equal(found, rows)


@given(st.integers(2, 7), st.integers(1, 70), st.booleans(), st.integers(0, 2**32 - 1))
def test_what_is_packed_is_unpacked(bits: int, columns: int, signed: bool, seed: int) -> None:
    low = -(2 ** (bits - 1)) if signed else 0
    codes = np.random.default_rng(seed).integers(low, low + 2**bits, (3, columns)).astype(np.int8)
    packed, groups = pack_rows(codes, Packing(bits, columns), signed=signed)
    assert groups is None
    assert np.array_equal(unpack_rows(packed, None, Packing(bits, columns), signed=signed), codes)


def test_more_than_one_piece() -> None:
    codes = np.random.default_rng(0).integers(-8, 8, (37, PIECE // 16 + 3)).astype(np.int8)
    assert np.array_equal(unpack(pack(codes, 4), 4, codes.shape[1], signed=True), codes)


def test_groups_by_hand() -> None:
    """Groups of two: (14, -7) = 7 (2, -1), where 7 fits, but so does 14 = 2 * 7, -7 not; (96, 112) = 16 (6, 7); 0."""
    codes = np.array([[14, -7, 96, 112, 0], [1, 2, 7, -8, -128]], dtype=np.int8)
    packing = Packing(bits=4, columns=5, group=2)
    assert multipliers(codes, packing).tolist() == [[7, 16, 1], [1, 1, 16]]
    packed, groups = pack_rows(codes, packing)
    assert unpack(packed, 4, 5, signed=True).tolist() == [[2, -1, 6, 7, 0], [1, 2, 7, -8, -8]]
    assert groups is not None
    assert groups.tolist() == [[0xF6, 0x0], [0x00, 0xF]]  # less 1
    assert np.array_equal(unpack_rows(packed, groups, packing), codes)


@pytest.mark.parametrize("bits", [2, 3])
def test_every_group_of_two_is_found_its_smallest_multiplier(bits: int) -> None:
    values = range(-(2 ** (bits - 1)), 2 ** (bits - 1))
    products = {(a * m, b * m) for a, b in itertools.product(values, repeat=2) for m in range(1, 17)}
    codes = np.array(sorted(products), dtype=np.int8)
    found = multipliers(codes, Packing(bits, columns=2, group=2))
    for pair, (multiplier,) in zip(sorted(products), found.tolist(), strict=True):
        possible = [m for m in range(1, 17) if all(x % m == 0 and x // m in values for x in pair)]
        assert multiplier == min(possible)
    others = sorted(set(itertools.product(range(-40, 41), repeat=2)) - products)
    for other in others[::97]:
        with pytest.raises(ValueError, match=f"not products of {bits} bits"):
            multipliers(np.array([other], dtype=np.int8), Packing(bits, columns=2, group=2))


@given(st.integers(2, 7), st.integers(1, 40), st.integers(1, 40), st.integers(0, 2**32 - 1))
def test_products_come_back(bits: int, columns: int, group: int, seed: int) -> None:
    packing, random = Packing(bits, columns, min(group, columns)), np.random.default_rng(seed)
    largest = 2 ** (bits - 1)
    codes = random.integers(-largest, largest, (3, columns))
    factors = random.integers(1, min(16, 127 // largest) + 1, (3, packing.groups))
    products = (codes * spread_multipliers(factors, packing)).astype(np.int8)
    packed, groups = pack_rows(products, packing)
    assert packed.nbytes == 3 * packed_width(columns, bits)
    assert np.array_equal(unpack_rows(packed, groups, packing), products)


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match="-1 to 8 do not fit into 4 bits"):
        pack_rows(np.array([[8, -1]], dtype=np.int8), Packing(4, 2))
    with pytest.raises(ValueError, match="-1 to 3 do not fit into 4 bits"):
        pack_rows(np.array([[3, -1]], dtype=np.int8), Packing(4, 2), signed=False)
    with pytest.raises(ValueError, match="bits beyond the end of a row are not 0"):
        unpack(np.array([[0x1F]], dtype=np.uint8), 4, 1, signed=True)
    for packed in (np.zeros((1, 3), np.uint8), np.zeros((1, 2), np.int8), np.zeros(2, np.uint8)):
        with pytest.raises(ValueError, match=r"instead of uint8 \[n, 2\]"):
            unpack(packed, 4, 3, signed=True)
    with pytest.raises(ValueError, match=r"products of 189 to 189 do not fit into 8 bits"):
        unpack_rows(np.array([[63]], np.uint8), np.array([[2]], np.uint8), Packing(7, 1, 1))
    with pytest.raises(ValueError, match="multipliers of 2 rows instead of 1"):
        unpack_rows(np.zeros((1, 1), np.uint8), np.zeros((2, 1), np.uint8), Packing(4, 1, 1))
