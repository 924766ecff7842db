"""The operations of attention."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from vitquant.export.onnx.heads import heads_layout
from vitquant.export.onnx.integer.arithmetic import BIT_LENGTH, constant, look_up, reached
from vitquant.export.onnx.integer.shared import SIGN, Emit, GraphValues, as_bytes, as_int32, requantized
from vitquant.export.onnx.integer.step import NodeWriter
from vitquant.numerics.limits import DIFFUSION_BITS, EXPONENTIAL_BITS, INT32_MAX
from vitquant.numerics.softmax import LOG2_MAX, RECIPROCAL_BITS, SHARE_BITS
from vitquant.program import ops
from vitquant.program.values import Array, Value


def byte_zero(value: Value) -> int | None:
    """The zero point of the codes as unsigned bytes, if they are bytes and have only one."""
    zeros = np.unique(value.zero_point)
    if value.dtype.itemsize > 1 or len(zeros) > 1:
        return None
    return int(zeros[0]) + (SIGN if value.dtype == np.int8 else 0)


def product(
    step: NodeWriter, known: GraphValues, a: str, b: str, layout_a: Callable[[str], str], layout_b: Callable[[str], str]
) -> str:
    """``(a - zero_a) @ (b - zero_b)`` of values that their layouts make matrices, int32."""
    (x, y), (zero_x, zero_y) = (known[a], known[b]), (byte_zero(known[a]), byte_zero(known[b]))
    if zero_x is not None and zero_y is not None:
        left, right = (as_bytes(step, known.tensor(v.name), v) for v in (x, y))
        zeros = (constant(z, "uint8") for z in (zero_x, zero_y))
        return step.node("MatMulInteger", layout_a(left), layout_b(right), *zeros)
    left, right = (as_int32(step, known.tensor(v.name), v) for v in (x, y))
    return step.node("MatMul", layout_a(left), layout_b(right))


def split_heads(
    step: NodeWriter, value: Value, heads: int, windows: int, *, transposed: bool = False
) -> Callable[[str], str]:
    """Tokens to heads, as :func:`heads_layout` tells."""
    sizes, perm = heads_layout(value.shape, heads, windows, transposed=transposed)
    return lambda x: step.node("Transpose", step.reshape(x, *sizes), perm=perm)


def distances(step: NodeWriter, x: str, heads: int, table: Array) -> str:
    """Row maximum less code, int32, plus where the table of the score's head begins."""
    codes = step.cast(x, "int32")
    top = step.reduce("ReduceMax", codes)
    if len(table) > 1:
        begins = np.arange(heads) // (heads // len(table)) * table.shape[1]
        top = step.node("Add", top, constant(begins, "int32").reshape(-1, 1, 1))
    return step.node("Sub", top, codes)


