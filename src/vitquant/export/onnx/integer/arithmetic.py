"""Integer arithmetic that ONNX lacks, put together from what it has.

- ``BitShift`` takes unsigned numbers only. A multiple of the power of two makes them positive first, and its quotient
  is taken off after the shift.
- Look-ups are ``GatherElements`` on flat tensors, which runtimes execute far faster than ``Gather`` of single numbers.
- The integer square root is a fixed number of Newton's steps.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from vitquant.errors import ProgramError
from vitquant.export.onnx.integer.step import NodeWriter
from vitquant.numerics.limits import INT32_MAX
from vitquant.program.values import Array

BIT_LENGTH = np.frompyfunc(int.bit_length, 1, 1)
"""Of arrays of Python's integers."""

NEWTON_STEPS = 6
"""Of :func:`isqrt`. A start of at most twice the root is wrong by a factor of at most ``1 + 1``, then ``1 + 1/4``,
``1 + 1/40``, ``1 + 2^-11``, ``1 + 2^-24`` and ``1 + 2^-49``: after five steps a root below ``2^31`` is met to less than
1, and the sixth takes off what is left."""


@dataclass(frozen=True)
class Rescaled:
    """``tensor - offset`` are the numbers that are meant.

    ``|tensor| <= limit``; it is int32 as long as that allows, else int64.
    """

    tensor: str
    offset: Array
    limit: int

    @property
    def dtype(self) -> str:
        """Element type of the tensor."""
        return type_for(self.limit)

    def widened(self, step: NodeWriter, limit: int) -> str:
        """The tensor in the type that holds a larger limit too."""
        dtype = type_for(limit)
        return self.tensor if dtype == self.dtype else step.cast(self.tensor, dtype)


def type_for(limit: int) -> str:
    """``int32`` or ``int64``."""
    return "int32" if limit <= INT32_MAX else "int64"


def constant(values: Any, dtype: str = "int64") -> Array:
    """Integers of a type."""
    return np.asarray(values, dtype=dtype)


def rescale(step: NodeWriter, x: str, multiplier: Array, addend: Array, shift: Array, limit: Array | int) -> Rescaled:
    """``floor((x * multiplier + addend) / 2^shift + 1/2)`` of integers of any type, ``|x| <= limit``.

    Raises:
        ProgramError: the sum could leave 63 bits.
    """
    m, b, n = (constant(a).astype(object) for a in (multiplier, addend, shift))
    if np.all(m == 1 << n) and not b.any():
        largest = int(np.max(limit))
        return Rescaled(step.cast(x, type_for(largest)), constant(0), largest)
    half = (1 << n) >> 1
    bits = np.maximum(BIT_LENGTH(np.asarray(limit).astype(object) * abs(m) + abs(b) + half), n)
    if np.max(bits) > 62:
        raise ProgramError("a product needs more bits than int64 has", where=step.prefix, got=f"{np.max(bits) + 1}")
    y = step.node("Mul", step.cast(x, "int64"), constant(m))
    y = step.node("Add", y, constant(b + half + (1 << bits)))
    y = step.node("BitShift", step.cast(y, "uint64"), constant(n, "uint64"), direction="RIGHT")
    largest = (2 << int(np.max(bits - n))) - 1
    return Rescaled(step.cast(y, type_for(largest)), constant(1 << (bits - n)), largest)


def look_up(step: NodeWriter, tables: Array, index: str, shape: tuple[int, ...], out: str = "") -> str:
    """Places ``index`` (int32 ``[B, *shape]``) of the flattened tables."""
    flat = step.node("Reshape", index, constant([-1]))
    found = step.node("GatherElements", tables.reshape(-1), flat, axis=0)
    return step.node("Reshape", found, constant([-1, *shape]), out=out)


def reached(step: NodeWriter, x: str, thresholds: list[int], dtype: str) -> str:
    """How many of the thresholds each number of ``[..., 1]`` reaches, int32."""
    passed = step.node("GreaterOrEqual", x, constant(thresholds, dtype))
    return step.reduce("ReduceSum", step.cast(passed, "int32"))


def half_length(step: NodeWriter, x: str) -> str:
    """Half the number of bits of int64 ``0 <= x < 2^62``, ``[..., 1]``, rounded up: int32, at most 31."""
    return reached(step, x, [4**j for j in range(31)], "int64")


def isqrt(step: NodeWriter, x: str) -> str:
    """``floor(sqrt(x))`` of int64 ``1 <= x < 2^62``, ``[..., 1]``, by Newton's steps from above.

    The start is a power of two above the root; steps never go below the floor, and only those that fall are taken.
    """
    root = step.node("Gather", constant([2**j for j in range(32)]), half_length(step, x))
    for _ in range(NEWTON_STEPS):
        total = step.node("Add", root, step.node("Div", x, root))
        root = step.node("Min", root, step.node("Div", total, constant([2])))
    return root
