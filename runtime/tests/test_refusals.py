"""What a program of format 2 may not be: one spoiled program for each rule, which both readers refuse."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load as load_tensors
from safetensors.numpy import save as save_tensors

import vitquant_runtime
from support import mutations, packed_programs
from support.random_programs import PLAIN
from vitquant.errors import VitquantError
from vitquant.program import ops
from vitquant.program.program import IntegerProgram, Output
from vitquant.program.storage import decode_program, encode_program
from vitquant.program.values import Array, Value

ONE: tuple[Array, Array] = np.array([2**21], np.int32), np.array([21], np.uint8)
"""A multiplier and a shift that change nothing."""


def value(name: str, shape: tuple[int, ...], low: int = -128, high: int = 127) -> Value:
    return Value(name, shape, low, high, *PLAIN)


def program() -> IntegerProgram:
    """All kinds of format 2; two windows of three queries and two keys, in two heads of two channels."""
    angles = np.ones((4, 2), np.int16)
    distances = np.ones((1, 256), np.int32)
    operations = (
        ops.Patches(value("x", (4, 4), 0, 255), "image", 2, 2),
        ops.Constant(value("constant", (4, 4)), np.arange(16, dtype=np.int8).reshape(4, 4)),
        ops.Rotary(value("rotary", (4, 4)), "x", angles, angles, np.array([1, 0], np.int32), *ONE),
        ops.Multiply(value("multiply", (4, 4)), "x", "constant", *ONE),
        ops.Gather(value("gather", (6, 4), 0, 255), "x", np.array([0, 1, -1, 3, 2, 1], np.int32)),
        ops.Scores(value("scores", (2, 6, 2)), "gather", "constant", 2, np.ones((1, 3, 2), np.int8), *ONE),
        ops.SoftmaxRow(value("weights", (2, 6, 2), 0, 255), "scores", distances),
        ops.Mix(value("mix", (6, 4)), "weights", "x", 2, False, 0, 0, *ONE),
        ops.Take(value("take", (1, 4)), "mix", 0),
    )
    outputs = (Output("logits", "take"), Output("tokens", "mix", pooled=False))
    return IntegerProgram(value("image", (1, 4, 4), 0, 255), operations, outputs, {})


def refusals(files: tuple[bytes, bytes]) -> tuple[str | None, str | None]:
    """Why vitquant and the runtime refuse the files, if they do."""
    found: list[str | None] = []
    readers: tuple[Callable[[bytes, bytes], Any], ...] = (decode_program, vitquant_runtime.loads)
    for read in readers:
        try:
            read(*files)
        except (VitquantError, ValueError) as error:
            found.append(str(error))
        else:
            found.append(None)
    return found[0], found[1]


def test_the_program_is_well_formed() -> None:
    assert refusals(encode_program(program())) == (None, None)


def wide(high: int) -> dict[str, Any]:
    """A constant of a larger range."""
    return {"out": value("constant", (4, 4), -high, high), "table": np.zeros((4, 4), np.int32)}


def table(dtype: type[np.generic], *shape: int, number: int = 0) -> dict[str, Any]:
    return {"table": np.full(shape, number, dtype)}


SPOILED: dict[str, tuple[str, dict[str, Any], str]] = {
    "scores: no windows": ("scores", {"windows": 0}, "cannot be divided into these windows"),
    "scores: windows of queries only": ("scores", {"windows": 3}, "cannot be divided into these windows"),
    "scores: windows of keys only": ("scores", {"windows": 4}, "cannot be divided into these windows"),
    "scores: other windows than the shape has": ("scores", {"windows": 1}, "not the shape that scores makes"),
    "scores: keys of other channels": ("scores", {"k": "image"}, "scores reads tokens"),
    "scores: a row too few": ("scores", {"out": value("scores", (2, 5, 2))}, "not the shape that scores makes"),
    "scores: more tables than heads": ("scores", table(np.int8, 3, 1, 1), "table: it does not fit the scores"),
    "scores: rows that do not divide": ("scores", table(np.int8, 1, 4, 1), "table: it does not fit the scores"),
    "scores: another number of keys": ("scores", table(np.int8, 1, 1, 3), "table: it does not fit the scores"),
    "scores: a table of two axes": ("scores", table(np.int8, 1, 1), "table: wrong constant"),
    "scores: a table of another type": ("scores", table(np.uint8, 1, 1, 1), "table: wrong constant"),
    "scores: a large addend": ("scores", table(np.int32, 1, 1, 1, number=2**30 + 1), "table: out of range"),
    "scores: a small addend": ("scores", table(np.int32, 1, 1, 1, number=-(2**30) - 1), "table: out of range"),
    "scores: products of 32 bits": ("constant", wide(2**23 - 1), "scores: an accumulator could overflow"),
    "mix: no windows": ("mix", {"windows": 0}, "cannot be divided into these windows"),
    "mix: windows of queries only": ("mix", {"windows": 3}, "cannot be divided into these windows"),
    "mix: other windows": ("mix", {"windows": 1}, "weights and V do not fit"),
    "mix: another number of tokens": ("mix", {"v": "gather"}, "weights and V do not fit"),
    "mix: weights that are tokens": ("mix", {"p": "x"}, "weights and V do not fit"),
    "mix: a row too few": ("mix", {"out": value("mix", (4, 4))}, "not the shape that mix makes"),
    "multiply: other shapes": ("multiply", {"b": "image"}, "the factors differ in shape"),
    "multiply: another shape": ("multiply", {"out": value("multiply", (4, 5))}, "not the shape that multiply makes"),
    "multiply: 24 bits": ("constant", wide(2**23), "multiply: it multiplies numbers of more than 24 bits"),
    "multiply: 32 bits": ("multiply", {"a": "wide", "b": "wide"}, "multiply: an accumulator could overflow"),
    "rotary: of no tokens": ("rotary", {"x": "image"}, "rotary reads tokens"),
    "rotary: angles of three channels": (
        "rotary",
        {"cos": np.ones((4, 3), np.int16), "sin": np.ones((4, 3), np.int16), "partner": np.zeros(3, np.int32)},
        "the angles do not fit the channels",
    ),
    "rotary: angles of too few tokens": ("rotary", {"cos": np.ones((3, 2), np.int16)}, "cos: wrong constant"),
    "rotary: cosines of another type": ("rotary", {"cos": np.ones((4, 2), np.int32)}, "cos: wrong constant"),
    "rotary: sines of another shape": ("rotary", {"sin": np.ones((4, 4), np.int16)}, "sin: wrong constant"),
    "rotary: a negative partner": (
        "rotary",
        {"partner": np.array([1, -1], np.int32)},
        "there are not so many channels",
    ),
    "rotary: a partner too far": ("rotary", {"partner": np.array([1, 2], np.int32)}, "there are not so many channels"),
    "rotary: partners of three": ("rotary", {"partner": np.zeros(3, np.int32)}, "partner: wrong constant"),
    "rotary: 24 bits": ("rotary", {"x": "huge"}, "rotary: it multiplies numbers of more than 24 bits"),
    "rotary: 32 bits": (
        "rotary",
        {"x": "wide", "cos": np.full((4, 2), -(2**15), np.int16), "sin": np.full((4, 2), -(2**15), np.int16)},
        "rotary: an accumulator could overflow",
    ),
    "constant: below": (
        "constant",
        {"out": value("constant", (4, 4), 0, 100), **table(np.int8, 4, 4, number=-1)},
        "table: out of range",
    ),
    "constant: above": ("constant", {"out": value("constant", (4, 4), -10, 10)}, "table: out of range"),
    "constant: another shape": ("constant", table(np.int8, 4, 3), "table: wrong constant"),
    "constant: another type": ("constant", table(np.int16, 4, 4), "table: wrong constant"),
    "constant: scores": (
        "constant",
        {"out": value("constant", (1, 4, 4)), "table": np.zeros((1, 4, 4), np.int8)},
        "constant reads tokens",
    ),
    "gather: below -1": ("gather", {"index": np.array([0, 1, -2, 3, 2, 1], np.int32)}, "not so many tokens"),
    "gather: a token too far": ("gather", {"index": np.array([0, 1, 4, 3, 2, 1], np.int32)}, "not so many tokens"),
    "gather: too few": ("gather", {"index": np.zeros(5, np.int32)}, "index: wrong constant"),
    "gather: another type": ("gather", {"index": np.zeros(6, np.int64)}, "index: wrong constant"),
    "gather: part of a token": ("gather", {"out": value("gather", (6, 6), 0, 255)}, "not the shape that gather makes"),
    "gather: less than a token": (
        "gather",
        {"out": value("gather", (6, 2), 0, 255)},
        "not the shape that gather makes",
    ),
    "gather: a narrower range": ("gather", {"out": value("gather", (6, 4), 0, 254)}, "does not hold all codes"),
}


def spoiled(name: str, changes: dict[str, Any]) -> IntegerProgram:
    """The program with another operation of this name, which may read values of 17 and of 25 bits."""
    whole = program()
    more = [ops.Constant(value(n, (4, 4), -h, h), np.zeros((4, 4), np.int32)) for n, h in LARGE.items()]
    first, *others = whole.operations
    changed = [replace(op, **changes) if op.out.name == name else op for op in others]
    return replace(whole, operations=(first, *more, *changed))


LARGE = {"wide": 2**17, "huge": 2**23}


@pytest.mark.parametrize("rule", SPOILED)
def test_operations(rule: str) -> None:
    name, changes, said = SPOILED[rule]
    by_vitquant, by_runtime = refusals(encode_program(spoiled(name, changes)))
    assert by_vitquant
    assert said in str(by_runtime)


def test_what_spoils_nothing() -> None:
    assert refusals(encode_program(spoiled("x", {}))) == (None, None)


OUTPUTS: dict[str, tuple[Any, str]] = {
    "none": ([], "outputs: a program has at least one"),
    "no list": ({}, "`outputs` is missing or of the wrong type"),
    "one name twice": ([("a", "take", True), ("a", "mix", False)], "output a: two outputs have the same name"),
    "nothing": ([("a", "nothing", True)], "output a: not a value that an operation makes. Got nothing"),
    "the image": ([("a", "image", False)], "output a: not a value that an operation makes"),
    "scores": ([("a", "scores", False)], "output a: an output has two axes"),
    "pooled rows": ([("a", "mix", True)], "output a: a pooled output must have one row"),
    "no name": ([("", "take", True)], "name: not a name"),
    "a long name": ([("a" * 201, "take", True)], "name: not a name"),
    "a name of two lines": ([("a\nb", "take", True)], "name: not a name"),
    "pooled is a number": ([("a", "take", 1)], "pooled"),
    "a name that is a number": ([(1, "take", True)], "name"),
    "a value that is a number": ([("a", 1, True)], "value"),
    "a key too many": ([{"name": "a", "value": "take", "pooled": True, "more": 1}], "output"),
    "a key too few": ([{"name": "a", "value": "take"}], "output"),
    "a name alone": (["take"], "output"),
}


@pytest.mark.parametrize("rule", OUTPUTS)
def test_outputs(rule: str) -> None:
    outputs, said = OUTPUTS[rule]
    if isinstance(outputs, list):
        keys = ("name", "value", "pooled")
        outputs = [dict(zip(keys, told, strict=True)) if isinstance(told, tuple) else told for told in outputs]
    body, tensors = mutations.parts(encode_program(program()))
    body["outputs"] = outputs
    by_vitquant, by_runtime = refusals(mutations.signed(body, tensors))
    assert by_vitquant
    assert said in str(by_runtime)


@pytest.mark.parametrize("name", packed_programs.SPOILED)
def test_packed_tensors(name: str) -> None:
    assert refusals(encode_program(packed_programs.one_layer())) == (None, None)
    by_vitquant, by_runtime = refusals(packed_programs.spoiled(name))
    assert by_vitquant
    assert by_runtime


def version_1() -> tuple[dict[str, Any], dict[str, Array]]:
    """A program of format 1: the body of its manifest, and its tensors."""
    whole = program()
    square: dict[str, dict[str, Any]] = {
        "scores": {"q": "x", "k": "x", "out": value("scores", (2, 4, 4)), "windows": 1, "table": ops.no_table()},
        "weights": {"out": value("weights", (2, 4, 4), 0, 255)},
        "mix": {"out": value("mix", (4, 4)), "windows": 1},
    }
    kept = [op for op in whole.operations if op.out.name in ("x", "take", *square)]
    operations = tuple(replace(op, **square.get(op.out.name, {})) for op in kept)
    body, tensors = mutations.parts(encode_program(replace(whole, operations=operations, outputs=whole.outputs[:1])))
    body["output"] = body.pop("outputs")[0]["value"]
    for op in body["operations"]:
        op.pop("windows", None)
    arrays = load_tensors(tensors)
    del arrays["scores/table"]
    return body, arrays


def test_version_1() -> None:
    body, arrays = version_1()
    files = mutations.signed(body, save_tensors(arrays))
    assert json.loads(files[0])["format_version"] == 1
    assert refusals(files) == (None, None)
    assert vitquant_runtime.loads(*files).output_names == ("logits",)


def with_windows(body: dict[str, Any], kind: str) -> None:
    next(op for op in body["operations"] if op["op"] == kind)["windows"] = 1


def with_kind(body: dict[str, Any], kind: str) -> None:
    body["operations"][-1]["op"] = kind


NEWER: dict[str, Callable[[dict[str, Any], dict[str, Array]], Any]] = {
    "windows of scores": lambda body, arrays: with_windows(body, "scores"),
    "windows of mix": lambda body, arrays: with_windows(body, "mix"),
    "a table of scores": lambda body, arrays: arrays.update({"scores/table": np.zeros((1, 1, 1), np.int8)}),
    **{
        kind: lambda body, arrays, kind=kind: with_kind(body, kind)  # type: ignore[misc]
        for kind in ("rotary", "multiply", "constant", "gather")
    },
}


@pytest.mark.parametrize("change", NEWER)
def test_version_1_has_nothing_newer(change: str) -> None:
    body, arrays = version_1()
    NEWER[change](body, arrays)
    by_vitquant, by_runtime = refusals(mutations.signed(body, save_tensors(arrays)))
    assert by_vitquant
    assert by_runtime


@pytest.mark.parametrize("version", [0, 4, -1, 2**40])
def test_other_versions(version: int) -> None:
    manifest, tensors = encode_program(program())
    told = json.loads(manifest)
    told["format_version"], told["sha256"] = version, "0" * 64
    files = mutations.resigned(json.dumps(told).encode(), "0" * 64), tensors
    by_vitquant, by_runtime = refusals(files)
    assert by_vitquant
    assert f"Got {version}, expected version 1 to 3" in str(by_runtime)
