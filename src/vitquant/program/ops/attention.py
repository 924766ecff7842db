"""The operations of attention.

With ``windows`` above 1, queries and keys are as many equal runs of neighbouring tokens, and a query meets the keys of
its own run only.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import numpy as np

from vitquant.numerics.limits import ADDEND_LIMIT, DIFFUSION_BITS, EXPONENTIAL_BITS, INT32_MAX, LOG2_ROW_LIMIT
from vitquant.program.checks import KnownValues, check_operand, expect_range, refuse, require_int32
from vitquant.program.ops.operation import Flag, Key, Multiplier, Operand, Operation, Shift, Sizes, TensorField
from vitquant.program.values import Array, Value

EXPONENTIAL_MAX = 2**EXPONENTIAL_BITS - 1


@dataclass(frozen=True)
class Scores(Operation):
    """``clamp(zero + table + rescale((q - zero_q) (k - zero_k)^T))`` for each head.

    ``table`` is what is added for a head (or run of heads), query and key, at the scale of the scores. With fewer rows
    than queries it begins anew after its last; with one column it is the same for all keys.
    """

    kind = "scores"
    makes = "H N M/windows"
    q: Annotated[str, Operand("N C")]
    k: Annotated[str, Operand("M C")]
    windows: Annotated[int, Key(1)]
    table: Annotated[Array, TensorField("T R S", ("int8", "int16", "int32"))]
    multiplier: Multiplier
    shift: Shift

    @property
    def adds_nothing(self) -> bool:
        """Whether the table holds nothing but 0."""
        return not self.table.any()

    def check(self, sizes: Sizes, known: KnownValues) -> None:
        name, q, k = self.out.name, known[self.q], known[self.k]
        heads, keys = sizes["H"], self.out.shape[2]
        if sizes["C"] % heads or sizes["N"] % self.windows:
            refuse(name, "Q and K do not fit", got=f"{q.shape}, {k.shape}, {heads} heads, {self.windows} windows")
        if heads % sizes["T"] or sizes["N"] % sizes["R"] or sizes["S"] not in (1, keys):
            refuse(f"{name}/table", "it does not fit the scores", got=self.table.shape, expected=str(self.out.shape))
        if int(self.table.min()) < -ADDEND_LIMIT or int(self.table.max()) > ADDEND_LIMIT:
            refuse(f"{name}/table", "out of range", expected=f"{-ADDEND_LIMIT} .. {ADDEND_LIMIT}")
        check_operand(name, 0, max(q.centred_limit, k.centred_limit))
        require_int32(name, sizes["C"] // heads * q.centred_limit * k.centred_limit)


@dataclass(frozen=True)
class SoftmaxRow(Operation):
    """``table[row maximum - x]``: exponentials whose share in their row's sum is the probability.

    ``table`` has a row for each of ``T`` runs of neighbouring heads, and an element for each distance.
    """

    kind = "softmax_row"
    makes = "H N M"
    x: Annotated[str, Operand("H N M")]
    table: Annotated[Array, TensorField("T L", ("int32",))]

    def check(self, sizes: Sizes, known: KnownValues) -> None:
        check_exponentials(self.out, self.table, sizes, min(self.out.high, 2**16))
        expect_range(self.out, 0, int(self.table.max()))
        known.rows_above_zero.add(self.out.name)  # the maximum of a row is looked up at distance 0


@dataclass(frozen=True)
class SoftmaxDiffusion(Operation):
    """Differences of the rounded running sums of each row: ``((P[m] + 128) >> 8) - ((P[m-1] + 128) >> 8)``.

    ``P[m]`` is the sum of ``table[row maximum - x]`` up to token ``m``: exponentials with 8 fractional bits.
    """

    kind = "softmax_diffusion"
    since = 2
    makes = "H N M"
    x: Annotated[str, Operand("H N M")]
    table: Annotated[Array, TensorField("T L", ("int32",))]

    def check(self, sizes: Sizes, known: KnownValues) -> None:
        check_exponentials(self.out, self.table, sizes, min(self.out.high, 2**16), DIFFUSION_BITS)
        expect_range(self.out, 0, -(-int(self.table.max()) >> DIFFUSION_BITS))
        known.rows_above_zero.add(self.out.name)


@dataclass(frozen=True)
class SoftmaxUniform(Operation):
    """15-bit exponentials by ``table``, their share in the row's sum requantized to scale and zero point."""

    kind = "softmax_uniform"
    makes = "H N M"
    x: Annotated[str, Operand("H N M")]
    table: Annotated[Array, TensorField("T L", ("int32",))]
    multiplier: Multiplier
    shift: Shift

    def check(self, sizes: Sizes, known: KnownValues) -> None:
        check_exponentials(self.out, self.table, sizes, EXPONENTIAL_MAX)


