"""Points of a QDQ graph: where tensors are rounded, and what they stand for afterwards."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

import numpy as np

from vitquant.export.onnx.graph import OnnxGraph
from vitquant.export.onnx.qdq_linear import array, gemm, rows_of
from vitquant.export.onnx.qdq_targets import QdqFormat, Runtime, qdq_format
from vitquant.layers import Point, QuantLinear, QuantNorm
from vitquant.program.values import Array

ONE, ZERO = np.ones(1), np.zeros(1)

Tail: TypeAlias = tuple[int, ...]
"""Dimensions after the channels, of a constant for each channel: their sizes, or 1 for all at once."""


@dataclass(frozen=True)
class Activation:
    """A float tensor of the graph, and how it stands for the real one: ``gain * real + offset``, per channel.

    ``point`` names where it comes from; without ``format`` it was not rounded there, and is the real one. ``tail`` are
    the dimensions after the channels.
    """

    name: str
    point: str
    format: QdqFormat | None = None
    tail: Tail = ()

    @property
    def gain(self) -> Array:
        """Float64, one element or one for each channel."""
        return ONE if self.format is None else self.format.gain

    @property
    def offset(self) -> Array:
        """Likewise."""
        return ZERO if self.format is None else self.format.offset


class PointWriter:
    """Adds points and the layers that make them to a graph. Tokens of all images are rows, ``[B * N, C]``.

    ``notes`` maps the names of points to what is computed there otherwise than in the simulation.
    """

    def __init__(self, runtime: Runtime) -> None:
        self.runtime, self.graph = runtime, OnnxGraph(runtime.opset)
        self.notes: dict[str, str] = {}
        self._real: dict[str, str] = {}

    def format_of(self, point: Point | None) -> QdqFormat | None:
        """How the point's tensor is rounded; ``None`` where it stays float."""
        if point is None or not point.active:
            return None
        found = qdq_format(point.require_params(), self.runtime)
        if found is None:
            self.notes[point.name] = self.runtime.too_wide
        return found

    def round(self, point: str, name: str, where: QdqFormat | None, tail: Tail = ()) -> Activation:
        """The nodes of a point, on a tensor that has gain and offset already."""
        graph = self.graph
        if where is None:
            return Activation(name, point, tail=tail)
        if where.clip is not None:
            low, high = (graph.floats(f"{point}/{end}", v) for end, v in zip(("low", "high"), where.clip, strict=True))
            name = graph.node("Clip", name, low, high, name=f"{point}/Clip")
        grid = (
            graph.floats(f"{point}/scale", where.scale),
            graph.codes(f"{point}/zero_point", np.array(where.zero_point), where.dtype),
        )
        codes = graph.node("QuantizeLinear", name, *grid, name=f"{point}/QuantizeLinear")
        name = graph.node("DequantizeLinear", codes, *grid, name=f"{point}/DequantizeLinear")
        return Activation(name, point, where, tail)

    def quantized(
        self, point: str, name: str, where: QdqFormat | None, unit: Array = ONE, tail: Tail = ()
    ) -> Activation:
        """Round a tensor that times ``unit`` is the real one."""
        target = Activation(name, point, where)
        name = self.times(f"{point}/format", name, target.gain * unit, tail)
        name = self.plus(f"{point}/format", name, target.offset, tail)
        return self.round(point, name, where, tail)

    def real(self, x: Activation) -> str:
        """The real tensor, rounded or not."""
        if x.name not in self._real:
            name = f"{x.point}/real"  # the offset first: codes are whole, and Add next to Gelu fuses to a slower kernel
            centred = self.plus(name, x.name, -x.offset, x.tail)
            self._real[x.name] = self.times(name, centred, 1 / x.gain, x.tail)
        return self._real[x.name]

    def times(self, name: str, x: str, factor: Array, tail: Tail = ()) -> str:
        """``x`` times one number, or one for each channel; nothing is written where that changes nothing."""
        if (factor == 1).all():
            return x
        constant = self.graph.floats(f"{name}/factor", along(factor, tail))
        return self.graph.node("Mul", x, constant, name=f"{name}/Mul")

    def plus(self, name: str, x: str, term: Array, tail: Tail = ()) -> str:
        """``x`` plus one number, or one for each channel; likewise."""
        if not term.any():
            return x
        return self.graph.node("Add", x, self.graph.floats(f"{name}/term", along(term, tail)), name=f"{name}/Add")

    def factor(self, x: Activation) -> Activation:
        """One side of a product of two activations: a zero point would not leave the sum, so it goes before."""
        if not x.offset.any():
            return x
        self.notes[x.point] = (
            "rounded, but its product is computed in float, as its zero point is not 0; signed: True mends it"
        )
        return Activation(self.real(x), x.point, tail=x.tail)

    def linear(
        self, layer: QuantLinear, x: Activation, point: Point | None = None, part: str = "", rows: slice = slice(None)
    ) -> Activation:
        """A linear layer, or the ``part`` of it in some rows, rounded at its own output or else at ``point``."""
        point = layer.output if layer.output.active else point
        where, name = self.format_of(point), layer.layer_name
        weights = rows_of(layer, x.format, self.runtime)[rows].in_format(where)
        operand = x.name if layer.weight.active else self.real(x)
        if layer.weight.active and weights.dtype is None:
            self.notes[layer.weight.name] = "rounded, but stored as float; signed: True and 8 bits mend it"
        if layer.weight.active and layer.input_scale is not None and x.format is None:
            operand = self.times(f"{name}{part}/input", operand, 1 / array(layer.input_scale))
        product = gemm(
            self.graph, name, part, operand, x.format, weights, integer_bias=self.runtime.target.integer_bias
        )
        return self.round(f"{name}.output" if point is None else point.name, product, where)

    def layer_norm(self, point: QuantNorm, x: str) -> Activation:
        """A LayerNorm over the last dimension; the scales of its point are in its own gain and bias."""
        graph, norm, name, where = self.graph, point.norm, point.name, self.format_of(point)
        out = Activation(name, name, where)
        gain = graph.floats(f"{name}/gain", array(norm.weight) * out.gain)
        bias = graph.floats(f"{name}/bias", array(norm.bias) * out.gain + out.offset)
        node = f"{name}/LayerNormalization"
        return self.round(
            name, graph.node("LayerNormalization", x, gain, bias, name=node, axis=-1, epsilon=norm.eps), where
        )

    def reshape(self, x: str, name: str, *shape: int) -> str:
        """``-1`` stands for the number of images, or of what there is of them."""
        return self.graph.node("Reshape", x, self.graph.dims(f"{name}/shape", *shape), name=name)


def along(values: Array, tail: Tail) -> Array:
    """One number for each channel, in the form that meets a tensor whose channels have ``tail`` after them."""
    if not tail or len(values) == 1:
        return values
    return np.broadcast_to(values.reshape(1, -1, *[1] * len(tail)), (1, len(values), *tail))
