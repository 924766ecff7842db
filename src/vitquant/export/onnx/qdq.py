"""The calibrated model as an ONNX graph with QuantizeLinear and DequantizeLinear, for runtimes that fuse them.

Between the points the graph is float: LayerNormalization, Softmax and Gelu are the runtime's own, so its codes are
close to those of the integer program, not the same.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
import torch
from torch import nn

from vitquant.architectures.model import QuantModel
from vitquant.errors import ModelError
from vitquant.export.onnx.graph import GraphTensor
from vitquant.export.onnx.heads import heads_layout
from vitquant.export.onnx.qdq_linear import array
from vitquant.export.onnx.qdq_points import ONE, ZERO, Activation, PointWriter
from vitquant.export.onnx.qdq_targets import GELU_OPSET, QdqFormat, Runtime, qdq_format
from vitquant.layers import (
    AttentionScores,
    IntSoftmax,
    MeanOf,
    MeanToken,
    Point,
    Product,
    QAct,
    QuantEmbedding,
    QuantLinear,
    QuantNorm,
    QuantPatchEmbed,
    QuantResidual,
    SelectChannels,
    SelectToken,
    SelectTokens,
    WeightedSum,
)
from vitquant.layers.graph import Step
from vitquant.layers.layer import Layer, Shape
from vitquant.numerics.limits import DIFFUSION_BITS
from vitquant.numerics.pairing import product_per_head
from vitquant.program.values import Array
from vitquant.version import __version__

if TYPE_CHECKING:
    import onnx

INPUT = "images"


def export_qdq(
    model: QuantModel,
    *,
    target: str = "onnxruntime",
    opset: int | None = None,
    packed: bool = True,
    outputs: Sequence[str] = (),
) -> onnx.ModelProto:
    """The model as ONNX, its points QuantizeLinear / DequantizeLinear pairs named after them.

    The graph takes ``images``, normalised float32 ``[batch, C, h, w]``, and gives the model's outputs by name, float32,
    by default ``logits`` ``[batch, classes]`` (pooled features ``[batch, D]`` without a head). Any calibrated model can
    be written, also what
    integers alone could not execute. :func:`notes` tells where the graph departs from the simulation.

    Args:
        model: calibrated, on any device.
        target: ``onnxruntime``, ``openvino`` or ``tensorrt``; what each takes is in ``docs/export.md``.
        opset: of the graph, 18 to 21; without it 21, and 20 for TensorRT.
        packed: store 4-bit weights as INT4 where opset and target have it. Half the size, but ONNX Runtime and OpenVINO
            unpack them in every run and compute in float; otherwise they are int8 and run on integer kernels.
        outputs: names of those that the graph gives, such as ``tokens``.

    Raises:
        ConfigError: an unknown target or output, or an opset that is not written.
        LifecycleError: an active point was never observed.
        MissingDependencyError: the package ``onnx`` is not installed.
    """
    model.require_calibrated()
    export = QdqExport(model, Runtime.of(target, opset, packed), outputs)
    with torch.no_grad():
        given = export.outputs()
    metadata = {
        "vitquant": __version__,
        "target": target,
        "preprocessing": json.dumps(model.preprocessing.to_dict()),
        "notes": "\n".join(f"{point}: {told}" for point, told in export.notes.items()),
    }
    images = GraphTensor(INPUT, np.dtype("float32"), ("batch", *model.preprocessing.shape))
    return export.graph.model("vitquant", [images], given, metadata)


def notes(model: onnx.ModelProto) -> dict[str, str]:
    """Where an exported graph departs from the simulation: the name of a point, and what happens there."""
    text = next(p.value for p in model.metadata_props if p.key == "notes")
    return {point: told for point, _, told in (line.partition(": ") for line in text.splitlines())}


@dataclass(frozen=True)
class Probabilities:
    """The weights of V, ``[B, H, N, N]``: ``unit`` (one element, or one per head) times ``name`` over ``sums``."""

    name: str
    unit: Array
    sums: str | None = None


@dataclass(frozen=True)
class Pending:
    """A product that waits for the point that rounds it: ``write`` makes its nodes, up to that point's."""

    write: Callable[[Point | None], Activation]
    part: Callable[[SelectChannels], Pending] | None = None


Written: TypeAlias = Activation | Pending | Probabilities
"""What a layer becomes. Tokens of all images are rows, ``[B * N, C]``."""


