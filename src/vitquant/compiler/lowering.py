"""From a calibrated model to an :class:`IntegerProgram`: one rule for each type of layer, applied along the graph."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias

import numpy as np
import torch

from vitquant.architectures.model import QuantModel
from vitquant.arguments import require_kind
from vitquant.artifact.storage import run_id
from vitquant.compiler.deployability import require_deployable
from vitquant.compiler.values import (
    addend,
    addend_codes,
    as_int32,
    image_value,
    integer_form,
    packing_of,
    plain,
    rescale,
    scales,
    value_of,
)
from vitquant.errors import NumericsError
from vitquant.layers import (
    AttentionScores,
    IntSoftmax,
    MeanOf,
    MeanToken,
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
from vitquant.layers.layer import Layer
from vitquant.layers.undisturbed import undisturbed
from vitquant.numerics.affine import QuantParams, dequantize, quantize
from vitquant.numerics.layernorm import integer_layernorm
from vitquant.numerics.limits import ADDEND_LIMIT, INT32_MAX
from vitquant.numerics.packing import Packing
from vitquant.numerics.pairing import product_per_head
from vitquant.numerics.quantized import centred_limit
from vitquant.numerics.softmax import LOG2_MAX, division_bits, exponential_table, row_codes
from vitquant.program.checks import require_int32
from vitquant.program.ops import (
    Add,
    Embed,
    Gather,
    LayerNorm,
    Linear,
    Lookup,
    Mix,
    Multiply,
    Operation,
    Patches,
    Pool,
    Requantize,
    Scores,
    SoftmaxDiffusion,
    SoftmaxLog2,
    SoftmaxRow,
    SoftmaxUniform,
    Take,
    no_table,
)
from vitquant.program.program import IntegerProgram, Output
from vitquant.program.validate import validate
from vitquant.program.values import Array, Value, narrowest
from vitquant.runs import KEY
from vitquant.version import __version__

MAX_TABLE_BYTES = 2**24
"""All tables of one look-up: beyond it, a scale per channel on so many bits is no way to ship a GELU."""

LOGIT_BITS = 16
"""Logits get a scale so much finer than that of their accumulators, as far as their range allows."""


@undisturbed
def compile(model: QuantModel, *, name: str = "vit") -> IntegerProgram:  # noqa: A001
    """Lower a calibrated model to integers.

    Args:
        model: calibrated, on any device.
        name: kept in the program's metadata.

    Raises:
        LifecycleError: an active point was never observed.
        DeployabilityError: the settings of some points cannot be executed by integers, or an accumulator could
            overflow; the message names them and the nearest settings that can.
    """
    require_kind(model, QuantModel, "model").require_calibrated()
    require_deployable(model)
    lowering = Lowering(model)
    with torch.no_grad():
        outputs = lowering.outputs()
    metadata = {
        "vitquant": __version__,
        "model": name,
        "preprocessing": model.preprocessing.to_dict(),
        "classes": model.num_classes,
        KEY: run_id(model),
    }
    program = IntegerProgram(lowering.image, tuple(lowering.operations), outputs, metadata, lowering.packed)
    validate(program)
    return program


@dataclass(frozen=True)
class Sums:
    """Accumulators that wait for the point that requantizes them; ``write`` makes the operation for its value.

    ``scale`` (float64) is their unit, ``limit`` bounds their magnitude; both are ``[channels]``, or have one element.
    ``part`` gives those of some channels.
    """

    name: str
    scale: Array
    limit: Array
    write: Callable[[Value], Value]
    part: Callable[[slice], Sums] | None = None


Lowered: TypeAlias = Value | Sums
"""What a layer becomes."""


class Lowering:
    """Goes along the graph of a model once and writes down the operations."""

    def __init__(self, model: QuantModel) -> None:
        self.graph, self.params = model.graph, model.graph.params()
        self.shapes = model.graph.shapes(model.preprocessing.shape)
        self.image = image_value(model.preprocessing)
        self.operations: list[Operation] = []
        self.packed: dict[str, Packing] = {}

    def outputs(self) -> tuple[Output, ...]:
        """Everything, from the image to what the model gives."""
        image: Lowered = self.image
        made = self.graph.follow(image, self.lower)
        found = []
        for name, step in self.graph.outputs.items():
            given = made[step]
            value = given if isinstance(given, Value) else self.requantize(given, self.output_value(name, [given]))
            found.append(Output(name, value.name, pooled=len(self.shapes[step]) == 1))
        return tuple(found)

    def lower(self, step: Step, *inputs: Lowered) -> Lowered:
        """What a step becomes, by the rule for its layer."""
        return RULES[type(step.layer)](self, step, step.layer, *inputs)

    def emit(self, operation: Operation) -> Value:
        """Add an operation; its value is what the next ones read."""
        self.operations.append(operation)
        return operation.out

    def settle(self, x: Lowered, out: Value) -> Value:
        """``x`` as the value ``out``; what has been requantized by a layer of its own stays as it is."""
        return x.write(out) if isinstance(x, Sums) else x

    def requantize(self, x: Lowered, out: Value, start: int = 0) -> Value:
        """``x``, or the channels from ``start`` on, on the scale of ``out``."""
        if isinstance(x, Sums):
            return x.write(out)
        real = scales(x)[start : start + out.shape[-1]] / scales(out)
        return self.emit(Requantize(out, x.name, start, *rescale(real, out.name)))

    # The rules: what each layer becomes, given what feeds it.

    def patch_embed(self, step: Step, layer: QuantPatchEmbed, image: Value) -> Lowered:
        """Flattened patches, and their projection."""
        height, width = layer.patch_size
        channels, rows, columns = image.shape
        count = (rows // height) * (columns // width)
        patches = replace(image, name="patches", shape=(count, channels * height * width))
        x = self.emit(Patches(patches, image.name, height, width))
        return self.product(layer.linear, x, layer.pixel_params())

    def linear(self, step: Step, layer: QuantLinear, x: Value) -> Lowered:
        """A product, requantized here if the layer quantizes its own output."""
        params = self.params[step.inputs[0]]
        assert params is not None  # settings that leave the input float were refused
        return self.product(layer, x, params)

    def product(self, layer: QuantLinear, x: Value, params: QuantParams) -> Lowered:
        """The layer on codes ``x`` with these parameters."""
        sums = self.linear_sums(layer, x, params, slice(None))
        if not layer.output.active:
            return sums
        return sums.write(value_of(layer.output, (*x.shape[:-1], layer.weight_codes.shape[0])))

    def linear_sums(self, layer: QuantLinear, x: Value, params: QuantParams, rows: slice) -> Sums:
        """The accumulators of some rows of the layer."""
        weight, bias, scale, limit = (array[rows] for array in integer_form(layer, params))

        def write(out: Value) -> Value:
            require_int32(out.name, int(limit.max()))
            real = scale / scales(out)
            if packing := packing_of(layer):
                self.packed[f"{out.name}/weight"] = packing
            return self.emit(Linear(out, x.name, weight, bias.astype(np.int32), *rescale(real, out.name, limit)))

        return Sums(layer.layer_name, scale, limit, write, lambda part: self.linear_sums(layer, x, params, part))

    def select_channels(self, step: Step, layer: SelectChannels, x: Lowered) -> Lowered:
        """Some rows of a product, or some channels of its output."""
        if isinstance(x, Sums):
            assert x.part is not None
            return x.part(layer.part(len(x.scale)))
        part = layer.part(x.shape[-1])
        scale, limit = scales(x)[part], np.array([x.centred_limit])
        return Sums(x.name, scale, limit, lambda out: self.requantize(x, out, part.start))

    def act(self, step: Step, point: QAct, x: Lowered) -> Lowered:
        """Accumulators requantized; an activation function as tables."""
        if point.act_module is not None:
            assert isinstance(x, Value)
            return self.lookup(step, point, x)
        if not point.active:
            return x
        return self.requantize(x, value_of(point, x.shape if isinstance(x, Value) else self.shape_of(step)))

    def shape_of(self, step: Step) -> tuple[int, ...]:
        """Shape of a step's result as that of a value: at least tokens and channels."""
        shape = self.shapes[step]
        return shape if len(shape) > 1 else (1, *shape)

    def lookup(self, step: Step, point: QAct, x: Value) -> Value:
        """An activation function as tables: one for each pair of parameters that meet at a channel."""
        assert point.act_module is not None
        before, after = self.params[step.inputs[0]], point.require_params()
        assert before is not None
        out = value_of(point, x.shape)
        columns = np.stack([v.spread(a) for v in (x, out) for a in (v.scale, v.zero_point)], axis=1).astype(np.float64)
        pairs, table_of = np.unique(columns, axis=0, return_inverse=True)
        levels = x.high - x.low + 1
        size = len(pairs) * levels * out.dtype.itemsize
        if size > MAX_TABLE_BYTES:
            raise NumericsError(
                "the table of the activation function would be too large",
                where=point.name,
                got=f"{size / 1e6:.0f} MB: {len(pairs)} pairs of scales, {levels} codes each",
                expected=f"at most {MAX_TABLE_BYTES / 1e6:.0f} MB",
                fix=f"give {x.name} 8 bits, or layer_wise or head_wise scales",
            )
        codes = torch.arange(x.low, x.high + 1)
        given = [torch.from_numpy(pairs[:, i : i + 1].astype(np.float32)) for i in range(4)]
        before = QuantParams(given[0], given[1], before.qmin, before.qmax)
        after = QuantParams(given[2], given[3], after.qmin, after.qmax)
        tables = quantize(point.act_module(dequantize(codes, before)), after)
        return self.emit(Lookup(out, x.name, as_int32(tables).astype(out.dtype), table_of.reshape(-1).astype(np.int32)))

    def scores(self, step: Step, layer: AttentionScores, q: Value, k: Value) -> Lowered:
        """The product of Q and K."""
        scale_q, scale_k = (params.scale for source in step.inputs if (params := self.params[source]) is not None)
        product = product_per_head(scale_q, scale_k, layer.num_heads)
        assert product is not None  # scales that do not pair were refused
        unit = (product * layer.scale).cpu().numpy()
        limit = np.array([INT32_MAX])

        def write(out: Value) -> Value:
            table = no_table() if layer.table is None else addend_codes(layer.table, out)
            real = rescale(unit / scales(out), out.name)
            return self.emit(Scores(out, q.name, k.name, layer.windows, table, *real))

        return Sums(layer.name, unit, limit, write)

    def softmax(self, step: Step, point: IntSoftmax, scores: Value) -> Lowered:
        """The weights of V."""
        config = point.require_config()
        levels = scores.high - scores.low + 1
        exponentials = torch.stack(
            [exponential_table(float(s), levels, config.approximation) for s in scores.scale.tolist()]
        )
        table = as_int32(row_codes(exponentials, *point.table_bits))
        if point.by_row:
            top = 2**config.bit_type.bits - 1
            out = Value(point.name, scores.shape, 0, top, *plain(1 / top))
            kind = SoftmaxDiffusion if config.softmax == "diffusion" else SoftmaxRow
            return self.emit(kind(out, scores.name, table))
        if config.softmax == "log2":
            top = 2**LOG2_MAX
            out = Value(point.name, scores.shape, 0, top, *plain(1 / top))
            return self.emit(SoftmaxLog2(out, scores.name, table, point.last))
        out = value_of(point, scores.shape)
        share = rescale(2.0**-30 / out.scale.astype(np.float64), out.name)
        return self.emit(SoftmaxUniform(out, scores.name, table, *share))

    def weighted_sum(self, step: Step, layer: WeightedSum, p: Value, v: Value) -> Lowered:
        """The product with V, divided by the sums of the rows where the weights are shares of them."""
        softmax, source = step.inputs
        params = self.params[source]
        assert softmax is not None
        assert isinstance(softmax.layer, IntSoftmax)
        assert params is not None
        by_row = softmax.layer.by_row
        reciprocal, fraction = division_bits(centred_limit(params)) if by_row else (0, 0)
        weight = 2.0**-fraction if by_row else np.repeat(scales(p), v.shape[-1] // layer.num_heads)
        unit = scales(v) * weight

        def write(out: Value) -> Value:
            real = unit / scales(out)
            return self.emit(
                Mix(out, p.name, v.name, layer.windows, by_row, reciprocal, fraction, *rescale(real, out.name))
            )

        return Sums(layer.name, unit, np.array([INT32_MAX]), write)

    def residual(self, step: Step, point: QuantResidual, x: Value, y: Lowered) -> Lowered:
        """The stream plus what a branch gives, whose last linear layer writes at the stream's scale."""
        out = value_of(point, x.shape)
        y = self.settle(y, addend(out, y.name, x.shape[0]))
        a, b = (rescale(scales(v) / scales(out), out.name) for v in (x, y))
        return self.emit(Add(out, x.name, y.name, *a, *b))

    def embedding(self, step: Step, point: QuantEmbedding, patches: Lowered) -> Lowered:
        """Positions and prefix tokens."""
        stream, params = value_of(point, self.shape_of(step)), point.require_params()
        count = stream.shape[0] - point.prefix
        projected = self.settle(patches, addend(stream, patches.name, count))
        table = (point.table[0] / params.scale).round().long() + params.zero_point.long()
        array = table.clamp(-ADDEND_LIMIT, ADDEND_LIMIT).cpu().numpy()
        return self.emit(
            Embed(
                stream,
                projected.name,
                point.prefix,
                array.astype(narrowest(int(array.min()), int(array.max()))),
                *rescale(scales(projected) / scales(stream), stream.name),
            )
        )

    def norm(self, step: Step, point: QuantNorm, x: Value) -> Lowered:
        """A LayerNorm of the stream."""
        norm, params = point.norm, point.require_params()
        with point.named():
            integer = integer_layernorm(norm.weight, norm.bias, norm.eps, float(x.scale[0]), params)
        count = x.shape[-1]
        gain, offset, shift = (
            t.expand(count).cpu().numpy().astype(np.int64) for t in (integer.gain, integer.offset, integer.shift)
        )
        epsilon = np.array([integer.epsilon], dtype=np.int64)
        out = value_of(point, x.shape)
        return self.emit(LayerNorm(out, x.name, gain, offset, shift.astype(np.uint8), epsilon, integer.headroom))

    def select_token(self, step: Step, layer: SelectToken, x: Value) -> Lowered:
        """One token."""
        return self.emit(Take(replace(x, name=layer.name, shape=(1, x.shape[-1])), x.name, layer.index))

    def select_tokens(self, step: Step, layer: SelectTokens, x: Value) -> Value:
        """Tokens by number."""
        shape, together = self.shape_of(step), layer.together
        per_place = (np.tile(a, together if len(a) > 1 else 1) for a in (x.scale, x.zero_point))
        out = Value(layer.name, shape, x.low, x.high, *per_place)
        return self.emit(Gather(out, x.name, np.array(layer.index, dtype=np.int32)))

    def product_of_two(self, step: Step, layer: Product, a: Value, b: Value) -> Lowered:
        """The product of two activations."""
        unit, limit = scales(a) * scales(b), np.array([a.centred_limit * b.centred_limit])

        def write(out: Value) -> Value:
            return self.emit(Multiply(out, a.name, b.name, *rescale(unit / scales(out), out.name, limit)))

        return Sums(layer.name, unit, limit, write)

    def mean_token(self, step: Step, layer: MeanToken, x: Value) -> Lowered:
        """The mean of some tokens."""
        return self.emit(Pool(replace(x, name=layer.name, shape=(1, x.shape[-1])), x.name, layer.first))

    # Outputs that no point rounds.

    def output_value(self, name: str, parts: Sequence[Lowered]) -> Value:
        """One scale for all channels, such as classes: as fine as the largest numbers allow."""
        largest, coarsest = 0.0, 0.0
        for part in parts:
            scale, limit = (part.scale, part.limit) if isinstance(part, Sums) else (scales(part), part.centred_limit)
            largest = max(largest, float((limit * scale).max()))
            coarsest = max(coarsest, float(scale.max()))
        unit = max(coarsest * 2.0**-LOGIT_BITS, largest / (ADDEND_LIMIT / 2))
        classes = parts[0].shape[-1] if isinstance(parts[0], Value) else len(parts[0].scale)
        return Value(name, (1, classes), -ADDEND_LIMIT, ADDEND_LIMIT, *plain(unit))

    def mean_of(self, step: Step, layer: MeanOf, *parts: Lowered) -> Lowered:
        """The mean of the logits of two heads, each of which writes its half of it."""
        out = self.output_value("logits", parts)
        half = replace(out, scale=(out.scale * len(parts)).astype(np.float32))
        tokens = (head.inputs[0] for head in step.inputs if head is not None)
        names = (token.layer.label for token in tokens if token is not None)
        a, b = (
            self.requantize(part, replace(half, name=f"{name.removesuffix('_token')}_logits"))
            for part, name in zip(parts, names, strict=True)
        )
        same = rescale(np.ones(1), out.name)
        return self.emit(Add(out, a.name, b.name, *same, *same))


Rule: TypeAlias = Callable[..., Lowered]

RULES: Mapping[type[Layer], Rule] = {
    QuantPatchEmbed: Lowering.patch_embed,
    QuantEmbedding: Lowering.embedding,
    QuantLinear: Lowering.linear,
    QuantNorm: Lowering.norm,
    QuantResidual: Lowering.residual,
    QAct: Lowering.act,
    AttentionScores: Lowering.scores,
    IntSoftmax: Lowering.softmax,
    WeightedSum: Lowering.weighted_sum,
    SelectChannels: Lowering.select_channels,
    SelectToken: Lowering.select_token,
    SelectTokens: Lowering.select_tokens,
    Product: Lowering.product_of_two,
    MeanToken: Lowering.mean_token,
    MeanOf: Lowering.mean_of,
}
