"""Writing down an ONNX graph, node by node."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from vitquant.export.onnx_builder import optional
from vitquant.integer.values import Array
from vitquant.version import __version__

if TYPE_CHECKING:
    import onnx


class Graph:
    """Nodes and constants in the order in which they are added. A node's single output has the node's name.

    Raises:
        MissingDependencyError: ``onnx`` is not installed.
    """

    def __init__(self, opset: int) -> None:
        self.onnx, self.opset = optional("onnx"), opset
        self.nodes: list[Any] = []
        self.initializers: list[Any] = []

    def node(self, op: str, *inputs: str, name: str, **attributes: Any) -> str:
        """Add a node; gives the name of its output. An empty input name leaves an optional input out."""
        self.nodes.append(self.onnx.helper.make_node(op, inputs, [name], name=name, **attributes))
        return name

    def constant(self, name: str, array: Array) -> str:
        """Add a tensor, in its own type."""
        self.initializers.append(self.onnx.numpy_helper.from_array(np.asarray(array, order="C"), name))
        return name

    def floats(self, name: str, values: Any) -> str:
        """Add a float32 tensor."""
        return self.constant(name, np.asarray(values, dtype=np.float32))

    def dims(self, name: str, *values: int) -> str:
        """Add a list of int64, as shapes and axes are."""
        return self.constant(name, np.array(values, dtype=np.int64))

    def codes(self, name: str, values: Array, dtype: str) -> str:
        """Add a tensor of whole numbers as NumPy's ``dtype``, or as ``int4``: two codes a byte, the first one lower."""
        if dtype != "int4":
            return self.constant(name, values.astype(dtype))
        flat = values.astype(np.int8).reshape(-1)
        pairs = np.append(flat, np.zeros(flat.size % 2, np.int8)).reshape(-1, 2).view(np.uint8) & 15
        kind, packed = self.onnx.TensorProto.INT4, (pairs[:, 0] | pairs[:, 1] << 4).tobytes()
        self.initializers.append(self.onnx.helper.make_tensor(name, kind, values.shape, packed, raw=True))
        return name

    def slice(self, x: str, name: str, axis: int, part: slice) -> str:
        """Some places along an axis."""
        start, end = (self.dims(f"{name}/{k}", v) for k, v in (("start", part.start or 0), ("end", part.stop)))
        return self.node("Slice", x, start, end, self.dims(f"{name}/axis", axis), name=name)

    def model(
        self,
        name: str,
        inputs: Mapping[str, tuple[Any, ...]],
        outputs: Mapping[str, tuple[Any, ...]],
        metadata: Mapping[str, str],
    ) -> onnx.ModelProto:
        """The whole as a checked model, its inputs and outputs float32; a dimension that is a string is dynamic."""
        helper, kind = self.onnx.helper, self.onnx.TensorProto.FLOAT
        ends = (
            [helper.make_tensor_value_info(n, kind, shape) for n, shape in end.items()] for end in (inputs, outputs)
        )
        graph = helper.make_graph(self.nodes, name, *ends, self.initializers)
        opsets = [helper.make_opsetid("", self.opset)]
        model: onnx.ModelProto = helper.make_model(
            graph,
            opset_imports=opsets,
            ir_version=helper.find_min_ir_version_for(opsets),
            producer_name="vitquant",
            producer_version=__version__,
        )
        helper.set_model_props(model, dict(metadata))
        self.onnx.checker.check_model(model)
        return model
