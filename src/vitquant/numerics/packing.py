"""Integers of fewer than 8 bits packed into bytes, NumPy only; defined in ``docs/program-format.md``.

Rows are packed one by one, each into whole bytes: element ``i`` of a row is in its bits ``i * bits`` and following, the
least significant first, and bit ``k`` of the row is bit ``k mod 8`` of its byte ``k div 8``. Weights with groups are
products of an integer of ``bits`` bits and a multiplier of the group, which are packed separately.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

Array: TypeAlias = NDArray[Any]

MAX_MULTIPLIER = 16
"""Multipliers are 1 to 16; 4 bits hold them less 1."""

MULTIPLIER_BITS = 4

PIECE = 2**13
"""Elements that are packed or unpacked at once: what is needed in between takes several bytes per element."""


@dataclass(frozen=True)
class Packing:
    """How rows of ``columns`` integers are packed: in ``bits`` bits each, ``group`` neighbours per multiplier.

    A ``group`` of 0: no multipliers. The last group of a row may be shorter.
    """

    bits: int
    columns: int
    group: int = 0

    @property
    def groups(self) -> int:
        """Number of multipliers of a row."""
        return -(-self.columns // self.group) if self.group else 0

    @property
    def row_bytes(self) -> int:
        """Bytes of a packed row, with its multipliers."""
        return packed_width(self.columns, self.bits) + packed_width(self.groups, MULTIPLIER_BITS)


def packed_width(columns: int, bits: int) -> int:
    """Bytes of a packed row."""
    return (columns * bits + 7) // 8


def pack(codes: Array, bits: int) -> Array:
    """Integers ``[rows, columns]``, of which the lower ``bits`` are kept, to uint8 ``[rows, bytes]``.

    >>> pack(np.array([[1, -1, 2]]), bits=4)
    array([[241,   2]], dtype=uint8)
    """
    packed = np.empty((len(codes), packed_width(codes.shape[1], bits)), dtype=np.uint8)
    for rows in pieces(codes.shape):
        spread = codes[rows].astype(np.uint8)[..., None] >> np.arange(bits, dtype=np.uint8) & 1
        packed[rows] = np.packbits(spread.reshape(len(spread), -1), axis=1, bitorder="little")
    return packed


def unpack(packed: Array, bits: int, columns: int, *, signed: bool) -> Array:
    """The inverse, to int8 ``[rows, columns]``; ``signed``: the highest bit of an element is its sign.

    >>> unpack(np.array([[241, 2]], dtype=np.uint8), bits=4, columns=3, signed=True)
    array([[ 1, -1,  2]], dtype=int8)

    Raises:
        ValueError: the rows are of another width, or bits beyond the last element are not 0.
    """
    if packed.dtype != np.uint8 or packed.ndim != 2 or packed.shape[1] != packed_width(columns, bits):
        raise ValueError(f"{packed.dtype} {list(packed.shape)} instead of uint8 [n, {packed_width(columns, bits)}]")
    beyond = columns * bits % 8
    if beyond and (packed[:, -1] >> beyond).any():
        raise ValueError("bits beyond the end of a row are not 0")
    codes = np.empty((len(packed), columns), dtype=np.int8)
    sign = 2 ** (bits - 1) if signed else 0
    for rows in pieces(codes.shape):
        spread = np.unpackbits(packed[rows], axis=1, count=columns * bits, bitorder="little")
        spread = spread.reshape(-1, columns, bits)
        value: Array = spread[..., 0]
        for bit in range(1, bits):
            value = value | spread[..., bit] << bit
        codes[rows] = (value ^ sign).astype(np.int8) - np.int8(sign)
    return codes


def pieces(shape: tuple[int, int]) -> list[slice]:
    """Rows in pieces of a bounded number of elements."""
    step = max(1, PIECE // max(1, shape[1]))
    return [slice(start, start + step) for start in range(0, shape[0], step)]


def multipliers(codes: Array, packing: Packing) -> Array:
    """The smallest multiplier of each group of products, uint8 ``[rows, groups]``.

    ``codes`` are int8 ``[rows, columns]``. A multiplier divides all integers of its group, and what is left fits into
    ``bits`` bits, from ``-2^(bits-1)`` on.

    Raises:
        ValueError: there is no such multiplier for some group.
    """
    low, high = -(2 ** (packing.bits - 1)), 2 ** (packing.bits - 1) - 1
    starts = range(0, packing.columns, packing.group)
    found = np.zeros((len(codes), packing.groups), dtype=np.uint8)
    for index, start in enumerate(starts):
        part = codes[:, start : start + packing.group].astype(np.int16)
        smallest, largest, common = part.min(1), part.max(1), np.gcd.reduce(part, axis=1)
        for multiplier in range(MAX_MULTIPLIER, 0, -1):
            fits = (common % multiplier == 0) & (smallest >= low * multiplier) & (largest <= high * multiplier)
            found[fits, index] = multiplier
    if not found.all():
        raise ValueError(f"not products of {packing.bits} bits and multipliers of groups of {packing.group}")
    return found


def spread_multipliers(given: Array, packing: Packing) -> Array:
    """One multiplier per element, ``[rows, columns]``."""
    spread: Array = np.repeat(given, packing.group, axis=1)[:, : packing.columns]
    return spread


def pack_rows(codes: Array, packing: Packing, *, signed: bool = True) -> tuple[Array, Array | None]:
    """Integers ``[rows, columns]`` and the multipliers of their groups, if there are groups, both packed.

    Raises:
        ValueError: they are not what ``packing`` can hold.
    """
    low, high = (-(2 ** (packing.bits - 1)), 2 ** (packing.bits - 1) - 1) if signed else (0, 2**packing.bits - 1)
    found = None
    if packing.group:
        found = multipliers(codes, packing)
        codes = codes // spread_multipliers(found, packing).view(np.int8)
    if codes.size and (codes.min() < low or codes.max() > high):
        raise ValueError(f"{codes.min()} to {codes.max()} do not fit into {packing.bits} bits")
    return pack(codes, packing.bits), None if found is None else pack(found - 1, MULTIPLIER_BITS)


def unpack_rows(packed: Array, groups: Array | None, packing: Packing, *, signed: bool = True) -> Array:
    """The inverse: int8 ``[rows, columns]``.

    Raises:
        ValueError: a tensor is of another shape, or a product does not fit into 8 bits.
    """
    codes = unpack(packed, packing.bits, packing.columns, signed=signed)
    if groups is None:
        return codes
    found = unpack(groups, MULTIPLIER_BITS, packing.groups, signed=False) + 1
    if len(found) != len(codes):
        raise ValueError(f"multipliers of {len(found)} rows instead of {len(codes)}")
    for rows in pieces(codes.shape):
        products = codes[rows].astype(np.int16) * spread_multipliers(found[rows], packing)
        if products.size and (products.min() < -128 or products.max() > 127):
            raise ValueError(f"products of {products.min()} to {products.max()} do not fit into 8 bits")
        codes[rows] = products
    return codes
