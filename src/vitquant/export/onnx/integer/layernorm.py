"""LayerNorm."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from vitquant.export.onnx.integer.arithmetic import constant, half_length, isqrt, rescale
from vitquant.export.onnx.integer.shared import Emit, GraphValues, stored
from vitquant.export.onnx.integer.step import NodeWriter
from vitquant.numerics.layernorm import FRACTION, RECIPROCAL
from vitquant.program import ops


def layernorm(step: NodeWriter, op: ops.LayerNorm, known: GraphValues) -> None:
    """As told in :mod:`vitquant.numerics.layernorm`; what depends on a token's magnitude comes from small tables."""
    value, channels = known[op.x], op.out.shape[-1]
    # Codes counted from the lowest one: the mean goes anyway, and the sums fit 32 bits.
    x = step.node("Sub", step.cast(known.tensor(op.x), "int32"), constant(value.low, "int32"))
    x = step.node("Sub", step.node("Mul", x, constant(channels, "int32")), step.reduce("ReduceSum", x))
    x = step.cast(x, "int64")
    squares = step.reduce("ReduceSum", step.node("Mul", x, x))
    power = step.node("Add", step.node("Mul", squares, constant([2**op.headroom])), op.epsilon)
    length = half_length(step, power)
    k = np.minimum(31 - np.arange(32), 30 - op.headroom // 2)
    power = step.node("Mul", power, step.node("Gather", constant(4**k), length))
    radicand = step.node("Max", step.node("Div", power, constant([channels])), constant([1]))
    reciprocal = step.node("Div", constant([2**RECIPROCAL]), isqrt(step, radicand))
    shift = constant(RECIPROCAL - FRACTION - (k + op.headroom // 2))
    # |x| / deviation <= sqrt(channels) <= 2^6, so the products stay below 2^61.
    y = step.node("Mul", x, reciprocal)
    y = step.node("Add", y, step.node("Gather", (1 << 61) + (1 << (shift - 1)), length))
    places = step.node("Gather", shift.astype(np.uint64), length)
    y = step.cast(step.node("BitShift", step.cast(y, "uint64"), places, direction="RIGHT"), "int64")
    y = step.node("Sub", y, step.node("Gather", 1 << (61 - shift), length))
    limit = (math.isqrt(channels) + 1) << FRACTION
    out = op.out
    scaled = rescale(step, y, op.gain, op.offset, op.shift, limit)
    stored(step, scaled, out.spread(out.zero_point), out, known)


EMIT: Mapping[type[ops.Operation], Emit] = {
    ops.LayerNorm: layernorm,
}
