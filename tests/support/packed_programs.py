"""A program with packed weights, and all that can be wrong with how they are packed."""

from __future__ import annotations

from typing import Any

import numpy as np
from safetensors.numpy import load, save

from support import mutations
from support.mutations import Files
from vitquant.numerics.packing import Packing, pack
from vitquant.program.ops import Linear, Patches
from vitquant.program.program import IntegerProgram, Output
from vitquant.program.storage import encode_program
from vitquant.program.values import Array, Value

SPOILED: dict[str, tuple[dict[str, Any], dict[str, Array], str]] = {
    "not packed": ({"logits/weight": None}, {}, "a packed tensor without description. Got None"),
    "another key": (
        {"logits/weight": {"bits": 4, "columns": 5}},
        {},
        r"logits/weight: unknown or missing keys\. Got \['group'\]",
    ),
    "no such tensor": ({"x/weight": {"bits": 4, "columns": 5, "group": 0}}, {}, "x/weight: .* does not hold it"),
    **{
        f"{key} {number!a}": ({"logits/weight": {"bits": 4, "columns": 5, "group": 2, key: number}}, {}, message)
        for key, number, message in (
            ("bits", 1, "cannot be packed like this"),
            ("bits", 8, "cannot be packed like this"),
            ("bits", 4.0, "`bits` is missing or no whole number"),
            ("bits", True, "`bits` is missing or no whole number"),
            ("bits", 5, r"packed rows are damaged: uint8 \[2, 3\] instead of uint8 \[n, 4\]"),
            ("columns", 0, "cannot be packed like this"),
            ("columns", 2**29, "cannot be packed like this"),
            ("columns", 7, r"packed rows are damaged: uint8 \[2, 3\] instead of uint8 \[n, 4\]"),
            ("group", -1, "cannot be packed like this"),
            ("group", 6, "cannot be packed like this"),
            ("group", 1, r"packed rows are damaged: uint8 \[2, 2\] instead of uint8 \[n, 3\]"),
            ("group", 0, "holds what no operation uses"),
        )
    },
    "no multipliers": (
        {},
        {"logits/weight/multipliers": np.zeros(0)},
        "logits/weight/multipliers: .* does not hold it",
    ),
    "int8": ({}, {"logits/weight": np.zeros((2, 3), np.int8)}, r"int8 \[2, 3\] instead of uint8"),
    "one axis": ({}, {"logits/weight": np.zeros(3, np.uint8)}, "not packed rows"),
    "no axes": ({}, {"logits/weight": np.zeros((), np.uint8)}, "not packed rows"),
    "multipliers without axes": ({}, {"logits/weight/multipliers": np.zeros((), np.uint8)}, r"uint8 \[\] instead of"),
    "other rows": ({}, {"logits/weight": np.zeros((1, 3), np.uint8)}, "multipliers of 2 rows instead of 1"),
    "bits beyond": ({}, {"logits/weight": np.full((2, 3), 0x11, np.uint8)}, "bits beyond the end of a row are not 0"),
    "factors beyond": (
        {},
        {"logits/weight/multipliers": np.full((2, 2), 0x11, np.uint8)},
        "bits beyond the end of a row",
    ),
    "products of 189": (
        {"logits/weight": {"bits": 7, "columns": 5, "group": 5}},
        {"logits/weight": pack(np.full((2, 5), 63), 7), "logits/weight/multipliers": np.full((2, 1), 2, np.uint8)},
        "products of 189 to 189 do not fit into 8 bits",
    ),
    "packed twice": (
        {
            "logits/weight": {"bits": 4, "columns": 5, "group": 2},
            "logits/weight/multipliers": {"bits": 4, "columns": 3, "group": 0},
        },
        {},
        "logits/weight/multipliers: the tensor file does not hold it",
    ),
}
"""What is told of packed tensors otherwise, other tensors (empty ones are left out), and what vitquant says."""


def spoiled(name: str) -> Files:
    """The files of :func:`one_layer`, their digests right, with one thing changed."""
    program, tensors = mutations.parts(encode_program(one_layer()))
    told, arrays, _ = SPOILED[name]
    held = load(tensors) | arrays
    held = {key: array for key, array in held.items() if array.size or not array.ndim}
    if told:
        program["tensors"]["packed"] |= told
    return mutations.signed(program, save(held))


def one_layer() -> IntegerProgram:
    """Its weights are products of 4 bits and multipliers of groups of 2, 2 and 1."""
    one = np.array([2**21], np.int32), np.array([21], np.uint8)
    weight = np.array([[112, -16, 5, 4, 9], [0, 7, -6, 2, -128]], np.int8)

    def value(name: str, *shape: int, low: int = 0, high: int = 255) -> Value:
        return Value(name, shape, low, high, np.ones(1, np.float32), np.zeros(1, np.int32))

    linear = Linear(value("logits", 1, 2, low=-128, high=127), "x", weight, np.zeros(2, np.int32), *one)
    operations = Patches(value("x", 1, 5), "image", 1, 5), linear
    packed = {"logits/weight": Packing(bits=4, columns=5, group=2)}
    return IntegerProgram(value("image", 1, 1, 5), operations, (Output("logits", "logits"),), {}, packed)
