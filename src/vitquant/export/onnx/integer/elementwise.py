"""Operations on each code by itself."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from vitquant.export.onnx.integer.arithmetic import Rescaled, look_up
from vitquant.export.onnx.integer.shared import Emit, GraphValues, as_int32, centred, requantized, stored
from vitquant.export.onnx.integer.step import NodeWriter
from vitquant.program import ops


def requantize(step: NodeWriter, op: ops.Requantize, known: GraphValues) -> None:
    """Some channels of a value, on another grid."""
    x, out = known[op.x], op.out
    part = slice(op.start, op.start + out.shape[-1])
    tensor = step.slice(known.tensor(op.x), 2, part.start, part.stop)
    y = centred(step, tensor, x, op.multiplier, op.shift, part)
    stored(step, y, out.spread(out.zero_point), out, known)


def add(step: NodeWriter, op: ops.Add, known: GraphValues) -> None:
    """Both addends at the scale of the sum."""
    out = op.out
    a = centred(step, known.tensor(op.a), known[op.a], op.multiplier_a, op.shift_a)
    b = centred(step, known.tensor(op.b), known[op.b], op.multiplier_b, op.shift_b)
    limit = a.limit + b.limit
    total = Rescaled(step.node("Add", a.widened(step, limit), b.widened(step, limit)), a.offset + b.offset, limit)
    stored(step, total, out.spread(out.zero_point), out, known)


def multiply(step: NodeWriter, op: ops.Multiply, known: GraphValues) -> None:
    """The product of both, code by code."""
    a, b = (as_int32(step, known.tensor(name), known[name]) for name in (op.a, op.b))
    limit = known[op.a].centred_limit * known[op.b].centred_limit
    requantized(step, step.node("Mul", a, b), op, known, limit)


def lookup(step: NodeWriter, op: ops.Lookup, known: GraphValues) -> None:
    """A table, or one for each kind of channel."""
    index = step.cast(known.tensor(op.x), "int32")
    begins = op.table_of * op.tables.shape[1] - known[op.x].low
    if begins.any():
        index = step.node("Add", index, begins.astype(np.int32))
    look_up(step, op.tables, index, op.out.shape, known.tensor(op.out.name))


EMIT: Mapping[type[ops.Operation], Emit] = {
    ops.Requantize: requantize,
    ops.Add: add,
    ops.Multiply: multiply,
    ops.Lookup: lookup,
}
