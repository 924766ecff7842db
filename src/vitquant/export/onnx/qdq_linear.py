"""A linear layer of a QDQ graph: integer weights, and a bias that carries the zero points."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from torch import Tensor

from vitquant.export.onnx.graph import OnnxGraph
from vitquant.export.onnx.qdq_targets import QdqFormat, Runtime
from vitquant.layers import QuantLinear
from vitquant.numerics.limits import INT32_MAX
from vitquant.program.values import Array


def array(x: Tensor) -> Array:
    """In float64, which holds all codes and float32 numbers exactly."""
    numbers: Array = x.detach().cpu().double().numpy()
    return numbers


@dataclass(frozen=True)
class Rows:
    """Some rows of a linear layer, ``scale * ((codes - zero) x) + bias`` for the tensor ``x`` that stands before it.

    ``codes`` ``[out, in]`` are whole numbers, or float weights if ``dtype``, their type in the file, is ``None``. The
    other arrays are ``[out]``.
    """

    codes: Array
    zero: Array
    scale: Array
    bias: Array
    dtype: str | None

    def __getitem__(self, rows: slice) -> Rows:
        return Rows(self.codes[rows], self.zero[rows], self.scale[rows], self.bias[rows], self.dtype)

    def in_format(self, where: QdqFormat | None) -> Rows:
        """The same with the gain and offset multiplied in that the result has next."""
        if where is None:
            return self
        return replace(self, scale=self.scale * where.gain, bias=self.bias * where.gain + where.offset)


def rows_of(layer: QuantLinear, source: QdqFormat | None, runtime: Runtime) -> Rows:
    """All rows of a layer, for a tensor with the gain and offset of ``source``.

    Without ``source`` for the real tensor, divided by the layer's ``input_scale`` if it has one.
    """
    if not layer.weight.active:
        weight, bias = (array(t) for t in layer.effective())
        return Rows(weight, np.zeros(len(bias)), np.ones(len(bias)), bias, None)
    params = layer.weight.require_params()
    codes, bias = array(layer.weight_codes), array(layer.bias_hat)
    scale, zero = (np.broadcast_to(array(t).reshape(-1), bias.shape) for t in (params.scale, params.zero_point))
    if source is not None:
        bias = bias - scale * ((codes - zero[:, None]) @ np.broadcast_to(source.offset, codes.shape[1]))
    return Rows(codes, zero, scale, bias, runtime.weight_dtype(params.qmin, params.qmax))


def gemm(
    graph: OnnxGraph, layer: str, part: str, x: str, source: QdqFormat | None, rows: Rows, *, integer_bias: bool
) -> str:
    """The product as a ``Gemm`` on rows ``[..., in]``; ``source`` is how ``x`` was rounded."""
    weight = write_weight(graph, f"{layer}.weight{part}", rows)
    integers = integer_bias and source is not None and source.is_8_bit and rows.dtype in ("int8", "uint8")
    unit = source.scale * rows.scale if source is not None and integers else None
    bias = write_bias(graph, f"{layer}.bias{part}", rows.bias, unit)
    return graph.node("Gemm", x, weight, bias, name=f"{layer}{part}/Gemm", transB=1)


def write_weight(graph: OnnxGraph, name: str, rows: Rows) -> str:
    """Integers and their DequantizeLinear, one scale a row."""
    if rows.dtype is None:
        return graph.floats(name, (rows.codes - rows.zero[:, None]) * rows.scale[:, None])
    codes, zero = (
        graph.codes(f"{name}/codes", rows.codes, rows.dtype),
        graph.codes(f"{name}/zero_point", rows.zero, rows.dtype),
    )
    scale = graph.floats(f"{name}/scale", rows.scale)
    return graph.node("DequantizeLinear", codes, scale, zero, name=f"{name}/DequantizeLinear", axis=0)


def write_bias(graph: OnnxGraph, name: str, bias: Array, unit: Array | None) -> str:
    """Float, or int32 in units of the accumulators, as integer kernels take it."""
    codes = None if unit is None else (bias / unit).round()
    if codes is None or abs(codes).max() > INT32_MAX:
        return graph.floats(name, bias)
    scale = graph.floats(f"{name}/scale", unit)
    return graph.node(
        "DequantizeLinear", graph.codes(f"{name}/codes", codes, "int32"), scale, name=f"{name}/DequantizeLinear", axis=0
    )
