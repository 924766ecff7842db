"""How each operation on tokens becomes nodes of an ONNX graph; those of attention are in ``attention``."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from vitquant.export.onnx.arithmetic import Rescaled, constant, half_length, isqrt, look_up, rescale, type_for
from vitquant.export.onnx.step import Step
from vitquant.numerics.layernorm import FRACTION, RECIPROCAL
from vitquant.program import ops
from vitquant.program.validate import accumulator_limit
from vitquant.program.values import Array, Value

INPUT, OUTPUT = "image", "logits"
"""What the graph takes and gives."""

SIGN = 128
"""Added to signed bytes, it makes them unsigned."""


@dataclass(frozen=True)
class Known:
    """The program's values, and how their tensors are called in the graph."""

    values: Mapping[str, Value]
    image: str

    def __getitem__(self, name: str) -> Value:
        return self.values[name]

    def tensor(self, name: str) -> str:
        """The value's own name, but where it would be that of the graph's input or output."""
        if name == self.image:
            return INPUT
        return f"{name}/codes" if name in (INPUT, OUTPUT) else name


def centred(step: Step, x: str, value: Value, multiplier: Array, shift: Array, part: slice = slice(None)) -> Rescaled:
    """``x`` less its zero point, rescaled; ``part`` are the channels that ``x`` has of the value."""
    zero = value.spread(value.zero_point)[part].astype(np.int64)
    return rescale(
        step, x, multiplier, -zero * multiplier.astype(np.int64), shift, max(abs(value.low), abs(value.high))
    )


def stored(step: Step, x: Rescaled, addend: Array, value: Value, known: Known) -> None:
    """``x + addend``, clamped to the value's codes, in its type and under its name."""
    plus = constant(addend) - x.offset
    limit = x.limit + int(np.abs(plus).max())
    y = step.node("Add", x.widened(step, limit), constant(plus, type_for(limit)))
    y = step.node("Clip", y, *(constant(end, type_for(limit)) for end in (value.low, value.high)))
    step.cast(y, value.dtype, known.tensor(value.name))


def requantized(step: Step, x: str, op: Any, known: Known, limit: Array | int, bias: Array | None = None) -> None:
    """Accumulators, and a bias, to codes: rescale, add the zero point, clamp. ``limit`` bounds the accumulators."""
    out: Value = op.out
    multiplier, shift = along(out, op.multiplier), along(out, op.shift)
    addend = constant(0) if bias is None else bias * multiplier.astype(np.int64)
    y = rescale(step, x, multiplier, addend, shift, limit)
    stored(step, y, along(out, out.spread(out.zero_point)), out, known)


def along(value: Value, per_place: Array) -> Array:
    """One number for each channel, or for each head of scores, in the form that meets the tensor."""
    return per_place.reshape(-1, 1, 1) if len(value.shape) == 3 and len(per_place) > 1 else per_place


def as_bytes(step: Step, x: str, value: Value) -> str:
    """Codes of one byte as unsigned ones."""
    if value.dtype == np.uint8:
        return x
    return step.node("BitwiseXor", step.cast(x, "uint8"), constant([SIGN], "uint8"))


def patches(step: Step, op: ops.Patches, known: Known) -> None:
    """Layout only."""
    channels, height, width = known[op.x].shape
    rows, columns = height // op.height, width // op.width
    x = step.reshape(known.tensor(op.x), channels, rows, op.height, columns, op.width)
    x = step.node("Transpose", x, perm=[0, 2, 4, 1, 3, 5])
    step.reshape(x, *op.out.shape, out=known.tensor(op.out.name))


def linear(step: Step, op: ops.Linear, known: Known) -> None:
    """Products of codes; the bias is in the addend of the requantization."""
    x, weight = known[op.x], np.ascontiguousarray(op.weight.T)
    tensor = known.tensor(op.x)
    if x.dtype.itemsize == 1 and weight.dtype == np.int8:
        unsigned = (weight.astype(np.int16) + SIGN).astype(np.uint8)
        zeros = (constant(z, "uint8") for z in (SIGN if x.dtype == np.int8 else 0, SIGN))
        acc = step.node("MatMulInteger", as_bytes(step, tensor, x), unsigned, *zeros)
    else:
        # The file keeps the narrow weights; runtimes widen constants when they load it.
        acc = step.node("MatMul", step.cast(tensor, "int32"), step.node("Cast", weight, to=np.dtype("int32")))
    requantized(step, acc, op, known, accumulator_limit(op.weight, op.bias, x), op.bias)


