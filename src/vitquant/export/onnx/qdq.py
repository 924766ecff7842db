"""The calibrated model as an ONNX graph with QuantizeLinear and DequantizeLinear, for runtimes that fuse them.

Between the points the graph is float: LayerNormalization, Softmax and Gelu are the runtime's own, so its codes are
close to those of the integer program, not the same.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import torch

from vitquant.architectures.quant_attn import QuantAttention
from vitquant.architectures.quant_block import QuantBlock, QuantMlp
from vitquant.architectures.quant_vit import QuantViT
from vitquant.export.onnx.graph import Tensor
from vitquant.export.onnx.qdq_linear import array
from vitquant.export.onnx.qdq_points import ONE, ZERO, Activation, PointWriter
from vitquant.export.onnx.qdq_targets import GELU_OPSET, Landing, Runtime, landing
from vitquant.layers import IntSoftmax, QuantResidual
from vitquant.numerics.pairing import product_per_head
from vitquant.program.values import Array
from vitquant.version import __version__

if TYPE_CHECKING:
    import onnx

INPUT, OUTPUT = "images", "logits"


def export_qdq(
    model: QuantViT, *, target: str = "onnxruntime", opset: int | None = None, packed: bool = True
) -> onnx.ModelProto:
    """The model as ONNX, its points QuantizeLinear / DequantizeLinear pairs named after them.

    The graph takes ``images``, normalised float32 ``[batch, C, h, w]``, and gives ``logits``, float32
    ``[batch, classes]`` (pooled features ``[batch, D]`` without a head). Any calibrated model can be written, also what
    integers alone could not execute. :func:`notes` tells where the graph departs from the simulation.

    Args:
        model: calibrated, on any device.
        target: ``onnxruntime``, ``openvino`` or ``tensorrt``; what each takes is in ``docs/export.md``.
        opset: of the graph, 18 to 21; without it 21, and 20 for TensorRT.
        packed: store 4-bit weights as INT4 where opset and target have it. Half the size, but ONNX Runtime and OpenVINO
            unpack them in every run and compute in float; otherwise they are int8 and run on integer kernels.

    Raises:
        ConfigError: an unknown target, or an opset that is not written.
        LifecycleError: an active point was never observed.
        MissingDependencyError: the package ``onnx`` is not installed.
    """
    model.require_calibrated()
    export = QdqExport(model, Runtime.of(target, opset, packed))
    with torch.no_grad():
        output = export.model_output()
    export.graph.node("Identity", output, name=OUTPUT)
    metadata = {
        "vitquant": __version__,
        "target": target,
        "preprocessing": json.dumps(model.preprocessing.to_dict()),
        "notes": "\n".join(f"{point}: {told}" for point, told in export.notes.items()),
    }
    float32, width = np.dtype("float32"), model.spec.num_classes or model.spec.embed_dim
    images = Tensor(INPUT, float32, ("batch", *model.preprocessing.shape))
    logits = Tensor(OUTPUT, float32, ("batch", width))
    return export.graph.model("vitquant", [images], [logits], metadata)


def notes(model: onnx.ModelProto) -> dict[str, str]:
    """Where an exported graph departs from the simulation: the name of a point, and what happens there."""
    text = next(p.value for p in model.metadata_props if p.key == "notes")
    return {point: told for point, _, told in (line.partition(": ") for line in text.splitlines())}


@dataclass(frozen=True)
class Probabilities:
    """The weights of V, ``[B, H, N, N]``: ``unit`` (one element, or one a head) times ``name`` over ``sums``."""

    name: str
    unit: Array
    sums: str | None = None


class QdqExport(PointWriter):
    """Walks a model once and writes its graph."""

    def __init__(self, model: QuantViT, runtime: Runtime) -> None:
        super().__init__(runtime)
        self.model, self.spec = model, model.spec
        self.tail = model.spec.num_tokens, 1  # OpenVINO 2026.4 fuses one constant a head to a product, and fails

    def model_output(self) -> str:
        """Everything, from the images to the logits."""
        x = self.embedding()
        for block in self.model.blocks:
            assert isinstance(block, QuantBlock)
            x = self.block(block, x)
        return self.classifier(x)

    def embedding(self) -> str:
        """Patches, their projection, positions and prefix tokens: the stream, ``[B * N, C]``."""
        graph, spec, point = self.graph, self.spec, self.model.pos_embed
        name = self.real(self.linear(self.model.patch_embed.linear, self.patches()))
        name = self.reshape(name, "patch_embed/tokens", -1, spec.num_tokens - spec.num_prefix, spec.embed_dim)
        if spec.num_prefix:
            pads = graph.dims("pos_embed/prefix", 0, spec.num_prefix, 0, 0, 0, 0)
            name = graph.node("Pad", name, pads, name="pos_embed/Pad")
        table = graph.floats("pos_embed/table", array(self.model.token_table))
        name = graph.node("Add", name, table, name="pos_embed/Add")
        name = self.reshape(name, "pos_embed/rows", -1, spec.embed_dim)
        return self.real(self.land(point.name, name, self.landing_of(point)))

    def patches(self) -> Activation:
        """The images as flattened patches, on the grid of their pixels where the weights know it."""
        graph, spec, embed = self.graph, self.spec, self.model.patch_embed
        (height, width), (rows, columns) = spec.patch_size, spec.grid
        name = self.reshape(INPUT, "patches/split", -1, spec.in_chans, rows, height, columns, width)
        name = graph.node("Transpose", name, name="patches/Transpose", perm=[0, 2, 4, 1, 3, 5])
        name = self.reshape(name, "patches", -1, spec.in_chans * height * width)
        if not embed.linear.weight.active:
            return Activation(name, "pixels")
        return self.land("pixels", name, landing(embed.pixel_grid(), self.runtime))

    def block(self, block: QuantBlock, x: str) -> str:
        """One transformer block on the residual stream ``x``."""
        x = self.residual(block.residual1, x, self.attention(block.attn, self.norm(block.norm1, x)))
        return self.residual(block.residual2, x, self.mlp(block.mlp, self.norm(block.norm2, x)))

    def residual(self, point: QuantResidual, x: str, y: Activation) -> str:
        """The stream plus what a branch gives."""
        total = self.graph.node("Add", x, self.real(y), name=f"{point.name}/Add")
        return self.real(self.land(point.name, total, self.landing_of(point)))

    def attention(self, attn: QuantAttention, x: Activation) -> Activation:
        """From the norm to the output of the projection."""
        graph, dim, point = self.graph, self.spec.embed_dim, attn.attn_v_out
        q, k, v = self.projections(attn, x)
        weights = self.softmax(attn.intSoft, self.scores(attn, q, k))
        v = self.factor(v)
        name = graph.node("MatMul", weights.name, self.heads(v, 0, 2, 1, 3), name=f"{point.name}/MatMul")
        if weights.sums is not None:
            name = graph.node("Div", name, weights.sums, name=f"{point.name}/Div")
        name = graph.node("Transpose", name, name=f"{point.name}/Transpose", perm=[0, 2, 1, 3])
        name = self.reshape(name, f"{point.name}/rows", -1, dim)
        unit = np.repeat(weights.unit, dim // len(weights.unit)) / v.gain
        return self.linear(attn.attn_proj, self.land(point.name, name, self.landing_of(point), unit))

    def projections(self, attn: QuantAttention, x: Activation) -> tuple[Activation, Activation, Activation]:
        """Q, K and V, ``[B * N, C]`` each."""
        dim, layer = self.spec.embed_dim, attn.attn_qkv
        points = {"q": attn.attn_q_out, "k": attn.attn_k_out, "v": attn.attn_v_input}
        parts = {part: slice(i * dim, (i + 1) * dim) for i, part in enumerate(points)}
        if not layer.output.active:
            q, k, v = (self.linear(layer, x, points[part], f"/{part}", rows) for part, rows in parts.items())
            return q, k, v
        whole = self.real(self.linear(layer, x))
        slices = ((p, self.graph.slice(whole, f"{p.name}/Slice", -1, parts[k])) for k, p in points.items())
        q, k, v = (self.land(point.name, name, self.landing_of(point)) for point, name in slices)
        return q, k, v

    def heads(self, x: Activation, *perm: int) -> str:
        """``[B * N, C]`` to ``[B, N, H, C / H]``, permuted."""
        name = self.reshape(
            x.name, f"{x.point}/heads", -1, self.spec.num_tokens, self.spec.num_heads, self.spec.head_dim
        )
        return self.graph.node("Transpose", name, name=f"{x.point}/Transpose", perm=list(perm))

    def scores(self, attn: QuantAttention, q: Activation, k: Activation) -> Activation:
        """``Q K^T``; the scales of both leave the sum as one constant a head."""
        point = attn.attn_kv_out
        q, k = self.factor(q), self.factor(k)
        product = product_per_head(torch.from_numpy(1 / q.gain), torch.from_numpy(1 / k.gain), attn.num_heads)
        if product is None:
            self.notes[q.point] = "rounded, but multiplied in float, as the scales of Q and K do not pair"
            q, k = (Activation(self.real(x), x.point) for x in (q, k))
        unit = attn.scale * (ONE if product is None else array(product))
        name = self.graph.node(
            "MatMul", self.heads(q, 0, 2, 1, 3), self.heads(k, 0, 2, 3, 1), name=f"{point.name}/MatMul"
        )
        return self.land(point.name, name, self.landing_of(point), unit, tail=self.tail)

    def softmax(self, point: IntSoftmax, scores: Activation) -> Probabilities:
        """The runtime's softmax, or its parts where each row is rounded on the scale of its own maximum."""
        graph, name = self.graph, point.name
        x = self.times(f"{name}/scores", scores.name, 1 / scores.gain, self.tail)  # an offset cancels
        config = point.config if point.active else None
        if config is not None and config.approximation != "table":
            self.notes[name] = f"the exact exponential in place of {config.approximation}"
        if config is not None and config.softmax == "row":
            dtype = self.runtime.dtype(0, 2**config.bit_type.bits - 1)
            if dtype is not None and dtype.startswith("u"):
                return self.rows(name, x, Landing(ONE, ZERO, 1 / (2**config.bit_type.bits - 1), 0, dtype, None))
        p = graph.node("Softmax", x, name=f"{name}/Softmax", axis=-1)
        if config is None or config.softmax == "uniform":
            rounded = self.factor(self.land(name, p, self.landing_of(point), tail=self.tail))
            return Probabilities(rounded.name, 1 / rounded.gain)
        self.notes[name] = f"left float: no codes of {self.runtime.target.name} have the form {config.softmax}"
        return Probabilities(p, ONE)

    def rows(self, name: str, x: str, where: Landing) -> Probabilities:
        """Exponentials of the distance from each row's maximum, rounded, and the sums that they are shares of."""
        graph, axis = self.graph, self.graph.dims(f"{name}/axis", -1)
        peak = graph.node("ReduceMax", x, axis, name=f"{name}/ReduceMax")
        distance = graph.node("Sub", x, peak, name=f"{name}/Sub")
        p = self.round(name, graph.node("Exp", distance, name=f"{name}/Exp"), where)
        return Probabilities(p.name, ONE, graph.node("ReduceSum", p.name, axis, name=f"{name}/ReduceSum"))

    def mlp(self, mlp: QuantMlp, x: Activation) -> Activation:
        """From the norm to the output of ``mlp_fc2``."""
        point = mlp.mlp_gelu
        name = self.gelu(f"{point.name}/Gelu", self.real(self.linear(mlp.mlp_fc1, x)))
        return self.linear(mlp.mlp_fc2, self.land(point.name, name, self.landing_of(point)))

    def gelu(self, name: str, x: str) -> str:
        """The exact GELU, before opset 20 in its parts, which runtimes recognise."""
        graph = self.graph
        if graph.opset >= GELU_OPSET:
            return graph.node("Gelu", x, name=name)
        root, one, half = (graph.floats(f"{name}/{k}", v) for k, v in (("root", 2**0.5), ("one", 1), ("half", 0.5)))
        erf = graph.node("Erf", graph.node("Div", x, root, name=f"{name}/Div"), name=f"{name}/Erf")
        product = graph.node("Mul", x, graph.node("Add", erf, one, name=f"{name}/Add"), name=f"{name}/Product")
        return graph.node("Mul", product, half, name=name)

    def classifier(self, x: str) -> str:
        """The tokens that are read, the final norm, the heads."""
        model, spec, graph = self.model, self.spec, self.graph
        x = self.reshape(x, "tokens", -1, spec.num_tokens, spec.embed_dim)
        if spec.pool == "avg":
            x = self.average(graph.slice(x, "pool/Slice", 1, slice(spec.num_prefix, spec.num_tokens)))
        else:
            count = 2 if spec.dist_token and model.head is not None else 1
            x = self.reshape(graph.slice(x, "pool/Slice", 1, slice(count)), "pool", -1, spec.embed_dim)
        final = self.norm(model.final_norm, x)
        if model.head is None:
            return self.real(final)
        if not spec.dist_token:
            return self.real(self.linear(model.head, final))
        pairs = self.reshape(final.name, "final_norm/pairs", -1, 2, spec.embed_dim)
        layers = dict(zip(("class", "distillation"), model.heads(), strict=True))
        a, b = (
            self.real(self.linear(layer, self.token(replace(final, name=pairs), name, i)))
            for i, (name, layer) in enumerate(layers.items())
        )
        total = graph.node("Add", a, b, name="logits/Add")
        return graph.node("Mul", total, graph.floats("logits/half", 0.5), name="logits/Mul")

    def token(self, pairs: Activation, name: str, index: int) -> Activation:
        """One token of each image, ``[B, C]``, of ``[B, 2, C]``."""
        name = f"{name}_token"
        one = self.graph.slice(pairs.name, f"{name}/Slice", 1, slice(index, index + 1))
        return replace(pairs, name=self.reshape(one, name, -1, self.spec.embed_dim), point=name)

    def average(self, tokens: str) -> str:
        """The mean token, rounded to the grid of the stream as the simulation does it."""
        graph, blocks = self.graph, self.model.blocks
        mean = graph.node("ReduceMean", tokens, graph.dims("pool/axis", 1), name="pool/ReduceMean", keepdims=0)
        stream = blocks[-1].residual2 if len(blocks) else self.model.pos_embed
        assert isinstance(stream, QuantResidual)
        if not stream.active or not stream.require_params().is_scalar:
            return mean
        return self.real(self.land("pool", mean, self.landing_of(stream)))
