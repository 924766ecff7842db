"""From a calibrated :class:`QuantViT` to an :class:`IntegerProgram`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import TypeAlias

import numpy as np
import torch
from torch import Tensor

from vitquant.architectures.quant_attn import QuantAttention
from vitquant.architectures.quant_block import QuantBlock, QuantMlp
from vitquant.architectures.quant_vit import QuantViT
from vitquant.arguments import require_kind
from vitquant.artifact.storage import run_id
from vitquant.compiler.deployability import require_deployable
from vitquant.data import Preprocessing
from vitquant.errors import NumericsError
from vitquant.layers import Point, QAct, QuantLinear, QuantNorm, QuantResidual
from vitquant.layers.regrid import centred_limit
from vitquant.layers.undisturbed import undisturbed
from vitquant.numerics.affine import QuantParams, dequantize, quantize
from vitquant.numerics.layernorm import integer_layernorm
from vitquant.numerics.limits import ADDEND_LIMIT, EXPONENTIAL_BITS, INT32_MAX
from vitquant.numerics.pairing import product_per_head
from vitquant.numerics.requantize import at_least_smallest, dyadic
from vitquant.numerics.softmax import LOG2_MAX, division_bits, exponential_table, row_codes
from vitquant.program.ops import (
    Add,
    Embed,
    LayerNorm,
    Linear,
    Lookup,
    Mix,
    Operation,
    Patches,
    Pool,
    Requantize,
    Scores,
    SoftmaxLog2,
    SoftmaxRow,
    SoftmaxUniform,
    Take,
)
from vitquant.program.program import IntegerProgram
from vitquant.program.validate import require_int32, validate
from vitquant.program.values import Array, Value, narrowest
from vitquant.runs import KEY
from vitquant.version import __version__

MAX_TABLE_BYTES = 2**24
"""All tables of one look-up: beyond it, a scale per channel on so many bits is no way to ship a GELU."""

Branch: TypeAlias = tuple[QuantLinear, Value, QuantParams]
"""What ends a branch of a block: its last linear layer, that layer's input, and the grid of this input."""

LOGIT_BITS = 16
"""Logits get a scale so much finer than that of their accumulators, as far as their range allows."""


@undisturbed
def compile(model: QuantViT, *, name: str = "vit") -> IntegerProgram:  # noqa: A001
    """Lower a calibrated model to integers.

    Args:
        model: calibrated, on any device.
        name: kept in the program's metadata.

    Raises:
        LifecycleError: an active point was never observed.
        DeployabilityError: the settings of some points cannot be executed by integers, or an accumulator could
            overflow; the message names them and the nearest settings that can.
    """
    require_kind(model, QuantViT, "model").require_calibrated()
    require_deployable(model.config, model.spec)
    lowering = Lowering(model)
    with torch.no_grad():
        output = lowering.model_output()
    metadata = {
        "vitquant": __version__,
        "model": name,
        "preprocessing": model.preprocessing.to_dict(),
        "classes": model.spec.num_classes,
        KEY: run_id(model),
    }
    program = IntegerProgram(lowering.image, tuple(lowering.operations), output.name, metadata)
    validate(program)
    return program


