"""Operations of integer programs by hand: small numbers, each result worked out on paper."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from vitquant.executors.reference import Reference
from vitquant.program import ops
from vitquant.program.program import IntegerProgram, Output
from vitquant.program.validate import validate
from vitquant.program.values import Value

ONE = np.array([2**21], dtype=np.int32), np.array([21], dtype=np.uint8)
HALF = np.array([2**21], dtype=np.int32), np.array([22], dtype=np.uint8)


def value(name: str, shape: tuple[int, ...], low: int, high: int, zero: tuple[int, ...] = (0,)) -> Value:
    return Value(name, shape, low, high, np.ones(len(zero), np.float32), np.array(zero, np.int32))


def given(name: str, codes: list[list[int]], low: int = -128, high: int = 127, zero: tuple[int, ...] = (0,)) -> Any:
    """A constant operand."""
    out = value(name, (len(codes), len(codes[0])), low, high, zero)
    return ops.Constant(out, np.array(codes, dtype=out.dtype))


def result(*operations: ops.Operation) -> Any:
    """The codes of the last operation's value."""
    pixel = ops.Patches(value("pixel", (1, 1), 0, 255), "image", 1, 1)
    outputs = (Output("pixel", "pixel"),)
    program = IntegerProgram(value("image", (1, 1, 1), 0, 255), (pixel, *operations), outputs)
    validate(program)
    last = operations[-1].out.name
    found = Reference(program).run(torch.zeros(2, 1, 1, 1, dtype=torch.uint8), keep=[last])[last]
    assert torch.equal(found[0], found[1])
    return found[0].tolist()


def test_multiply() -> None:
    """(3 - 1) * 5 / 2 = 5; (4 - 1) * -5 / 2 = -7.5, which rounds up to -7; the last saturates."""
    a, b = given("a", [[3, 4, 100]], zero=(1,)), given("b", [[5, -5, 100]])
    assert result(a, b, ops.Multiply(value("y", (1, 3), -128, 127), "a", "b", *HALF)) == [[5, -7, 127]]


def test_rotary() -> None:
    """The second token turns by 90 degrees: (x, y) becomes (-y, x), in both runs of two channels."""
    unit = 2**14
    cos = np.array([[unit, unit], [0, 0]], dtype=np.int16)
    sin = np.array([[0, 0], [-unit, unit]], dtype=np.int16)
    back = np.array([2**21], dtype=np.int32), np.array([21 + 14], dtype=np.uint8)
    x = given("x", [[1, 2, 3, 4], [5, 6, 7, 8]])
    turn = ops.Rotary(value("y", (2, 4), -128, 127), "x", cos, sin, np.array([1, 0], dtype=np.int32), *back)
    assert result(x, turn) == [[1, 2, 3, 4], [-6, 5, -8, 7]]


def test_gather() -> None:
    """Rows 2 and 0, then a row of zero points and row 1, two by two."""
    x = given("x", [[1, 2], [3, 4], [5, 6]], zero=(7, 8))
    out = value("y", (2, 4), -128, 127, (7, 8, 7, 8))
    index = np.array([2, 0, -1, 1], dtype=np.int32)
    assert result(x, ops.Gather(out, "x", index)) == [[5, 6, 1, 2], [7, 8, 3, 4]]


def test_scores_in_windows_with_a_table() -> None:
    """Two windows of one query and two keys each: 2 * (1, 3) = (2, 6) and 3 * (2, 5) = (6, 15).

    The table adds (10, 20) to the first query and (30, 40) to the second.
    """
    q, k = given("q", [[2], [3]]), given("k", [[1], [3], [2], [5]])
    table = np.array([[[10, 20], [30, 40]]], dtype=np.int8)
    scores = value("s", (1, 2, 2), -128, 127)
    assert result(q, k, ops.Scores(scores, "q", "k", 2, table, *ONE)) == [[[12, 26], [36, 55]]]
    shared = np.array([[[10, 20]]], dtype=np.int8)  # begins anew for the second query
    assert result(q, k, ops.Scores(scores, "q", "k", 2, shared, *ONE)) == [[[12, 26], [16, 35]]]
    same = np.array([[[-10], [100]]], dtype=np.int8)  # the same for all keys; 100 + 28 would be beyond the range
    assert result(q, k, ops.Scores(scores, "q", "k", 2, same, *ONE)) == [[[-8, -4], [106, 115]]]


def test_scores_of_more_keys_than_queries() -> None:
    q, k = given("q", [[2, 1]]), given("k", [[1, 0], [0, 1], [1, 1]])
    heads = ops.Scores(value("s", (2, 1, 3), -128, 127), "q", "k", 1, ops.no_table(), *ONE)
    assert result(q, k, heads) == [[[2, 0, 2]], [[0, 1, 1]]]


def test_the_weighted_sum_in_windows() -> None:
    """Weights of the first query (2, 6) meet V's first window (1, 3): 2 + 18; (6, 15) meet (2, 5): 12 + 75."""
    q, k = given("q", [[2], [3]]), given("k", [[1], [3], [2], [5]])
    scores = ops.Scores(value("s", (1, 2, 2), -128, 127), "q", "k", 2, ops.no_table(), *ONE)
    out = value("y", (2, 1), -128, 127)
    mix = ops.Mix(out, "s", "k", 2, False, 0, 0, *ONE)
    assert result(q, k, scores, mix) == [[20], [87]]


def test_a_constant_key_and_value() -> None:
    """The key 7 stands before 1 and 3, so the query 2 gives 14, 2, 6; as values they give 98 + 2 + 18."""
    k = given("k", [[1], [3]])
    table = np.array([[7], [0], [0]], dtype=np.int8)
    with_prefix = ops.Embed(value("all", (3, 1), -128, 127), "k", 1, table, *ONE)
    q = given("q", [[2]])
    scores = ops.Scores(value("s", (1, 1, 3), -128, 127), "q", "all", 1, ops.no_table(), *ONE)
    assert result(k, with_prefix, q, scores) == [[[14, 2, 6]]]
    mix = ops.Mix(value("y", (1, 1), -128, 127), "s", "all", 1, False, 0, 0, *ONE)
    assert result(k, with_prefix, q, scores, mix) == [[14 * 7 + 2 * 1 + 6 * 3]]
