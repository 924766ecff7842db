"""Rotary position embedding."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from vitquant.export.onnx.integer.shared import Emit, GraphValues, as_int32, requantized
from vitquant.export.onnx.integer.step import NodeWriter
from vitquant.program import ops


def rotary(step: NodeWriter, op: ops.Rotary, known: GraphValues) -> None:
    """Each channel turned together with its partner."""
    x, channels, width = known[op.x], op.out.shape[1], len(op.partner)
    first = np.arange(channels) // width * width
    cos, sin = (np.tile(table.astype(np.int32), channels // width) for table in (op.cos, op.sin))
    codes = as_int32(step, known.tensor(op.x), x)
    partners = step.node("Gather", codes, first + np.tile(op.partner, channels // width), axis=2)
    turned = step.node("Add", step.node("Mul", codes, cos), step.node("Mul", partners, sin))
    limit = x.centred_limit * int((np.abs(cos.astype(np.int64)) + np.abs(sin.astype(np.int64))).max())
    requantized(step, turned, op, known, limit)


EMIT: Mapping[type[ops.Operation], Emit] = {
    ops.Rotary: rotary,
}
