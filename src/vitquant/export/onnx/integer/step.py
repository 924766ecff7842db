"""The nodes of one operation of an integer program."""

from __future__ import annotations

from typing import Any

import numpy as np

from vitquant.export.onnx.graph import OnnxGraph
from vitquant.program.values import Array


class NodeWriter:
    """Adds the nodes of one operation to a graph; what it names begins with ``prefix``.

    Inputs of nodes are names, or arrays that become constants; equal ones are stored once.
    """

    def __init__(self, graph: OnnxGraph, prefix: str) -> None:
        self.graph, self.prefix = graph, prefix
        self._count = 0

    def node(self, operator: str, *inputs: str | Array, out: str = "", **attributes: Any) -> str:
        """Add a node, and give the name of what it makes: ``out``, or one of its own."""
        self._count += 1
        own = f"{self.prefix}/{operator}_{self._count}"
        names = (x if isinstance(x, str) else self.graph.shared(f"{own}/{i}", x) for i, x in enumerate(inputs))
        return self.graph.node(operator, *names, name=out or own, **attributes)

    def cast(self, x: str, dtype: str | np.dtype[Any], out: str = "") -> str:
        """Integers in another type; what does not fit loses its high bits."""
        return self.node("Cast", x, out=out, to=np.dtype(dtype))

    def reshape(self, x: str, *shape: int, out: str = "") -> str:
        """Another shape; the batch stays as it is."""
        return self.node("Reshape", x, np.array((0, *shape), dtype=np.int64), out=out)

    def reduce(self, operator: str, x: str, axis: int = -1) -> str:
        """``ReduceSum`` or ``ReduceMax`` along an axis that stays, with length 1."""
        return self.node(operator, x, np.array([axis], dtype=np.int64), keepdims=1)

    def slice(self, x: str, axis: int, start: int, stop: int, out: str = "") -> str:
        """Places ``start .. stop`` of an axis."""
        return self.node("Slice", x, *(np.array([i], dtype=np.int64) for i in (start, stop, axis)), out=out)
