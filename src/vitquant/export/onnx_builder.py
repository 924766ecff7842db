"""A small builder of ONNX graphs: nodes and constants are gathered, and become a model at the end.

Only :meth:`Graph.model` needs the package ``onnx``.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from vitquant.errors import MissingDependencyError
from vitquant.integer.values import Array

OPSET = 18
"""The first operator set with BitwiseXor."""

IR_VERSION = 8
"""The file format that came with the operator set, so that older runtimes read it too."""


@dataclass(frozen=True)
class Node:
    """An operator, the names of what it reads (empty for an optional input left out), and of what it makes."""

    operator: str
    inputs: tuple[str, ...]
    output: str
    attributes: Mapping[str, Any]


@dataclass(frozen=True)
class Tensor:
    """An input or output of the graph: name, element type, shape; a dimension by name is free."""

    name: str
    dtype: np.dtype[Any]
    shape: tuple[int | str, ...]


class Graph:
    """Nodes in the order in which they run, and the constants that they read."""

    def __init__(self) -> None:
        self.nodes: list[Node] = []
        self.constants: dict[str, Array] = {}
        self._names: dict[tuple[str, tuple[int, ...], bytes], str] = {}

    def constant(self, array: Array, name: str) -> str:
        """The name of a constant: ``name``, unless an equal one is there already."""
        key = array.dtype.str, array.shape, array.tobytes()
        known = self._names.setdefault(key, name)
        if known == name:
            self.constants[name] = array
        return known

    def model(self, name: str, inputs: list[Tensor], outputs: list[Tensor], metadata: Mapping[str, str]) -> Any:
        """The ``onnx.ModelProto``.

        Raises:
            MissingDependencyError: ``onnx`` is not installed.
        """
        onnx = optional("onnx")
        helper = onnx.helper

        def declared(tensor: Tensor) -> Any:
            return helper.make_tensor_value_info(
                tensor.name, helper.np_dtype_to_tensor_dtype(tensor.dtype), tensor.shape
            )

        def plain(attribute: Any) -> Any:
            return helper.np_dtype_to_tensor_dtype(attribute) if isinstance(attribute, np.dtype) else attribute

        nodes = [
            helper.make_node(
                node.operator,
                node.inputs,
                [node.output],
                name=node.output,
                **{key: plain(attribute) for key, attribute in node.attributes.items()},
            )
            for node in self.nodes
        ]
        constants = [onnx.numpy_helper.from_array(array, key) for key, array in self.constants.items()]
        graph = helper.make_graph(nodes, name, [declared(t) for t in inputs], [declared(t) for t in outputs], constants)
        model = helper.make_model(
            graph,
            producer_name="vitquant",
            opset_imports=[helper.make_opsetid("", OPSET)],
            ir_version=IR_VERSION,
        )
        helper.set_model_props(model, dict(metadata))
        return model


class Step:
    """Adds the nodes of one operation of a program; what it names begins with ``prefix``.

    Inputs of nodes are names, or arrays that become constants.
    """

    def __init__(self, graph: Graph, prefix: str) -> None:
        self.graph, self.prefix = graph, prefix
        self._count = 0

    def node(self, operator: str, *inputs: str | Array, out: str = "", **attributes: Any) -> str:
        """Add a node, and give the name of what it makes: ``out``, or one of its own."""
        self._count += 1
        own = f"{self.prefix}/{operator}_{self._count}"
        names = [
            x if isinstance(x, str) else self.graph.constant(x, f"{own}/{index}") for index, x in enumerate(inputs)
        ]
        self.graph.nodes.append(Node(operator, tuple(names), out or own, attributes))
        return out or own

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


def optional(module: str) -> Any:
    """A module that only exports need.

    Raises:
        MissingDependencyError: it is not installed.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise MissingDependencyError(
            f"{module} is needed for this and cannot be imported: {error}",
            where="export",
            fix="pip install 'vitquant[export]'",
        ) from error
