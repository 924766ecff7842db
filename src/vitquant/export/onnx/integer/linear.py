"""The linear layer."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from vitquant.export.onnx.integer.arithmetic import constant
from vitquant.export.onnx.integer.shared import SIGN, Emit, GraphValues, as_bytes, requantized
from vitquant.export.onnx.integer.step import NodeWriter
from vitquant.program import ops
from vitquant.program.checks import accumulator_limit


def linear(step: NodeWriter, op: ops.Linear, known: GraphValues) -> None:
    """Products of codes; the bias is in the addend of the requantization."""
    x, weight = known[op.x], np.ascontiguousarray(op.weight.T)
    tensor = known.tensor(op.x)
    if x.dtype.itemsize == 1 and weight.dtype == np.int8:
        unsigned = (weight.astype(np.int16) + SIGN).astype(np.uint8)
        zeros = (constant(z, "uint8") for z in (SIGN if x.dtype == np.int8 else 0, SIGN))
        acc = step.node("MatMulInteger", as_bytes(step, tensor, x), unsigned, *zeros)
    else:
        # The file keeps the narrow weights; runtimes widen constants when they load it.
        acc = step.node("MatMul", step.cast(tensor, "int32"), step.node("Cast", weight, to=np.dtype("int32")))
    requantized(step, acc, op, known, accumulator_limit(op.weight, op.bias, x), bias=op.bias)


EMIT: Mapping[type[ops.Operation], Emit] = {
    ops.Linear: linear,
}
