"""The operations of an integer program.

Each is a frozen record: the value it makes, the names of the values it reads, and its integer constants. What each one
computes is told in full in ``docs/program-format.md``; :mod:`vitquant.executors.reference` is the definition that runs.

``multiplier`` and ``shift`` always belong together: ``(x * multiplier + 2^(shift-1)) >> shift`` in 64 bits, the half
left out where the shift is 0. They have one element, or one for each channel (head, for scores) of the output.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from types import MappingProxyType
from typing import ClassVar

import numpy as np

from vitquant.program.values import Array, Value


@dataclass(frozen=True)
class Operation:
    """One step. ``kind`` is its name in files; ``reads`` lists the fields that hold names of values."""

    kind: ClassVar[str]
    reads: ClassVar[tuple[str, ...]] = ("x",)

    out: Value

    def inputs(self) -> tuple[str, ...]:
        """Names of the values that the operation reads."""
        return tuple(getattr(self, name) for name in self.reads)

    def constants(self) -> Iterator[tuple[str, Array]]:
        """The integer tensors of the operation, by field."""
        for f in fields(self):
            value = getattr(self, f.name)
            if isinstance(value, np.ndarray):
                yield f.name, value


@dataclass(frozen=True)
class Patches(Operation):
    """Cut the image ``[C, h, w]`` into flattened patches ``[P, C * height * width]``; no arithmetic."""

    kind = "patches"
    x: str
    height: int
    width: int


@dataclass(frozen=True)
class Linear(Operation):
    """``requantize(bias + x W^T)`` on tokens ``[N, in]``. The zero points of both sides are in the bias already.

    ``weight`` is ``[out, in]``, int8, int16 or int32 within 24 bits; ``bias`` int32 ``[out]``.
    """

    kind = "linear"
    x: str
    weight: Array
    bias: Array
    multiplier: Array
    shift: Array


@dataclass(frozen=True)
class Embed(Operation):
    """``clamp(table + requantize(x - zero))``: patches to their places after ``prefix`` tokens.

    ``table`` ``[N, C]`` holds positions, prefix tokens and the zero point; prefix tokens get nothing added.
    """

    kind = "embed"
    x: str
    prefix: int
    table: Array
    multiplier: Array
    shift: Array


@dataclass(frozen=True)
class LayerNorm(Operation):
    """LayerNorm over the channels: exact sums, integer square root, one division a token, one gain a channel.

    ``gain`` and ``offset`` are int64 ``[C]``, ``shift`` uint8 ``[C]``, ``epsilon`` int64 ``[1]`` with ``headroom``
    fractional bits.
    """

    kind = "layernorm"
    x: str
    gain: Array
    offset: Array
    shift: Array
    epsilon: Array
    headroom: int


@dataclass(frozen=True)
class Requantize(Operation):
    """``requantize(x - zero)`` of the channels ``start .. start + C``."""

    kind = "requantize"
    x: str
    start: int
    multiplier: Array
    shift: Array


@dataclass(frozen=True)
class Scores(Operation):
    """``requantize((q - zero_q) (k - zero_k)^T)`` for each head, ``[H, N, N]``."""

    kind = "scores"
    reads = ("q", "k")
    q: str
    k: str
    multiplier: Array
    shift: Array


@dataclass(frozen=True)
class SoftmaxRow(Operation):
    """``table[row maximum - x]``: exponentials whose share in their row's sum is the probability.

    ``table`` is ``[T, distances]``, a row for each of ``T`` runs of neighbouring heads.
    """

    kind = "softmax_row"
    x: str
    table: Array


@dataclass(frozen=True)
class SoftmaxUniform(Operation):
    """15-bit exponentials by ``table``, their share in the row's sum requantized to an affine grid."""

    kind = "softmax_uniform"
    x: str
    table: Array
    multiplier: Array
    shift: Array


@dataclass(frozen=True)
class SoftmaxLog2(Operation):
    """15-bit exponentials by ``table``, their share rounded to a power of two: codes are ``2^(15 - q)``, or 0.

    ``last`` is the largest ``q`` that is kept.
    """

    kind = "softmax_log2"
    x: str
    table: Array
    last: int


@dataclass(frozen=True)
class Mix(Operation):
    """The product of the weights ``p`` ``[H, N, N]`` with V, ``[N, C]``, requantized.

    With ``normalize`` the sum of codes is divided by the row's sum of ``p`` first: by a reciprocal of
    ``reciprocal_bits``, keeping ``fraction_bits``.
    """

    kind = "mix"
    reads = ("p", "v")
    p: str
    v: str
    normalize: bool
    reciprocal_bits: int
    fraction_bits: int
    multiplier: Array
    shift: Array


@dataclass(frozen=True)
class Add(Operation):
    """``clamp(zero + requantize(a - zero_a) + requantize(b - zero_b))``."""

    kind = "add"
    reads = ("a", "b")
    a: str
    b: str
    multiplier_a: Array
    shift_a: Array
    multiplier_b: Array
    shift_b: Array


@dataclass(frozen=True)
class Lookup(Operation):
    """``tables[table_of[channel], x - low]``, any function of one code; ``tables`` is ``[T, codes]``."""

    kind = "lookup"
    x: str
    tables: Array
    table_of: Array


@dataclass(frozen=True)
class Take(Operation):
    """One token, ``[1, C]``."""

    kind = "take"
    x: str
    token: int


@dataclass(frozen=True)
class Pool(Operation):
    """The rounded mean of the tokens from ``first`` on, ``[1, C]``: ``floor((2 sum + n) / 2n)``."""

    kind = "pool"
    x: str
    first: int


OPERATIONS: tuple[type[Operation], ...] = (
    Patches,
    Linear,
    Embed,
    LayerNorm,
    Requantize,
    Scores,
    SoftmaxRow,
    SoftmaxUniform,
    SoftmaxLog2,
    Mix,
    Add,
    Lookup,
    Take,
    Pool,
)

KINDS: Mapping[str, type[Operation]] = MappingProxyType({op.kind: op for op in OPERATIONS})
