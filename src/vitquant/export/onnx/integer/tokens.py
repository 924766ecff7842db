"""Operations that make, choose and arrange tokens."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from vitquant.export.onnx.integer.arithmetic import Rescaled, constant
from vitquant.export.onnx.integer.shared import INPUT, Emit, GraphValues, centred, stored
from vitquant.export.onnx.integer.step import NodeWriter
from vitquant.program import ops


def patches(step: NodeWriter, op: ops.Patches, known: GraphValues) -> None:
    """Layout only."""
    channels, height, width = known[op.x].shape
    rows, columns = height // op.height, width // op.width
    x = step.reshape(known.tensor(op.x), channels, rows, op.height, columns, op.width)
    x = step.node("Transpose", x, perm=[0, 2, 4, 1, 3, 5])
    step.reshape(x, *op.out.shape, out=known.tensor(op.out.name))


def embed(step: NodeWriter, op: ops.Embed, known: GraphValues) -> None:
    """Patch tokens, rows of zeros before them, added to the table."""
    x = known[op.x]
    y = centred(step, known.tensor(op.x), x, op.multiplier, op.shift)
    zero = constant(0, y.dtype)
    padded = step.node("Pad", y.tensor, constant([0, op.prefix, 0, 0, 0, 0]), zero) if op.prefix else y.tensor
    is_patch = (np.arange(len(op.table)) >= op.prefix)[:, None]
    stored(step, Rescaled(padded, is_patch * y.offset, y.limit), op.table, op.out, known)


def constant_tokens(step: NodeWriter, op: ops.Constant, known: GraphValues) -> None:
    """The same for every image: the batch is that of the graph's input."""
    batch = step.node("Shape", INPUT, start=0, end=1)
    shape = step.node("Concat", batch, constant(op.out.shape), axis=0)
    step.node("Expand", op.table[None], shape, out=known.tensor(op.out.name))


def gather(step: NodeWriter, op: ops.Gather, known: GraphValues) -> None:
    """Rows by number, of which -1 is the zero point: a row put before all others."""
    x, index, rows = known[op.x], op.index.astype(np.int64), known.tensor(op.x)
    if index.min() < 0:
        padded = step.node("Pad", step.cast(rows, "int32"), constant([0, 1, 0, 0, 0, 0]), constant(0, "int32"))
        first = np.zeros((x.shape[0] + 1, x.shape[1]), dtype=np.int32)
        first[0] = x.spread(x.zero_point)
        rows, index = step.node("Add", padded, first), index + 1
    found = step.reshape(step.node("Gather", rows, index, axis=1), *op.out.shape)
    step.cast(found, op.out.dtype, known.tensor(op.out.name))


def take(step: NodeWriter, op: ops.Take, known: GraphValues) -> None:
    """One token."""
    step.slice(known.tensor(op.x), 1, op.token, op.token + 1, known.tensor(op.out.name))


def pool(step: NodeWriter, op: ops.Pool, known: GraphValues) -> None:
    """The rounded mean of the patch tokens, counted from the lowest code, as ``Div`` rounds towards 0."""
    x = known[op.x]
    count = x.shape[0] - op.first
    tokens = step.slice(known.tensor(op.x), 1, op.first, x.shape[0])
    total = step.cast(step.reduce("ReduceSum", step.cast(tokens, "int32"), axis=1), "int64")
    total = step.node("Add", step.node("Mul", total, constant([2])), constant([count - 2 * count * x.low]))
    mean = step.node("Add", step.node("Div", total, constant([2 * count])), constant([x.low]))
    step.cast(mean, op.out.dtype, known.tensor(op.out.name))


EMIT: Mapping[type[ops.Operation], Emit] = {
    ops.Patches: patches,
    ops.Embed: embed,
    ops.Constant: constant_tokens,
    ops.Gather: gather,
    ops.Take: take,
    ops.Pool: pool,
}
