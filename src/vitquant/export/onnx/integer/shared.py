"""What the operations share: the tensors of values, requantization, and clamped codes."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np

from vitquant.export.onnx.integer.arithmetic import Rescaled, constant, rescale, type_for
from vitquant.export.onnx.integer.step import NodeWriter
from vitquant.program.values import Array, Value

INPUT = "image"
"""What the graph takes."""

SIGN = 128
"""Added to signed bytes, it makes them unsigned."""


@dataclass(frozen=True)
class GraphValues:
    """The program's values, and how their tensors are called in the graph, whose outputs have names of their own."""

    values: Mapping[str, Value]
    image: str
    outputs: Collection[str] = ()

    def __getitem__(self, name: str) -> Value:
        return self.values[name]

    def tensor(self, name: str) -> str:
        """The value's own name, but where it would be that of the graph's input or output."""
        if name == self.image:
            return INPUT
        return f"{name}/codes" if name == INPUT or name in self.outputs else name


Emit: TypeAlias = Callable[[NodeWriter, Any, GraphValues], None]
"""Adds the nodes of an operation."""


def centred(
    step: NodeWriter, x: str, value: Value, multiplier: Array, shift: Array, part: slice = slice(None)
) -> Rescaled:
    """``x`` less its zero point, rescaled; ``part`` are the channels that ``x`` has of the value."""
    zero = value.spread(value.zero_point)[part].astype(np.int64)
    return rescale(
        step, x, multiplier, -zero * multiplier.astype(np.int64), shift, max(abs(value.low), abs(value.high))
    )


def stored(step: NodeWriter, x: Rescaled, addend: Array, value: Value, known: GraphValues) -> None:
    """``x + addend``, clamped to the value's codes, in its type and under its name."""
    plus = constant(addend) - x.offset
    limit = x.limit + int(np.abs(plus).max())
    y = step.node("Add", x.widened(step, limit), constant(plus, type_for(limit)))
    y = step.node("Clip", y, *(constant(end, type_for(limit)) for end in (value.low, value.high)))
    step.cast(y, value.dtype, known.tensor(value.name))


def requantized(
    step: NodeWriter,
    x: str,
    op: Any,
    known: GraphValues,
    limit: Array | int,
    *,
    bias: Array | None = None,
    table: Array | None = None,
) -> None:
    """Accumulators, and a bias, to codes: rescale, add the zero point and a table, clamp. ``limit`` bounds the
    accumulators.
    """
    out: Value = op.out
    multiplier, shift = along(out, op.multiplier), along(out, op.shift)
    addend = constant(0) if bias is None else bias * multiplier.astype(np.int64)
    y = rescale(step, x, multiplier, addend, shift, limit)
    zero = along(out, out.spread(out.zero_point))
    stored(step, y, zero if table is None else zero + table, out, known)


def along(value: Value, per_place: Array) -> Array:
    """One number for each channel, or for each head of scores, in the form that meets the tensor."""
    return per_place.reshape(-1, 1, 1) if len(value.shape) == 3 and len(per_place) > 1 else per_place


def as_bytes(step: NodeWriter, x: str, value: Value) -> str:
    """Codes of one byte as unsigned ones."""
    if value.dtype == np.uint8:
        return x
    return step.node("BitwiseXor", step.cast(x, "uint8"), constant([SIGN], "uint8"))


def as_int32(step: NodeWriter, x: str, value: Value) -> str:
    """Codes less their zero point."""
    wide = step.cast(x, "int32")
    return wide if value.is_plain else step.node("Sub", wide, along(value, value.spread(value.zero_point)))
