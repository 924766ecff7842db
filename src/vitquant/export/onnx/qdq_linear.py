"""A linear layer of a QDQ graph: integer weights, and a bias that carries the zero points."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from torch import Tensor

from vitquant.export.onnx.graph import OnnxGraph
from vitquant.export.onnx.qdq_targets import QdqFormat, Runtime
from vitquant.layers import QuantLinear
from vitquant.numerics.limits import INT32_MAX
from vitquant.numerics.packing import multipliers
from vitquant.program.values import Array


def array(x: Tensor) -> Array:
    """In float64, which holds all codes and float32 numbers exactly."""
    numbers: Array = x.detach().cpu().double().numpy()
    return numbers


@dataclass(frozen=True)
class Rows:
    """Some rows of a linear layer, ``scale * ((codes - zero) x) + bias`` for the tensor ``x`` that stands before it.

    ``codes`` ``[out, in]`` are whole numbers, or float weights if ``dtype``, their type in the file, is ``None``. The
    other arrays are ``[out]``. With ``multipliers`` ``[out, groups]``, one per ``group`` neighbouring inputs, the codes
    are multiples of them, and ``dtype`` holds the quotients.
    """

    codes: Array
    zero: Array
    scale: Array
    bias: Array
    dtype: str | None
    multipliers: Array | None = None
    group: int = 0

    def __getitem__(self, rows: slice) -> Rows:
        multipliers = None if self.multipliers is None else self.multipliers[rows]
        codes, zero, scale, bias = (a[rows] for a in (self.codes, self.zero, self.scale, self.bias))
        return replace(self, codes=codes, zero=zero, scale=scale, bias=bias, multipliers=multipliers)

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
    packing = layer.packing
    if packing.group and runtime.takes_blocks(packing):
        found = multipliers(layer.weight_codes.cpu().numpy(), packing).astype(np.float64)
        return Rows(codes, zero, scale, bias, "int4", found, packing.group)
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
    """Integers and their DequantizeLinear, one scale per row, or per group of a row."""
    if rows.dtype is None:
        return graph.floats(name, (rows.codes - rows.zero[:, None]) * rows.scale[:, None])
    if rows.multipliers is not None:
        return write_blocks(graph, name, rows, rows.multipliers)
    codes, zero = (
        graph.codes(f"{name}/codes", rows.codes, rows.dtype),
        graph.codes(f"{name}/zero_point", rows.zero, rows.dtype),
    )
    scale = graph.floats(f"{name}/scale", rows.scale)
    return graph.node("DequantizeLinear", codes, scale, zero, name=f"{name}/DequantizeLinear", axis=0)


def write_blocks(graph: OnnxGraph, name: str, rows: Rows, multipliers: Array) -> str:
    """Weights with groups, symmetric: the quotients, and a scale per group."""
    quotients = rows.codes / np.repeat(multipliers, rows.group, axis=1)[:, : rows.codes.shape[1]]
    codes = graph.codes(f"{name}/codes", quotients, str(rows.dtype))
    scale = graph.floats(f"{name}/scale", multipliers * rows.scale[:, None])
    node = f"{name}/DequantizeLinear"
    return graph.node("DequantizeLinear", codes, scale, name=node, axis=1, block_size=rows.group)


def write_bias(graph: OnnxGraph, name: str, bias: Array, unit: Array | None) -> str:
    """Float, or int32 in units of the accumulators, as integer kernels take it."""
    codes = None if unit is None else (bias / unit).round()
    if codes is None or abs(codes).max() > INT32_MAX:
        return graph.floats(name, bias)
    scale = graph.floats(f"{name}/scale", unit)
    return graph.node(
        "DequantizeLinear", graph.codes(f"{name}/codes", codes, "int32"), scale, name=f"{name}/DequantizeLinear", axis=0
    )
