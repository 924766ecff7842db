"""What checks of operations have in common, and the bounds of what may be multiplied and added up."""

from __future__ import annotations

from typing import NoReturn

import numpy as np

from vitquant.errors import DeployabilityError, ProgramError
from vitquant.numerics.limits import INT32_MAX
from vitquant.program.values import Array, Value

OPERAND_LIMIT = 2**23
"""Numbers that are multiplied with each other lie in ``[-2^23, 2^23)``, so that three bytes hold them."""


class KnownValues(dict[str, Value]):
    """The values so far, and more about some: what the codes of a row of softmax sum to at most, where that is less
    than all at once, and which have rows that never sum to 0.
    """

    def __init__(self) -> None:
        super().__init__()
        self.row_limits: dict[str, int] = {}
        self.rows_above_zero: set[str] = set()


def refuse(name: str, problem: str, *, got: object | None = None, expected: str | None = None) -> NoReturn:
    """Raise what is wrong with a value; of what was found, as much as fits a line or two."""
    raise ProgramError(problem, where=name, got=None if got is None else str(got)[:200], expected=expected)


def expect_shape(out: Value, kind: str, shape: tuple[int, ...]) -> None:
    """The shape that an operation's value must have."""
    if out.shape != shape:
        refuse(out.name, f"not the shape that {kind} makes", got=out.shape, expected=str(shape))


def expect_range(out: Value, low: int, high: int) -> None:
    """The range that an operation's value must contain."""
    if out.low > low or out.high < high:
        refuse(out.name, "the range does not hold all codes", got=f"{out.low} .. {out.high}")


def check_operand(name: str, low: int, high: int) -> None:
    """What is multiplied fits three bytes."""
    if low < -OPERAND_LIMIT or high >= OPERAND_LIMIT:
        refuse(name, "it multiplies numbers of more than 24 bits", got=f"{low} .. {high}")


def require_int32(name: str, limit: int) -> None:
    """Refuse accumulators that could leave 32 bits.

    Raises:
        DeployabilityError: with the value that they could reach.
    """
    if limit > INT32_MAX:
        raise DeployabilityError(
            "an accumulator could overflow",
            where=name,
            got=f"a sum of up to {limit:.4g}",
            expected=f"at most {INT32_MAX}, 32 bits",
            fix="give the weights or their input fewer bits",
        )


def accumulator_limit(weight: Array, bias: Array, x: Value) -> Array:
    """Largest magnitude that ``bias + x W^T`` and its products can reach, int64 ``[out]``; a bound, from the weights.

    Every partial sum, in whatever order, stays below it too. What would leave 64 bits itself is told as ``2^62``.
    """
    largest = max(abs(x.low), abs(x.high))
    weights = np.abs(weight.astype(np.int64)).sum(1).astype(np.float64)
    total: Array = weights * largest + np.abs(bias.astype(np.float64))  # exact below 2^53
    return np.minimum(total, 2.0**62).astype(np.int64)