@dataclass(frozen=True)
class SoftmaxLog2(Operation):
    """15-bit exponentials by ``table``, their share rounded to a power of two: codes are ``2^(15 - q)``, or 0.

    ``last`` is the largest ``q`` that is kept.
    """

    kind = "softmax_log2"
    makes = "H N M"
    x: Annotated[str, Operand("H N M")]
    table: Annotated[Array, TensorField("T L", ("int32",))]
    last: Annotated[int, Key(0, 15)]

    def check(self, sizes: Sizes, known: KnownValues) -> None:
        check_exponentials(self.out, self.table, sizes, EXPONENTIAL_MAX)
        expect_range(self.out, 0, 2**15)
        if not self.out.is_plain:
            refuse(self.out.name, "powers of two have no zero point")
        known.row_limits[self.out.name] = LOG2_ROW_LIMIT


@dataclass(frozen=True)
class Mix(Operation):
    """The product of the weights ``p`` with V, requantized.

    With ``normalize`` the sum of codes is divided by the row's sum of ``p`` first: by a reciprocal of
    ``reciprocal_bits``, keeping ``fraction_bits``.
    """

    kind = "mix"
    makes = "N C"
    p: Annotated[str, Operand("H N M/windows")]
    v: Annotated[str, Operand("M C")]
    windows: Annotated[int, Key(1)]
    normalize: Annotated[bool, Flag()]
    reciprocal_bits: Annotated[int, Key(0)]
    fraction_bits: Annotated[int, Key(0)]
    multiplier: Multiplier
    shift: Shift

    def check(self, sizes: Sizes, known: KnownValues) -> None:
        name, p, v = self.out.name, known[self.p], known[self.v]
        if sizes["C"] % sizes["H"] or sizes["N"] % self.windows:
            refuse(name, "weights and V do not fit", got=f"{p.shape}, {v.shape}, {self.windows} windows")
        check_operand(name, 0, max(p.centred_limit, v.centred_limit))
        require_int32(name, known.row_limits.get(p.name, p.shape[2] * p.centred_limit) * v.centred_limit)
        if self.normalize:
            width = v.centred_limit.bit_length()
            if not (self.fraction_bits <= 30 - width and self.fraction_bits <= self.reciprocal_bits <= 52 - width):
                refuse(name, "fraction out of range", got=f"{self.reciprocal_bits}, {self.fraction_bits}")
            if p.name not in known.rows_above_zero or not p.is_plain:
                refuse(name, "only what softmax_row or softmax_diffusion makes can be normalised", got=p.name)
        elif self.fraction_bits or self.reciprocal_bits:
            refuse(name, "without normalising there is no fraction")


def no_table() -> Array:
    """A table that adds nothing to scores."""
    return np.zeros((1, 1, 1), dtype=np.int8)


def check_exponentials(out: Value, table: Array, sizes: Sizes, largest: int, fraction_bits: int = 0) -> None:
    """The table of exponentials with these fractional bits, and that no row's sum of them leaves 32 bits."""
    if sizes["H"] % len(table):
        refuse(f"{out.name}/table", "the heads cannot share so many tables", got=len(table))
    one = 1 << fraction_bits
    top, half = largest * one, (one + 1) // 2
    if table.min() < 0 or table.max() > top or table[:, 0].min() < half:
        refuse(f"{out.name}/table", "out of range", expected=f"0 .. {top}, and at least {half} at distance 0")
    if sizes["M"] * largest > INT32_MAX:
        refuse(out.name, "the row's sum would overflow", got=f"{sizes['M']} tokens")


OPERATIONS = (Scores, SoftmaxRow, SoftmaxDiffusion, SoftmaxUniform, SoftmaxLog2, Mix)
