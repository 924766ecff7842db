"""Integer programs as ONNX: standard operators on integers, the same bits as the reference, no float anywhere.

Products of bytes are ``MatMulInteger`` of *unsigned* bytes on both sides. Kernels for unsigned by signed bytes add up
pairs of products in 16 bits that saturate on x86 without VNNI, as the documentation of ONNX Runtime's quantization
tells, and a signed left side has no fast one on most machines; unsigned by unsigned is exact everywhere. Wider operands
go through ``MatMul`` of int32. What else ONNX lacks is in :mod:`vitquant.export.onnx.arithmetic`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from vitquant.export.onnx import attention, operations
from vitquant.export.onnx.graph import Graph, Tensor
from vitquant.export.onnx.operations import INPUT, OUTPUT, Known
from vitquant.export.onnx.step import Step
from vitquant.program import ops
from vitquant.program.program import IntegerProgram

OPSET = 18
"""The first operator set with BitwiseXor."""

METADATA, LOGITS_SCALE = "vitquant", "logits_scale"
"""Keys of the model's metadata: the program's metadata (JSON), and the scale of the logits (JSON list, float32)."""


def export_integer(program: IntegerProgram) -> Any:
    """The program as an ``onnx.ModelProto``.

    Input ``image``: uint8 ``[batch, C, h, w]``. Output ``logits``: int32 ``[batch, K]``, the codes that
    :class:`~vitquant.executors.reference.Reference` gives; their scale is in the model's metadata. Tensors have the
    names of the program's values, and their types.

    Raises:
        MissingDependencyError: ``onnx`` is not installed.
        ProgramError: a LayerNorm needs more than 63 bits; no compiled program does.
    """
    graph, image, output = Graph(OPSET), program.image, program.output_value
    known = Known(program.values(), image.name)
    for op in program.operations:
        EMIT[type(op)](Step(graph, known.tensor(op.out.name)), op, known)
    step = Step(graph, OUTPUT)
    logits = step.node("Cast", known.tensor(output.name), to=np.dtype("int32"))
    if not output.is_plain:
        logits = step.node("Sub", logits, output.spread(output.zero_point))
    step.reshape(logits, output.shape[1], out=OUTPUT)
    scale = [float(s) for s in (output.scale if len(output.scale) == 1 else output.spread(output.scale))]
    return graph.model(
        str(program.metadata.get("model", "vit")),
        [Tensor(INPUT, np.dtype("uint8"), ("batch", *image.shape))],
        [Tensor(OUTPUT, np.dtype("int32"), ("batch", output.shape[1]))],
        {METADATA: json.dumps(dict(program.metadata)), LOGITS_SCALE: json.dumps(scale)},
    )


EMIT: Mapping[type[ops.Operation], Callable[[Step, Any, Known], None]] = {
    ops.Patches: operations.patches,
    ops.Linear: operations.linear,
    ops.Embed: operations.embed,
    ops.LayerNorm: operations.layernorm,
    ops.Requantize: operations.requantize,
    ops.Scores: attention.scores,
    ops.SoftmaxRow: attention.softmax_row,
    ops.SoftmaxUniform: attention.softmax_uniform,
    ops.SoftmaxLog2: attention.softmax_log2,
    ops.Mix: attention.mix,
    ops.Add: operations.add,
    ops.Lookup: operations.lookup,
    ops.Take: operations.take,
    ops.Pool: operations.pool,
}