class QdqExport(PointWriter):
    """Goes along the graph of a model once and writes the ONNX graph."""

    def __init__(self, model: QuantModel, runtime: Runtime, outputs: Sequence[str] = ()) -> None:
        super().__init__(runtime)
        self.steps = model.graph.choose(outputs)
        self.params, self.shapes = self.steps.params(), self.steps.shapes(model.preprocessing.shape)
        self.tokens: dict[Step, tuple[int, int]] = {}
        """Of a norm: the range of the tokens that are read after it, where it is computed for these alone."""
        self._pairs: dict[str, str] = {}

    def outputs(self) -> list[GraphTensor]:
        """Everything, from the images to what the graph gives."""
        images: Written = Activation(INPUT, "images")
        written = self.steps.follow(images, self.write)
        found = []
        for name, step in self.steps.outputs.items():
            shape, rows = self.shapes[step], self.real(self.settled(written[step]))
            if len(shape) > 1:
                rows = self.reshape(rows, f"{name}/images", -1, *shape)
            self.graph.node("Identity", rows, name=name)
            found.append(GraphTensor(name, np.dtype("float32"), ("batch", *shape)))
        return found

    def write(self, step: Step, *inputs: Written) -> Written:
        """What a step becomes, by the rule for its layer."""
        return RULES[type(step.layer)](self, step, step.layer, *inputs)

    def settled(self, x: Written, point: Point | None = None) -> Activation:
        """A product's nodes written, rounded at ``point`` if there is one."""
        assert not isinstance(x, Probabilities)
        return x.write(point) if isinstance(x, Pending) else x

    # The rules: what each layer becomes, given what feeds it.

    def patch_embed(self, step: Step, embed: QuantPatchEmbed, images: Activation) -> Written:
        """The images as flattened patches, on the parameters of their pixels where the weights know them."""
        graph, (channels, image_height, image_width) = self.graph, self.shapes[None]
        height, width = embed.patch_size
        rows, columns = image_height // height, image_width // width
        name = self.reshape(images.name, "patches/split", -1, channels, rows, height, columns, width)
        name = graph.node("Transpose", name, name="patches/Transpose", perm=[0, 2, 4, 1, 3, 5])
        name = self.reshape(name, "patches", -1, channels * height * width)
        x = Activation(name, "pixels")
        if embed.linear.weight.active:
            x = self.quantized("pixels", name, qdq_format(embed.pixel_params(), self.runtime))
        return Pending(lambda point: self.linear(embed.linear, x))

    def embedding(self, step: Step, point: QuantEmbedding, patches: Written) -> Written:
        """Positions and prefix tokens: the residual stream."""
        graph, (tokens, channels), name = self.graph, self.shapes[step], self.real(self.settled(patches))
        name = self.reshape(name, "patch_embed/tokens", -1, tokens - point.prefix, channels)
        if point.prefix:
            pads = graph.dims("pos_embed/prefix", 0, point.prefix, 0, 0, 0, 0)
            name = graph.node("Pad", name, pads, name="pos_embed/Pad")
        table = graph.floats("pos_embed/table", array(point.table))
        name = graph.node("Add", name, table, name="pos_embed/Add")
        name = self.reshape(name, "pos_embed/rows", -1, channels)
        return self.quantized(point.name, name, self.format_of(point))

    def residual(self, step: Step, point: QuantResidual, x: Activation, y: Written) -> Written:
        """The stream plus what a branch gives."""
        total = self.graph.node("Add", self.real(x), self.real(self.settled(y)), name=f"{point.name}/Add")
        return self.quantized(point.name, total, self.format_of(point))

    def project(self, step: Step, layer: QuantLinear, x: Activation) -> Written:
        """A linear layer; rounded at its own output, or at the next point."""
        if layer.output.active:
            return self.linear(layer, x)

        def part(select: SelectChannels) -> Pending:
            rows = select.part(layer.float_weight.shape[0])
            return Pending(lambda point: self.linear(layer, x, point, f"/{'qkv'[select.index]}", rows))

        return Pending(lambda point: self.linear(layer, x), part)

    def select_channels(self, step: Step, layer: SelectChannels, x: Written) -> Written:
        """Some rows of a product, or some channels of its output."""
        if isinstance(x, Pending) and x.part is not None:
            return x.part(layer)
        whole = self.real(self.settled(x))
        part = layer.part(self.shapes[step.inputs[0]][-1])

        def write(point: Point | None) -> Activation:
            assert point is not None
            sliced = self.graph.slice(whole, f"{point.name}/Slice", -1, part)
            return self.quantized(point.name, sliced, self.format_of(point))

        return Pending(write)

    def act(self, step: Step, point: QAct, x: Written) -> Written:
        """A point, and the activation function before it."""
        if point.act_module is None:
            return self.settled(x, point)
        write = ACTIVATIONS.get(type(point.act_module))
        if write is None:
            expected = " or ".join(kind.__name__ for kind in ACTIVATIONS)
            got = type(point.act_module).__name__
            raise ModelError("no ONNX form of this activation function", where=point.name, got=got, expected=expected)
        return self.quantized(point.name, write(self, point.name, self.real(self.settled(x))), self.format_of(point))

    def norm(self, step: Step, point: QuantNorm, x: Activation) -> Written:
        """A LayerNorm, of those tokens only that are read after it."""
        name, shape, readers = self.real(x), self.shapes[step], self.steps.consumers[step]
        picks = [reader.layer.index for reader in readers if isinstance(reader.layer, SelectToken)]
        if len(shape) == 2 and picks and len(picks) == len(readers):
            self.tokens[step] = min(picks), max(picks) + 1
            name = self.reshape(name, "tokens", -1, *shape)
            name = self.graph.slice(name, "pool/Slice", 1, slice(*self.tokens[step]))
            name = self.reshape(name, "pool", -1, shape[-1])
        return self.layer_norm(point, name)

    def select_token(self, step: Step, layer: SelectToken, x: Activation) -> Written:
        """One token of each image, ``[B, C]``."""
        source = step.inputs[0]
        assert source is not None
        channels = self.shapes[step][-1]
        first, end = self.tokens.get(source, (0, self.shapes[source][0]))
        if end - first == 1:
            return x
        name = f"{x.point}/pairs" if source in self.tokens else f"{layer.name}/tokens"
        pairs = self._pairs.get(x.name) or self.reshape(x.name, name, -1, end - first, channels)
        self._pairs[x.name] = pairs
        index = layer.index - first
        one = self.graph.slice(pairs, f"{layer.name}/Slice", 1, slice(index, index + 1))
        return replace(x, name=self.reshape(one, layer.name, -1, channels), point=layer.name)

    def select_tokens(self, step: Step, layer: SelectTokens, x: Activation) -> Written:
        """Tokens by number; -1 is a row of zeros, put before all others."""
        graph, name, index, format_after = self.graph, layer.name, np.array(layer.index), x.format
        tokens = self.reshape(x.name, f"{name}/tokens", -1, *self.shapes[step.inputs[0]])
        if index.min() < 0:
            tokens = graph.node("Pad", tokens, graph.dims(f"{name}/pads", 0, 1, 0, 0, 0, 0), name=f"{name}/Pad")
            zero = np.zeros((self.shapes[step.inputs[0]][0] + 1, len(x.offset)))
            zero[0] = x.offset
            tokens = self.graph.node("Add", tokens, graph.floats(f"{name}/zero", zero), name=f"{name}/Add")
            index = index + 1
        found = graph.node("Gather", tokens, graph.constant(f"{name}/index", index), name=f"{name}/Gather", axis=1)
        rows = self.reshape(found, f"{name}/rows", -1, self.shapes[step][-1])
        params = self.params[step]
        if format_after is not None and params is not None:
            format_after = qdq_format(params, self.runtime)
        return Activation(rows, x.point if layer.together == 1 else name, format_after)

    def product_of_two(self, step: Step, layer: Product, a: Activation, b: Activation) -> Written:
        """The product of two activations."""
        name = self.graph.node("Mul", self.real(a), self.real(b), name=f"{layer.name}/Mul")

        def write(point: Point | None) -> Activation:
            return self.quantized(layer.name if point is None else point.name, name, self.format_of(point))

        return Pending(write)

    def mean_token(self, step: Step, layer: MeanToken, x: Activation) -> Written:
        """The mean token, rounded to the parameters of its tokens as the simulation does it."""
        graph, source = self.graph, step.inputs[0]
        tokens = self.reshape(self.real(x), "tokens", -1, *self.shapes[source])
        tokens = graph.slice(tokens, "pool/Slice", 1, slice(layer.first, self.shapes[source][0]))
        mean = graph.node("ReduceMean", tokens, graph.dims("pool/axis", 1), name="pool/ReduceMean", keepdims=0)
        params = self.params[step]
        return (
            Activation(mean, layer.name)
            if params is None
            else self.quantized("pool", mean, qdq_format(params, self.runtime))
        )

    def mean_of(self, step: Step, layer: MeanOf, *parts: Written) -> Written:
        """The mean of the logits of two heads."""
        a, b = (self.real(self.settled(part)) for part in parts)
        total = self.graph.node("Add", a, b, name="logits/Add")
        return Activation(
            self.graph.node("Mul", total, self.graph.floats("logits/half", 0.5), name="logits/Mul"), "logits"
        )

    def heads(
        self, x: Activation, shape: Shape, layer: AttentionScores | WeightedSum, *, transposed: bool = False
    ) -> str:
        """Rows ``[B * N, C]`` to heads, as :func:`heads_layout` tells."""
        sizes, perm = heads_layout(shape, layer.num_heads, layer.windows, transposed=transposed)
        name = self.reshape(x.name, f"{x.point}/heads", -1, *sizes)
        return self.graph.node("Transpose", name, name=f"{x.point}/Transpose", perm=perm)

    def scores(self, step: Step, layer: AttentionScores, q: Activation, k: Activation) -> Written:
        """``Q K^T``; the scales of both leave the sum as one constant per head."""
        shapes = [self.shapes[source] for source in step.inputs]
        q, k = self.factor(q), self.factor(k)
        product = product_per_head(torch.from_numpy(1 / q.gain), torch.from_numpy(1 / k.gain), layer.num_heads)
        if product is None:
            self.notes[q.point] = "rounded, but multiplied in float, as the scales of Q and K do not pair"
            q, k = (Activation(self.real(x), x.point) for x in (q, k))
        unit = layer.scale * (ONE if product is None else array(product))
        name = self.graph.node(
            "MatMul",
            self.heads(q, shapes[0], layer),
            self.heads(k, shapes[1], layer, transposed=True),
            name=f"{layer.name}/MatMul",
        )
        if layer.windows > 1:
            name = self.reshape(name, f"{layer.name}/scores", -1, *self.shapes[step])
        table = layer.added(shapes[0][0])
        if table is not None:
            name = self.times(f"{layer.name}/unit", name, unit, self.tail(step))
            bias = self.graph.floats(f"{layer.name}/table", array(table))
            name, unit = self.graph.node("Add", name, bias, name=f"{layer.name}/Add"), ONE

        def write(point: Point | None) -> Activation:
            return self.quantized(layer.name, name, self.format_of(point), unit, tail=self.tail(step))

        return Pending(write)

    def tail(self, step: Step) -> tuple[int, int]:
        """Sizes after the heads; OpenVINO 2026.4 fuses one constant per head to a product, and fails."""
        return self.shapes[step][1], 1

    def softmax(self, step: Step, point: IntSoftmax, scores: Activation) -> Written:
        """The runtime's softmax, or its parts where each row is rounded on the scale of its own maximum."""
        graph, name, tail = self.graph, point.name, self.tail(step)
        x = self.times(f"{name}/scores", scores.name, 1 / scores.gain, tail)  # an offset cancels
        config = point.config if point.active else None
        if config is not None and config.approximation != "table":
            self.notes[name] = f"the exact exponential in place of {config.approximation}"
        if config is not None and point.by_row:
            dtype = self.runtime.dtype(0, 2**config.bit_type.bits - 1)
            if dtype is not None and dtype.startswith("u"):
                return self.rows(name, x, 2**config.bit_type.bits - 1, dtype, diffusion=config.softmax == "diffusion")
        p = graph.node("Softmax", x, name=f"{name}/Softmax", axis=-1)
        if config is None or config.softmax == "uniform":
            rounded = self.factor(self.quantized(name, p, self.format_of(point), tail=tail))
            return Probabilities(rounded.name, 1 / rounded.gain)
        self.notes[name] = f"left float: no codes of {self.runtime.target.name} have the form {config.softmax}"
        return Probabilities(p, ONE)

    def rows(self, name: str, x: str, top: int, dtype: str, *, diffusion: bool) -> Probabilities:
        """Exponentials of the distance from each row's maximum, rounded, and the sums that they are shares of."""
        graph, axis = self.graph, self.graph.dims(f"{name}/axis", -1)
        peak = graph.node("ReduceMax", x, axis, name=f"{name}/ReduceMax")
        distance = graph.node("Sub", x, peak, name=f"{name}/Sub")
        e = graph.node("Exp", distance, name=f"{name}/Exp")
        if diffusion:
            e = self.diffused(name, e, top)
        p = self.round(name, e, QdqFormat(ONE, ZERO, 1 / top, 0, dtype, None))
        return Probabilities(p.name, ONE, graph.node("ReduceSum", p.name, axis, name=f"{name}/ReduceSum"))

    def diffused(self, name: str, e: str, top: int) -> str:
        """Differences of the rounded running sums, as multiples of ``1 / top``.

        The sums are those of the simulation: whole numbers, which floats hold exactly up to 2^24.
        """
        graph, one = self.graph, 1 << DIFFUSION_BITS

        def node(part: str, operator: str, *inputs: str) -> str:
            return graph.node(operator, *inputs, name=f"{name}/{part}")

        def rounded(part: str, sums: str) -> str:
            return node(f"{part}/Floor", "Floor", node(f"{part}/Mul", "Mul", sums, shrink))

        shrink, half = (graph.floats(f"{name}/{k}", v) for k, v in (("shrink", 1 / one), ("half", one / 2)))
        grow, unit = (graph.floats(f"{name}/{k}", v) for k, v in (("grow", top * one), ("unit", 1 / top)))
        e = node("Round", "Round", node("grown", "Mul", e, grow))
        sums = node("CumSum", "CumSum", e, graph.constant(f"{name}/tokens", np.array(-1)))
        after = node("after", "Add", sums, half)
        before = node("before", "Sub", after, e)
        codes = node("codes", "Sub", rounded("after", after), rounded("before", before))
        return node("shares", "Mul", codes, unit)

    def weighted_sum(self, step: Step, layer: WeightedSum, weights: Probabilities, v: Activation) -> Written:
        """The product with V."""
        graph, shape, name = self.graph, self.shapes[step.inputs[1]], layer.name
        v = self.factor(v)
        rows, keys = self.shapes[step.inputs[0]][1:]
        p = weights.name
        if layer.windows > 1:
            p = self.reshape(p, f"{name}/windows", -1, layer.num_heads, layer.windows, rows // layer.windows, keys)
        product = graph.node("MatMul", p, self.heads(v, shape, layer), name=f"{name}/MatMul")
        if layer.windows > 1:
            product = self.reshape(product, f"{name}/queries", -1, layer.num_heads, rows, shape[1] // layer.num_heads)
        if weights.sums is not None:
            product = graph.node("Div", product, weights.sums, name=f"{name}/Div")
        product = graph.node("Transpose", product, name=f"{name}/Transpose", perm=[0, 2, 1, 3])
        merged = self.reshape(product, f"{name}/rows", -1, shape[1])
        unit = np.repeat(weights.unit, shape[1] // len(weights.unit)) / v.gain
        return Pending(lambda point: self.quantized(name, merged, self.format_of(point), unit))

    def silu(self, name: str, x: str) -> str:
        """``x`` times its logistic function."""
        return self.graph.node("Mul", x, self.graph.node("Sigmoid", x, name=f"{name}/Sigmoid"), name=f"{name}/Silu")

    def gelu(self, name: str, x: str) -> str:
        """The exact GELU, before opset 20 in its parts, which runtimes recognise."""
        graph, name = self.graph, f"{name}/Gelu"
        if graph.opset >= GELU_OPSET:
            return graph.node("Gelu", x, name=name)
        root, one, half = (graph.floats(f"{name}/{k}", v) for k, v in (("root", 2**0.5), ("one", 1), ("half", 0.5)))
        erf = graph.node("Erf", graph.node("Div", x, root, name=f"{name}/Div"), name=f"{name}/Erf")
        product = graph.node("Mul", x, graph.node("Add", erf, one, name=f"{name}/Add"), name=f"{name}/Product")
        return graph.node("Mul", product, half, name=name)


ACTIVATIONS: Mapping[type[nn.Module], Callable[[QdqExport, str, str], str]] = {
    nn.GELU: QdqExport.gelu,
    nn.SiLU: QdqExport.silu,
}

RULES: Mapping[type[Layer], Callable[..., Written]] = {
    QuantPatchEmbed: QdqExport.patch_embed,
    QuantEmbedding: QdqExport.embedding,
    QuantLinear: QdqExport.project,
    QuantNorm: QdqExport.norm,
    QuantResidual: QdqExport.residual,
    QAct: QdqExport.act,
    AttentionScores: QdqExport.scores,
    IntSoftmax: QdqExport.softmax,
    WeightedSum: QdqExport.weighted_sum,
    SelectChannels: QdqExport.select_channels,
    SelectToken: QdqExport.select_token,
    SelectTokens: QdqExport.select_tokens,
    Product: QdqExport.product_of_two,
    MeanToken: QdqExport.mean_token,
    MeanOf: QdqExport.mean_of,
}
