"""The operations of attention."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from vitquant.executors.reference.tensors import (
    TORCH_TYPES,
    Constants,
    Execute,
    Inputs,
    Prepare,
    requantized,
    stored,
    with_zero,
)
from vitquant.numerics.matmul import int_matmul
from vitquant.numerics.requantize import rescale
from vitquant.numerics.softmax import diffused, divide, log2_weights, look_up, shares
from vitquant.numerics.tokens import merge_heads, merge_windows, split_heads, split_windows
from vitquant.program import ops


def scores(op: ops.Scores, c: Constants, x: Inputs) -> Tensor:
    """Q and K, head by head, each query with the keys of its window."""
    q, k = (split_windows(split_heads(x.centred(name), op.out.shape[0]), op.windows) for name in (op.q, op.k))
    acc = merge_windows(int_matmul(q, k.transpose(-1, -2)))
    if "table" not in c:
        return requantized(acc, op, c)
    y = rescale(acc, c["multiplier"], c["shift"], c["start"]) + c["table"]
    return stored(with_zero(y, op, c), op.out)


def prepare_scores(op: ops.Scores, c: dict[str, Tensor]) -> dict[str, Tensor]:
    """The table for each head and query, ``[H, N, 1 or M / windows]``; without one that adds nothing."""
    table = c.pop("table")
    if op.adds_nothing:
        return c
    heads, rows, _ = table.shape
    heads_each, repeats = op.out.shape[0] // heads, op.out.shape[1] // rows
    return {**c, "table": table.long().repeat_interleave(heads_each, 0).repeat(1, repeats, 1)}


def softmax_row(op: ops.SoftmaxRow, c: Constants, x: Inputs) -> Tensor:
    """Exponentials by the distance from the row's maximum."""
    return look_up(c["table"].to(TORCH_TYPES[op.out.dtype.name]), x[op.x])


def softmax_diffusion(op: ops.SoftmaxDiffusion, c: Constants, x: Inputs) -> Tensor:
    """Differences of the rounded running sums of exponentials."""
    return diffused(look_up(c["table"], x[op.x]), int(op.table.max())).to(TORCH_TYPES[op.out.dtype.name])


def softmax_uniform(op: ops.SoftmaxUniform, c: Constants, x: Inputs) -> Tensor:
    """Shares of exponentials in their row, on an affine grid."""
    return requantized(shares(look_up(c["table"], x[op.x])), op, c)


def softmax_log2(op: ops.SoftmaxLog2, c: Constants, x: Inputs) -> Tensor:
    """Shares of exponentials in their row, as powers of two."""
    return log2_weights(look_up(c["table"], x[op.x]), op.last).to(TORCH_TYPES[op.out.dtype.name])


def mix(op: ops.Mix, c: Constants, x: Inputs) -> Tensor:
    """The weights times V, divided by the row's sum where they are no shares yet."""
    p = x.centred(op.p)
    v = split_windows(split_heads(x.centred(op.v), p.shape[1]), op.windows)
    acc = merge_windows(int_matmul(split_windows(p, op.windows), v))
    if op.normalize:
        total = p.sum(-1, keepdim=True, dtype=torch.int64)
        acc = divide(acc, total, op.reciprocal_bits, op.fraction_bits)
    return requantized(merge_heads(acc), op, c)


EXECUTE: Mapping[type[ops.Operation], Execute] = {
    ops.Scores: scores,
    ops.SoftmaxRow: softmax_row,
    ops.SoftmaxDiffusion: softmax_diffusion,
    ops.SoftmaxUniform: softmax_uniform,
    ops.SoftmaxLog2: softmax_log2,
    ops.Mix: mix,
}

PREPARE: Mapping[type[ops.Operation], Prepare] = {ops.Scores: prepare_scores}
