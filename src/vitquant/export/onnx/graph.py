"""A builder of ONNX graphs: nodes and constants are gathered in order, and become a checked model at the end."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from vitquant.export.onnx.packages import optional
from vitquant.program.values import Array
from vitquant.version import __version__

if TYPE_CHECKING:
    import onnx


@dataclass(frozen=True)
class GraphTensor:
    """An input or output of the graph: name, element type, shape; a dimension by name is free."""

    name: str
    dtype: np.dtype[Any]
    shape: tuple[int | str, ...]


class OnnxGraph:
    """Nodes and constants in the order in which they are added. A node's single output has the node's name.

    Raises:
        MissingDependencyError: ``onnx`` is not installed.
    """

    def __init__(self, opset: int) -> None:
        self.onnx, self.opset = optional("onnx"), opset
        self.nodes: list[Any] = []
        self.initializers: list[Any] = []
        self._shared: dict[tuple[str, tuple[int, ...], bytes], str] = {}

    def node(self, operator: str, *inputs: str, name: str, **attributes: Any) -> str:
        """Add a node; gives the name of its output.

        An empty input name leaves an optional input out; an attribute that is a NumPy type becomes ONNX's.
        """
        given = {key: self.element(v) if isinstance(v, np.dtype) else v for key, v in attributes.items()}
        self.nodes.append(self.onnx.helper.make_node(operator, inputs, [name], name=name, **given))
        return name

    def constant(self, name: str, array: Array) -> str:
        """Add a tensor, in its own type."""
        self.initializers.append(self.onnx.numpy_helper.from_array(np.asarray(array, order="C"), name))
        return name

    def shared(self, name: str, array: Array) -> str:
        """The name of a tensor: ``name``, unless an equal one has been shared before."""
        key = array.dtype.str, array.shape, array.tobytes()
        if key not in self._shared:
            self._shared[key] = self.constant(name, array)
        return self._shared[key]

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

    def element(self, dtype: np.dtype[Any]) -> int:
        """ONNX's number of an element type."""
        number: int = self.onnx.helper.np_dtype_to_tensor_dtype(dtype)
        return number

    def model(
        self, name: str, inputs: Sequence[GraphTensor], outputs: Sequence[GraphTensor], metadata: Mapping[str, str]
    ) -> onnx.ModelProto:
        """The whole as a checked model, in the oldest file format that has its opset, for older runtimes."""
        helper = self.onnx.helper
        ends = (
            [helper.make_tensor_value_info(t.name, self.element(t.dtype), t.shape) for t in end]
            for end in (inputs, outputs)
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