class Lowering:
    """Walks a model once and writes down the operations; each method gives the value that its part makes."""

    def __init__(self, model: QuantViT) -> None:
        self.model, self.spec = model, model.spec
        self.operations: list[Operation] = []
        self.image = image_value(model.preprocessing)

    def emit(self, operation: Operation) -> Value:
        """Add an operation; its value is what the next ones read."""
        self.operations.append(operation)
        return operation.out

    def model_output(self) -> Value:
        """Everything, from the image to the logits."""
        x = self.embedding()
        for block in self.model.blocks:
            assert isinstance(block, QuantBlock)
            x = self.block(block, x)
        return self.classifier(x)

    def embedding(self) -> Value:
        """Patches, their projection, positions and prefix tokens."""
        model, spec = self.model, self.spec
        height, width = spec.patch_size
        patches = int(np.prod(spec.grid))
        pixels = replace(self.image, name="patches", shape=(patches, spec.in_chans * height * width))
        x = self.emit(Patches(pixels, self.image.name, height, width))
        stream = value_of(model.pos_embed, (spec.num_tokens, spec.embed_dim))
        pixels_grid = model.patch_embed.pixel_grid()
        projected = self.linear(model.patch_embed.linear, x, pixels_grid, addend(stream, "patch_embed", patches))
        grid = model.pos_embed.require_params()
        table = (model.token_table[0] / grid.scale).round().long() + grid.zero_point.long()
        table = table.clamp(-ADDEND_LIMIT, ADDEND_LIMIT)
        array = table.cpu().numpy()
        return self.emit(
            Embed(
                stream,
                projected.name,
                spec.num_prefix,
                array.astype(narrowest(int(array.min()), int(array.max()))),
                *rescale(scales(projected) / scales(stream), stream.name),
            )
        )

    def block(self, block: QuantBlock, x: Value) -> Value:
        """One transformer block on the residual stream ``x``."""
        grids = [norm.require_params() for norm in (block.norm1, block.norm2)]
        x = self.residual(block.residual1, x, self.attention(block.attn, self.norm(block.norm1, x), grids[0]))
        return self.residual(block.residual2, x, self.mlp(block.mlp, self.norm(block.norm2, x), grids[1]))

    def attention(self, attn: QuantAttention, x: Value, grid: QuantParams) -> Branch:
        """Up to the input of the projection, which the residual finishes."""
        tokens, dim = x.shape
        points = (attn.attn_q_out, attn.attn_k_out, attn.attn_v_input)
        outs = [value_of(point, (tokens, dim)) for point in points]
        if attn.attn_qkv.output.active:
            whole = self.linear(attn.attn_qkv, x, grid, value_of(attn.attn_qkv.output, (tokens, 3 * dim)))
            q, k, v = (self.requantize(whole, out, index * dim) for index, out in enumerate(outs))
        else:
            q, k, v = (
                self.linear(attn.attn_qkv, x, grid, out, slice(index * dim, (index + 1) * dim))
                for index, out in enumerate(outs)
            )
        scores = value_of(attn.attn_kv_out, (attn.num_heads, tokens, tokens))
        qk = [point.require_params() for point in attn.qk]
        product = product_per_head(qk[0].scale, qk[1].scale, attn.num_heads)
        assert product is not None  # scales that do not pair were refused
        unit = (product * attn.scale).cpu().numpy()
        scores = self.emit(Scores(scores, q.name, k.name, *rescale(unit / scales(scores), scores.name)))
        p, normalize = self.softmax(attn, scores)
        out = value_of(attn.attn_v_out, (tokens, dim))
        limit = centred_limit(attn.attn_v_input.require_params())
        reciprocal, fraction = division_bits(limit) if normalize else (0, 0)
        weight = 2.0**-fraction if normalize else np.repeat(scales(p), dim // attn.num_heads)
        real = scales(v) * weight / scales(out)
        mixed = self.emit(Mix(out, p.name, v.name, normalize, reciprocal, fraction, *rescale(real, out.name)))
        return attn.attn_proj, mixed, attn.attn_v_out.require_params()

    def softmax(self, attn: QuantAttention, scores: Value) -> tuple[Value, bool]:
        """The weights of V, and whether they still have to be divided by their row's sum."""
        point, config = attn.intSoft, attn.intSoft.require_config()
        levels = scores.high - scores.low + 1
        exponentials = torch.stack(
            [exponential_table(float(s), levels, config.approximation) for s in scores.scale.tolist()]
        )
        width = config.bit_type.bits
        if config.softmax == "row":
            top = 2**width - 1
            out = Value(point.name, scores.shape, 0, top, *plain(1 / top))
            return self.emit(SoftmaxRow(out, scores.name, as_int32(row_codes(exponentials, width)))), True
        table = as_int32(row_codes(exponentials, EXPONENTIAL_BITS))
        if config.softmax == "log2":
            top = 2**LOG2_MAX
            out = Value(point.name, scores.shape, 0, top, *plain(1 / top))
            return self.emit(SoftmaxLog2(out, scores.name, table, min(2**width - 1, LOG2_MAX))), False
        out = value_of(point, scores.shape)
        share = rescale(2.0**-30 / out.scale.astype(np.float64), out.name)
        return self.emit(SoftmaxUniform(out, scores.name, table, *share)), False

    def mlp(self, mlp: QuantMlp, x: Value, grid: QuantParams) -> Branch:
        """Up to the input of ``mlp_fc2``, which the residual finishes."""
        shape = (x.shape[0], mlp.mlp_fc1.weight_codes.shape[0])
        hidden = self.linear(mlp.mlp_fc1, x, grid, value_of(mlp.mlp_fc1.output, shape))
        return mlp.mlp_fc2, self.lookup(mlp.mlp_gelu, mlp.mlp_fc1.output, hidden), mlp.mlp_gelu.require_params()

    def lookup(self, point: QAct, source: QAct, x: Value) -> Value:
        """An activation function as tables: one for each pair of grids that meet at a channel."""
        assert point.act_module is not None
        out = value_of(point, x.shape)
        grids = np.stack([v.spread(a) for v in (x, out) for a in (v.scale, v.zero_point)], axis=1).astype(np.float64)
        pairs, table_of = np.unique(grids, axis=0, return_inverse=True)
        levels = x.high - x.low + 1
        size = len(pairs) * levels * out.dtype.itemsize
        if size > MAX_TABLE_BYTES:
            raise NumericsError(
                "the table of the activation function would be too large",
                where=point.name,
                got=f"{size / 1e6:.0f} MB: {len(pairs)} pairs of scales, {levels} codes each",
                expected=f"at most {MAX_TABLE_BYTES / 1e6:.0f} MB",
                fix=f"give {source.name} 8 bits, or layer_wise or head_wise scales",
            )
        codes = torch.arange(x.low, x.high + 1)
        columns = [torch.from_numpy(pairs[:, i : i + 1].astype(np.float32)) for i in range(4)]
        before, after = source.require_params(), point.require_params()
        before = QuantParams(columns[0], columns[1], before.qmin, before.qmax)
        after = QuantParams(columns[2], columns[3], after.qmin, after.qmax)
        tables = quantize(point.act_module(dequantize(codes, before)), after)
        return self.emit(Lookup(out, x.name, as_int32(tables).astype(out.dtype), table_of.reshape(-1).astype(np.int32)))

    def linear(self, layer: QuantLinear, x: Value, grid: QuantParams, out: Value, rows: slice = slice(None)) -> Value:
        """A linear layer, or some rows of it, its accumulators requantized to ``out``. ``grid`` is that of ``x``.

        Where the layer's own output is quantized, the value is that one, whatever ``out`` says.
        """
        if layer.output.active and rows == slice(None):
            out = value_of(layer.output, (*x.shape[:-1], layer.weight_codes.shape[0]))
        weight, bias, scale, limit = (array[rows] for array in integer_form(layer, grid))
        require_int32(out.name, int(limit.max()))
        real = scale / scales(out)
        return self.emit(Linear(out, x.name, weight, bias.astype(np.int32), *rescale(real, out.name, limit)))

    def residual(self, point: QuantResidual, x: Value, branch: Branch) -> Value:
        """The stream plus what a branch gives, whose last linear layer writes at the stream's scale."""
        layer, y, grid = branch
        out = value_of(point, x.shape)
        y = self.linear(layer, y, grid, addend(out, layer.layer_name, x.shape[0]))
        a, b = (rescale(scales(v) / scales(out), out.name) for v in (x, y))
        return self.emit(Add(out, x.name, y.name, *a, *b))

    def norm(self, point: QuantNorm, x: Value) -> Value:
        """A LayerNorm of the stream."""
        norm, grid = point.norm, point.require_params()
        with point.named():
            integer = integer_layernorm(norm.weight, norm.bias, norm.eps, float(x.scale[0]), grid)
        count = x.shape[-1]
        gain, offset, shift = (
            t.expand(count).cpu().numpy().astype(np.int64) for t in (integer.gain, integer.offset, integer.shift)
        )
        epsilon = np.array([integer.epsilon], dtype=np.int64)
        out = value_of(point, x.shape)
        return self.emit(LayerNorm(out, x.name, gain, offset, shift.astype(np.uint8), epsilon, integer.headroom))

    def requantize(self, x: Value, out: Value, start: int = 0) -> Value:
        """Some channels of ``x`` on another grid."""
        part = slice(start, start + out.shape[-1])
        real = scales(x)[part] / scales(out)
        return self.emit(Requantize(out, x.name, start, *rescale(real, out.name)))

    def classifier(self, x: Value) -> Value:
        """Final norm, the tokens that are read, the heads."""
        model, spec = self.model, self.spec
        if spec.pool == "avg":
            pooled = replace(x, name="pool", shape=(1, x.shape[-1]))
            tokens = [self.norm(model.final_norm, self.emit(Pool(pooled, x.name, spec.num_prefix)))]
        else:
            x = self.norm(model.final_norm, x)
            names = (
                ["class_token", "distillation_token"] if spec.dist_token and model.head is not None else ["class_token"]
            )
            tokens = [
                self.emit(Take(replace(x, name=name, shape=(1, x.shape[-1])), x.name, index))
                for index, name in enumerate(names)
            ]
        if model.head is None:
            return tokens[0]
        layers = [model.head] if len(tokens) == 1 else [model.head, model.head_dist or model.head]
        out = self.logits_value(layers)
        if len(layers) == 1:
            return self.head(layers[0], tokens[0], out)
        a, b = (
            self.head(layer, token, replace(out, name=f"{name}_logits"), share=0.5)
            for layer, token, name in zip(layers, tokens, ("class", "distillation"), strict=True)
        )
        same = rescale(np.ones(1), out.name)
        return self.emit(Add(out, a.name, b.name, *same, *same))

    def head(self, layer: QuantLinear, x: Value, out: Value, share: float = 1.0) -> Value:
        """One head, at the scale of the logits; ``share`` is its weight among them."""
        grid = self.model.final_norm.require_params()
        shared = replace(out, scale=(out.scale / share).astype(np.float32))
        if layer.output.active:
            return self.requantize(self.linear(layer, x, grid, out), shared)
        return self.linear(layer, x, grid, shared)

    def logits_value(self, layers: list[QuantLinear]) -> Value:
        """One scale for all classes: as fine as the largest logits allow."""
        largest, coarsest = 0.0, 0.0
        for layer in layers:
            weight, _, scale, limit = integer_form(layer, self.model.final_norm.require_params())
            if layer.output.active:
                value = value_of(layer.output, (1, len(weight)))
                scale, limit = scales(value), np.array([value.centred_limit])
            largest = max(largest, float((limit * scale).max()))
            coarsest = max(coarsest, float(scale.max()))
        unit = max(coarsest * 2.0**-LOGIT_BITS, largest / (ADDEND_LIMIT / 2))
        classes = len(layers[0].weight_codes)
        return Value("logits", (1, classes), -ADDEND_LIMIT, ADDEND_LIMIT, *plain(unit))


def image_value(preprocessing: Preprocessing) -> Value:
    """The pixels: their mean and standard deviation are in the weights of the patch embedding."""
    return Value("image", tuple(preprocessing.shape), 0, 255, *plain(1))


def scales(value: Value) -> Array:
    """A scale for each place of the axis, in the precision in which multipliers are made."""
    return value.spread(value.scale).astype(np.float64)


def plain(scale: float) -> tuple[Array, Array]:
    """One scale, and no zero point."""
    return np.array([scale], dtype=np.float32), np.zeros(1, dtype=np.int32)


def value_of(point: Point, shape: tuple[int, ...]) -> Value:
    """What a point's codes are, its scales written down once for each run of equal ones."""
    grid = point.require_params()
    length = shape[0] if len(shape) == 3 else shape[-1]
    scale = grid.scale.reshape(-1).cpu().numpy()
    zero = grid.zero_point.reshape(-1).cpu().numpy().astype(np.int32)
    groups = next(g for g in divisors(length) if len(scale) == 1 or (runs_equal(scale, g) and runs_equal(zero, g)))
    step = max(1, len(scale) // groups)
    return Value(point.name, shape, grid.qmin, grid.qmax, scale[::step].copy(), zero[::step].copy())


def divisors(n: int) -> Iterator[int]:
    """All divisors, from 1 up."""
    return (d for d in range(1, n + 1) if n % d == 0)


def runs_equal(array: Array, groups: int) -> bool:
    """Whether each of ``groups`` runs of neighbours holds one number."""
    rows = array.reshape(groups, -1)
    return bool((rows == rows[:, :1]).all())


def addend(stream: Value, name: str, tokens: int) -> Value:
    """A value on the scale of the stream that it is added to, without zero point; only the sum is clamped to codes."""
    shape = (tokens, stream.shape[-1])
    return Value(name, shape, -ADDEND_LIMIT, ADDEND_LIMIT, stream.scale, np.zeros_like(stream.zero_point))


def integer_form(layer: QuantLinear, grid: QuantParams) -> tuple[Array, Array, Array, Array]:
    """The layer for codes of ``grid``: weight ``[out, in]``, bias int64, scale float64 and limit int64 ``[out]``."""
    form = layer.integer_form(grid)
    # The layer keeps the form, so the program gets copies.
    weight, bias, scale, limit = (t.cpu().numpy().copy() for t in (form.weight, form.bias, form.scale, form.limit))
    return weight, bias, scale, limit


def rescale(real: Tensor | Array, name: str, limit: Tensor | Array | int = INT32_MAX) -> tuple[Array, Array]:
    """Real multipliers as ``multiplier`` (int32) and ``shift`` (uint8), one element where all are equal.

    ``limit`` bounds what is multiplied.

    Raises:
        NumericsError: a multiplier cannot be expressed.
    """
    real, limit = torch.as_tensor(real, dtype=torch.float64), torch.as_tensor(limit)
    real = at_least_smallest(real, limit)
    if bool((real == real[0]).all()):
        real = real[:1]
    try:
        multiplier, shift = dyadic(real)
    except NumericsError as error:
        raise error.located(name) from error
    return multiplier.cpu().numpy().astype(np.int32), shift.cpu().numpy().astype(np.uint8)


def as_int32(x: Tensor) -> Array:
    """Whole numbers of any type as an int32 array."""
    array: Array = x.cpu().numpy().astype(np.int32)
    return array
