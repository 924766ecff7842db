"""The graph as a whole: one input, named outputs, and between them the nodes of each operation."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from vitquant.export.onnx.graph import GraphTensor, OnnxGraph
from vitquant.export.onnx.integer import attention, elementwise, layernorm, linear, rotary, tokens
from vitquant.export.onnx.integer.shared import INPUT, Emit, GraphValues
from vitquant.export.onnx.integer.step import NodeWriter
from vitquant.program import ops
from vitquant.program.program import IntegerProgram, Output
from vitquant.program.values import Value

OPSET = 18
"""The first operator set with BitwiseXor."""

METADATA, SCALES = "vitquant", "_scale"
"""The key of the program's metadata (JSON) in those of the model; and what follows an output's name in the key of its
scale (JSON list, float32), as in ``logits_scale``."""

FAMILIES = (tokens, linear, layernorm, elementwise, rotary, attention)

EMIT: Mapping[type[ops.Operation], Emit] = {kind: emit for family in FAMILIES for kind, emit in family.EMIT.items()}


def export_integer(program: IntegerProgram, outputs: Sequence[str] = ()) -> Any:
    """The program as an ``onnx.ModelProto``.

    Input ``image``: uint8 ``[batch, C, h, w]``. Outputs, by default the first (``logits``): int32 ``[batch, K]``, or
    ``[batch, N, C]`` if they are not pooled, the codes that :class:`~vitquant.executors.reference.Reference` gives;
    their scales are in the model's metadata. Tensors have the names of the program's values, and their types.

    Args:
        program: compiled or loaded.
        outputs: names of those that the graph gives.

    Raises:
        ConfigError: the program has no such output.
        MissingDependencyError: ``onnx`` is not installed.
        ProgramError: a LayerNorm needs more than 63 bits; no compiled program does.
    """
    chosen = program.choose(outputs)
    graph, image, values = OnnxGraph(OPSET), program.image, program.values()
    known = GraphValues(values, image.name, [output.name for output in chosen])
    for op in program.needed(output.value for output in chosen):
        EMIT[type(op)](NodeWriter(graph, known.tensor(op.out.name)), op, known)
    tensors, scales = [], {}
    for output in chosen:
        value = values[output.value]
        tensors.append(emit_output(graph, output, value, known))
        scale = [float(s) for s in value.per_place(value.scale)]
        scales[output.name + SCALES] = json.dumps(scale)
    return graph.model(
        str(program.metadata.get("model", "vit")),
        [GraphTensor(INPUT, np.dtype("uint8"), ("batch", *image.shape))],
        tensors,
        {METADATA: json.dumps(dict(program.metadata)), **scales},
    )


def emit_output(graph: OnnxGraph, output: Output, value: Value, known: GraphValues) -> GraphTensor:
    """Codes less their zero points, as an output of the graph."""
    step = NodeWriter(graph, output.name)
    codes = step.node("Cast", known.tensor(value.name), to=np.dtype("int32"))
    if not value.is_plain:
        codes = step.node("Sub", codes, value.spread(value.zero_point))
    shape = value.shape[1:] if output.pooled else value.shape
    step.reshape(codes, *shape, out=output.name)
    return GraphTensor(output.name, np.dtype("int32"), ("batch", *shape))