def embed(step: Step, op: ops.Embed, known: Known) -> None:
    """Patch tokens, rows of zeros before them, added to the table."""
    x = known[op.x]
    y = centred(step, known.tensor(op.x), x, op.multiplier, op.shift)
    zero = constant(0, y.dtype)
    padded = step.node("Pad", y.tensor, constant([0, op.prefix, 0, 0, 0, 0]), zero) if op.prefix else y.tensor
    is_patch = (np.arange(len(op.table)) >= op.prefix)[:, None]
    stored(step, Rescaled(padded, is_patch * y.offset, y.limit), op.table, op.out, known)


def layernorm(step: Step, op: ops.LayerNorm, known: Known) -> None:
    """As told in :mod:`vitquant.numerics.layernorm`; what depends on a token's magnitude comes from small tables."""
    value, channels = known[op.x], op.out.shape[-1]
    # Codes counted from the lowest one: the mean goes anyway, and the sums fit 32 bits.
    x = step.node("Sub", step.cast(known.tensor(op.x), "int32"), constant(value.low, "int32"))
    x = step.node("Sub", step.node("Mul", x, constant(channels, "int32")), step.reduce("ReduceSum", x))
    x = step.cast(x, "int64")
    squares = step.reduce("ReduceSum", step.node("Mul", x, x))
    power = step.node("Add", step.node("Mul", squares, constant([2**op.headroom])), op.epsilon)
    length = half_length(step, power)
    k = np.minimum(31 - np.arange(32), 30 - op.headroom // 2)
    power = step.node("Mul", power, step.node("Gather", constant(4**k), length))
    radicand = step.node("Max", step.node("Div", power, constant([channels])), constant([1]))
    reciprocal = step.node("Div", constant([2**RECIPROCAL]), isqrt(step, radicand))
    shift = constant(RECIPROCAL - FRACTION - (k + op.headroom // 2))
    # |x| / deviation <= sqrt(channels) <= 2^6, so the products stay below 2^61.
    y = step.node("Mul", x, reciprocal)
    y = step.node("Add", y, step.node("Gather", (1 << 61) + (1 << (shift - 1)), length))
    places = step.node("Gather", shift.astype(np.uint64), length)
    y = step.cast(step.node("BitShift", step.cast(y, "uint64"), places, direction="RIGHT"), "int64")
    y = step.node("Sub", y, step.node("Gather", 1 << (61 - shift), length))
    limit = (math.isqrt(channels) + 1) << FRACTION
    out = op.out
    scaled = rescale(step, y, op.gain, op.offset, op.shift, limit)
    stored(step, scaled, out.spread(out.zero_point), out, known)


def requantize(step: Step, op: ops.Requantize, known: Known) -> None:
    """Some channels of a value, on another grid."""
    x, out = known[op.x], op.out
    part = slice(op.start, op.start + out.shape[-1])
    tensor = step.slice(known.tensor(op.x), 2, part.start, part.stop)
    y = centred(step, tensor, x, op.multiplier, op.shift, part)
    stored(step, y, out.spread(out.zero_point), out, known)


def add(step: Step, op: ops.Add, known: Known) -> None:
    """Both addends at the scale of the sum."""
    out = op.out
    a = centred(step, known.tensor(op.a), known[op.a], op.multiplier_a, op.shift_a)
    b = centred(step, known.tensor(op.b), known[op.b], op.multiplier_b, op.shift_b)
    limit = a.limit + b.limit
    total = Rescaled(step.node("Add", a.widened(step, limit), b.widened(step, limit)), a.offset + b.offset, limit)
    stored(step, total, out.spread(out.zero_point), out, known)


def lookup(step: Step, op: ops.Lookup, known: Known) -> None:
    """A table, or one for each kind of channel."""
    index = step.cast(known.tensor(op.x), "int32")
    begins = op.table_of * op.tables.shape[1] - known[op.x].low
    if begins.any():
        index = step.node("Add", index, begins.astype(np.int32))
    look_up(step, op.tables, index, op.out.shape, known.tensor(op.out.name))


def take(step: Step, op: ops.Take, known: Known) -> None:
    """One token."""
    step.slice(known.tensor(op.x), 1, op.token, op.token + 1, known.tensor(op.out.name))


def pool(step: Step, op: ops.Pool, known: Known) -> None:
    """The rounded mean of the patch tokens, counted from the lowest code, as ``Div`` rounds towards 0."""
    x = known[op.x]
    count = x.shape[0] - op.first
    tokens = step.slice(known.tensor(op.x), 1, op.first, x.shape[0])
    total = step.cast(step.reduce("ReduceSum", step.cast(tokens, "int32"), axis=1), "int64")
    total = step.node("Add", step.node("Mul", total, constant([2])), constant([count - 2 * count * x.low]))
    mean = step.node("Add", step.node("Div", total, constant([2 * count])), constant([x.low]))
    step.cast(mean, op.out.dtype, known.tensor(op.out.name))
