"""What is not a program that any executor can run, and the words in which it is refused."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

import vitquant
from support.integer_models import quantized
from vitquant.errors import DeployabilityError, ProgramError
from vitquant.program import ops
from vitquant.program.checks import accumulator_limit
from vitquant.program.program import IntegerProgram, Output
from vitquant.program.validate import validate
from vitquant.program.values import Value

SMALL: dict[str, Any] = {"depth": 1, "embed_dim": 6, "num_heads": 2, "mlp_hidden": 6, "patch_size": (8, 8)}


@pytest.fixture(scope="module")
def programs() -> dict[str, IntegerProgram]:
    """A small model with each form of softmax."""
    return {
        form: vitquant.compile(quantized({"intSoft": {"softmax": form}}, **SMALL))
        for form in ("row", "diffusion", "uniform", "log2")
    }


def changed(program: IntegerProgram, kind: str, change: Callable[[Any], dict[str, Any]]) -> IntegerProgram:
    """The program with some fields of its first operation of a kind replaced."""
    index = next(i for i, op in enumerate(program.operations) if op.kind == kind)
    op = program.operations[index]
    operations = list(program.operations)
    operations[index] = replace(op, **change(op))
    return replace(program, operations=tuple(operations))


def of_out(**fields: Any) -> Callable[[Any], dict[str, Any]]:
    """A change to the value that the operation makes."""
    return lambda op: {"out": replace(op.out, **fields)}


def field(name: str, change: Callable[[Any], Any]) -> Callable[[Any], dict[str, Any]]:
    """A change to a constant."""
    return lambda op: {name: change(getattr(op, name))}


def edited(number: int) -> Callable[[Any], Any]:
    """The constant with its first element replaced."""

    def edit(array: Any) -> Any:
        copy = array.copy()
        copy.flat[0] = number
        return copy

    return edit


def zeros(*numbers: int) -> Any:
    return np.array(numbers, dtype=np.int32)


CASES: list[tuple[str, str, Callable[[Any], dict[str, Any]], str]] = [
    ("row", "linear", lambda op: {"x": "logits"}, "it reads a value that does not exist yet. Got 'logits'"),
    ("row", "linear", of_out(name="image"), "two values have the same name"),
    ("row", "linear", of_out(name="a\nb"), "not a name"),
    ("row", "linear", of_out(name="x" * 201), "not a name"),
    ("row", "linear", of_out(name="\u00e9"), "not a name"),
    ("row", "linear", of_out(shape=(4, 7)), "scale does not fit the shape|not the shape that linear makes"),
    ("row", "linear", of_out(shape=(2**20, 2**20, 2**20)), "not a shape that can be computed"),
    ("row", "linear", of_out(shape=(4, 0)), "not a shape that can be computed"),
    ("row", "linear", of_out(low=0, high=0), "not a range of codes"),
    ("row", "linear", of_out(high=2**30 + 1), "not a range of codes"),
    ("row", "linear", of_out(scale=np.zeros(1, dtype=np.float32)), "scales must be positive float32"),
    ("row", "linear", of_out(scale=np.ones(1)), "scales must be positive float32"),
    ("row", "linear", of_out(scale=np.full(1, np.nan, dtype=np.float32)), "scales must be positive float32"),
    ("row", "linear", of_out(zero_point=np.zeros(1, dtype=np.int64)), "zero points must be int32"),
    ("row", "linear", of_out(zero_point=zeros(-(2**30))), "codes less their zero point would leave 32 bits"),
    ("row", "add", of_out(zero_point=zeros(2**20)), "a zero point is not one of the codes"),
    ("row", "linear", field("weight", lambda w: w.astype(np.float32)), "wrong constant"),
    ("row", "linear", field("weight", lambda w: w[:, 1:]), "wrong constant"),
    ("row", "linear", field("bias", lambda b: b[0].reshape(())), "wrong constant"),
    ("row", "linear", field("multiplier", edited(2**21 - 1)), "out of range"),
    ("row", "linear", field("multiplier", edited(2**22)), "out of range"),
    ("row", "linear", field("shift", edited(53)), "out of range"),
    ("row", "linear", field("shift", lambda s: s[:1] if len(s) > 1 else s.repeat(6)), "wrong|differ in length"),
    ("row", "linear", field("bias", edited(2**31 - 1)), "an accumulator could overflow"),
    ("row", "patches", lambda op: {"height": 5}, "not the shape that patches makes"),
    ("row", "patches", lambda op: {"height": 0}, r"`height` is out of range\. Got 0, expected at least 1"),
    ("row", "patches", of_out(high=254), "the range does not hold all codes"),
    ("row", "embed", lambda op: {"prefix": -1}, "`prefix` is out of range"),
    ("row", "embed", lambda op: {"prefix": 2}, "wrong constant"),
    ("row", "layernorm", lambda op: {"headroom": op.headroom + 2}, "would overflow"),
    ("row", "layernorm", lambda op: {"headroom": 1}, "not an integer LayerNorm"),
    ("row", "layernorm", lambda op: {"headroom": 2**40}, "`headroom` is out of range"),
    ("row", "layernorm", lambda op: {"epsilon": np.array([2**62])}, "would overflow"),
    ("row", "layernorm", lambda op: {"epsilon": np.array([-1])}, "not an integer LayerNorm"),
    ("row", "layernorm", field("gain", edited(2**36 + 1)), "out of range"),
    ("row", "layernorm", field("offset", edited(-(2**60) - 1)), "out of range"),
    ("row", "layernorm", field("shift", edited(0)), "out of range"),
    ("row", "scores", lambda op: {"k": "patches"}, "its operands do not fit each other"),
    ("row", "softmax_row", field("table", lambda t: t[:, :-1]), "wrong constant"),
    ("row", "softmax_row", field("table", edited(0)), "at least 1 at distance 0"),
    ("row", "softmax_row", field("table", edited(256)), "out of range"),
    ("row", "softmax_row", field("table", lambda t: np.concatenate([t] * 4)), "cannot share so many tables"),
    ("row", "mix", lambda op: {"fraction_bits": 30}, "fraction out of range"),
    ("row", "mix", lambda op: {"reciprocal_bits": 51}, "fraction out of range"),
    ("row", "mix", lambda op: {"normalize": False}, "without normalising there is no fraction"),
    ("row", "mix", lambda op: {"p": "blocks.0.attn_kv_out"}, "only what softmax_row or softmax_diffusion makes"),
    ("uniform", "mix", lambda op: {"normalize": True}, "only what softmax_row or softmax_diffusion makes"),
    ("diffusion", "softmax_diffusion", field("table", edited(127)), "at least 128 at distance 0"),
    ("diffusion", "softmax_diffusion", field("table", edited(255 * 256 + 1)), "out of range"),
    ("diffusion", "softmax_diffusion", field("table", edited(-1)), "out of range"),
    ("diffusion", "softmax_diffusion", of_out(high=254), "out of range"),
    ("diffusion", "softmax_diffusion", of_out(low=1), "the range does not hold all codes|a zero point is not"),
    ("uniform", "softmax_uniform", field("multiplier", lambda m: m[0].reshape(())), "wrong constant"),
    ("uniform", "softmax_uniform", field("table", edited(2**15)), "out of range"),
    ("log2", "softmax_log2", lambda op: {"last": 16}, "`last` is out of range"),
    ("log2", "softmax_log2", of_out(high=2**15 - 1), "the range does not hold all codes"),
    ("log2", "softmax_log2", of_out(zero_point=zeros(1)), "powers of two have no zero point"),
    ("row", "lookup", field("tables", lambda t: t.astype(np.int64)), "wrong constant"),
    (
        "row",
        "lookup",
        lambda op: {"tables": np.full_like(op.tables, op.out.high), "out": replace(op.out, high=3)},
        "range",
    ),
    ("row", "lookup", field("table_of", edited(1000)), "there are not so many tables"),
    ("row", "lookup", field("table_of", edited(-1)), "there are not so many tables"),
    ("row", "take", lambda op: {"token": 5}, "there is no such token"),
    ("row", "take", of_out(high=3), "the range does not hold all codes"),
]


@pytest.mark.parametrize(("form", "kind", "change", "message"), CASES)
def test_what_is_refused(
    form: str,
    kind: str,
    change: Callable[[Any], dict[str, Any]],
    message: str,
    programs: dict[str, IntegerProgram],
) -> None:
    with pytest.raises((ProgramError, DeployabilityError), match=message):
        validate(changed(programs[form], kind, change))


def test_what_is_compiled_is_accepted(programs: dict[str, IntegerProgram]) -> None:
    for program in programs.values():
        validate(program)
        validate(changed(program, "linear", lambda op: {}))


def two_layers(weight: Any, bias: Any, low: int = 0, high: int = 255) -> IntegerProgram:
    """An image of one pixel, requantized to a range, and one layer on it."""

    def value(name: str, shape: tuple[int, ...], low: int, high: int) -> Value:
        return Value(name, shape, low, high, np.ones(1, dtype=np.float32), np.zeros(1, dtype=np.int32))

    rescale = np.array([2**21], dtype=np.int32), np.array([21], dtype=np.uint8)
    operations = (
        ops.Patches(value("patches", (1, 1), 0, 255), "image", 1, 1),
        ops.Requantize(value("x", (1, 1), low, high), "patches", 0, *rescale),
        ops.Linear(value("y", (1, len(weight)), -128, 127), "x", weight, bias, *rescale),
    )
    return IntegerProgram(value("image", (1, 1, 1), 0, 255), operations, (Output("logits", "y"),))


@pytest.mark.parametrize("sign", [-1, 1])
def test_the_largest_accumulator(sign: int) -> None:
    """-128 is its own magnitude in int8; 2^31 - 1 is the last sum that fits."""
    weight = np.array([[-128]], dtype=np.int8)
    room = 2**31 - 1 - 128 * 255
    validate(two_layers(weight, np.array([sign * room], dtype=np.int32)))
    with pytest.raises(DeployabilityError, match=r"y: an accumulator could overflow\. Got a sum of up to 2\.147e\+09"):
        validate(two_layers(weight, np.array([sign * (room + 1)], dtype=np.int32)))


def test_operands_fit_three_bytes() -> None:
    one, none = np.ones((1, 1), dtype=np.int8), np.zeros(1, dtype=np.int32)
    validate(two_layers(one, none, -(2**23), 2**23 - 1))
    for low, high in ((-(2**23) - 1, 0), (0, 2**23)):
        with pytest.raises(ProgramError, match="it multiplies numbers of more than 24 bits"):
            validate(two_layers(one, none, low, high))
    wide = np.full((1, 1), 2**23, dtype=np.int32)
    with pytest.raises(ProgramError, match="it multiplies numbers of more than 24 bits"):
        validate(two_layers(wide, none, 0, 1))


def test_the_image_and_the_output() -> None:
    program = two_layers(np.ones((1, 1), dtype=np.int8), np.zeros(1, dtype=np.int32))
    for bad in (replace(program.image, high=127), replace(program.image, shape=(1, 1))):
        with pytest.raises(ProgramError, match="the image must be uint8"):
            validate(replace(program, image=bad))
    for output in ("image", "z"):
        with pytest.raises(ProgramError, match="output logits: not a value that an operation makes"):
            validate(replace(program, outputs=(Output("logits", output),)))
    tokens = vitquant.compile(quantized(**SMALL))
    validate(replace(tokens, outputs=(Output("tokens", "final_norm", pooled=False),)))
    with pytest.raises(ProgramError, match="the output must have one row"):
        validate(replace(tokens, outputs=(Output("tokens", "final_norm"),)))
    scores = next(op.out.name for op in tokens.operations if op.kind == "scores")
    with pytest.raises(ProgramError, match="the output must have tokens"):
        validate(replace(tokens, outputs=(Output("scores", scores, pooled=False),)))
    for outputs in ((), (*tokens.outputs, *tokens.outputs)):
        with pytest.raises(ProgramError, match="outputs need names of their own"):
            validate(replace(tokens, outputs=outputs))


def test_the_bound_itself_does_not_overflow() -> None:
    """2^18 weights of -2^23 on codes up to 2^30: a product that wraps to 0 in 64 bits."""
    weight = np.full((1, 2**18), -(2**23), dtype=np.int32)
    x = Value("x", (1, 2**18), -(2**30), 2**30, np.ones(1, np.float32), np.zeros(1, np.int32))
    assert accumulator_limit(weight, np.zeros(1, np.int32), x)[0] == 2**62