def scores(step: NodeWriter, op: ops.Scores, known: GraphValues) -> None:
    """Q and K, head by head, each query with the keys of its window."""
    q, k, heads = known[op.q], known[op.k], op.out.shape[0]
    limit = q.shape[1] // heads * q.centred_limit * k.centred_limit
    layouts = (split_heads(step, v, heads, op.windows, transposed=v_is_k) for v, v_is_k in ((q, False), (k, True)))
    acc = product(step, known, op.q, op.k, *layouts)
    if op.windows > 1:
        acc = step.reshape(acc, *op.out.shape)
    table = None
    if not op.adds_nothing:
        tables, rows, _ = op.table.shape
        table = np.tile(op.table.astype(np.int64).repeat(heads // tables, 0), (1, op.out.shape[1] // rows, 1))
    requantized(step, acc, op, known, limit, table=table)


def softmax_row(step: NodeWriter, op: ops.SoftmaxRow, known: GraphValues) -> None:
    """Exponentials by the distance from the row's maximum."""
    index = distances(step, known.tensor(op.x), op.out.shape[0], op.table)
    look_up(step, op.table.astype(op.out.dtype), index, op.out.shape, known.tensor(op.out.name))


def softmax_diffusion(step: NodeWriter, op: ops.SoftmaxDiffusion, known: GraphValues) -> None:
    """Differences of the rounded running sums of exponentials."""
    index = distances(step, known.tensor(op.x), op.out.shape[0], op.table)
    fits = op.out.shape[2] * int(op.table.max()) + (1 << DIFFUSION_BITS) <= INT32_MAX
    signed, unsigned = ("int32", "uint32") if fits else ("int64", "uint64")
    e = look_up(step, op.table.astype(signed), index, op.out.shape)
    after = step.node("CumSum", e, constant(-1))
    after = step.node("Add", after, constant([1 << (DIFFUSION_BITS - 1)], signed))
    places = constant([DIFFUSION_BITS], unsigned)
    after, before = (
        step.cast(step.node("BitShift", step.cast(x, unsigned), places, direction="RIGHT"), signed)
        for x in (after, step.node("Sub", after, e))
    )
    step.cast(step.node("Sub", after, before), op.out.dtype.name, known.tensor(op.out.name))


def softmax_uniform(step: NodeWriter, op: ops.SoftmaxUniform, known: GraphValues) -> None:
    """Shares of exponentials in their row, on an affine grid."""
    index = distances(step, known.tensor(op.x), op.out.shape[0], op.table)
    e = look_up(step, op.table, index, op.out.shape)
    total = step.cast(step.reduce("ReduceSum", e), "int64")
    share = step.node("Mul", step.cast(e, "int64"), step.node("Div", constant([2**RECIPROCAL_BITS]), total))
    places = constant([RECIPROCAL_BITS - SHARE_BITS], "uint64")
    share = step.node("BitShift", step.cast(share, "uint64"), places, direction="RIGHT")
    requantized(step, share, op, known, 2**SHARE_BITS)


def softmax_log2(step: NodeWriter, op: ops.SoftmaxLog2, known: GraphValues) -> None:
    """Shares of exponentials in their row, as powers of two.

    With ``b`` and ``t`` the numbers of bits of an exponential ``e`` and of its row's sum ``s``, ``s / e`` lies within
    ``2^(t - b - 1)`` and ``2^(t - b + 1)``, so only two thresholds ``2^(k + 1/2)`` are open. They are compared by the
    squares of both numbers moved to full length, ``e`` to 15 bits and ``s`` to 31.
    """
    index = distances(step, known.tensor(op.x), op.out.shape[0], op.table)
    lengths = BIT_LENGTH(op.table.astype(object)).astype(np.int32)
    full = op.table.astype(np.int64) << (EXPONENTIAL_BITS - lengths)
    nothing = op.table == 0  # so many bits less than any sum that its code is beyond the last
    b = look_up(step, np.where(nothing, -64, lengths).astype(np.int32), index, op.out.shape)
    squares = look_up(step, (full**2).astype(np.int32), index, op.out.shape)
    exponentials = look_up(step, op.table, index, op.out.shape)
    total = step.reduce("ReduceSum", exponentials)
    t = reached(step, total, [2**j for j in range(31)], "int32")
    total = step.node("Mul", step.cast(total, "int64"), step.node("Gather", 1 << (31 - np.arange(32)), t))
    total = step.node("Mul", total, total)
    q = step.node("Sub", step.node("Sub", t, constant([1], "int32")), b)
    for bits in (31, 33):
        threshold = step.node("Div", step.node("Add", total, constant([2**bits - 1])), constant([2**bits]))
        below = step.node("Less", squares, step.cast(threshold, "int32"))
        q = step.node("Add", q, step.cast(below, "int32"))
    q = step.node("Clip", q, constant(0, "int32"), constant(op.last + 1, "int32"))
    weights = np.append(1 << (LOG2_MAX - np.arange(op.last + 1)), 0).astype(op.out.dtype)
    look_up(step, weights, q, op.out.shape, known.tensor(op.out.name))


def mix(step: NodeWriter, op: ops.Mix, known: GraphValues) -> None:
    """The weights times V, divided by the row's sum where they are no shares yet."""
    p, v = known[op.p], known[op.v]
    heads, tokens, keys = p.shape

    def by_window(x: str) -> str:
        return x if op.windows == 1 else step.reshape(x, heads, op.windows, tokens // op.windows, keys)

    acc = product(step, known, op.p, op.v, by_window, split_heads(step, v, heads, op.windows))
    if op.windows > 1:
        acc = step.reshape(acc, heads, tokens, v.shape[1] // heads)
    limit = min(keys * p.centred_limit * v.centred_limit, INT32_MAX)
    if op.normalize:
        total = step.cast(step.reduce("ReduceSum", step.cast(known.tensor(op.p), "int32")), "int64")
        reciprocal = step.node("Div", constant([2**op.reciprocal_bits]), total)
        # The products stay below 2^52, the quotients below centred_limit * 2^fraction_bits.
        places = op.reciprocal_bits - op.fraction_bits
        acc = step.node("Add", step.node("Mul", step.cast(acc, "int64"), reciprocal), constant([2**60]))
        acc = step.node("BitShift", step.cast(acc, "uint64"), constant([places], "uint64"), direction="RIGHT")
        acc = step.node("Sub", step.cast(acc, "int64"), constant([2 ** (60 - places)]))
        limit = (v.centred_limit << op.fraction_bits) + 1
    acc = step.reshape(step.node("Transpose", acc, perm=[0, 2, 1, 3]), *op.out.shape)
    requantized(step, acc, op, known, limit)


EMIT: Mapping[type[ops.Operation], Emit] = {
    ops.Scores: scores,
    ops.SoftmaxRow: softmax_row,
    ops.SoftmaxDiffusion: softmax_diffusion,
    ops.SoftmaxUniform: softmax_uniform,
    ops.SoftmaxLog2: softmax_log2,
    ops.Mix: mix,
}
