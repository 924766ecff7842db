"""The reference executor: what each operation of an integer program means, in plain integer tensor operations.

It runs wherever torch runs, on any number of images at a time, and no tensor in it is floating-point.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vitquant.arguments import require_kind
from vitquant.device import require_device
from vitquant.errors import ProgramError
from vitquant.layers.memory import memory_named
from vitquant.layers.plain_torch import plain_torch
from vitquant.numerics.layernorm import IntegerLayerNorm
from vitquant.numerics.matmul import int_matmul
from vitquant.numerics.mean import rounded_mean
from vitquant.numerics.requantize import half, rescale
from vitquant.numerics.softmax import divide, log2_weights, look_up, shares
from vitquant.numerics.tokens import merge_heads, patchify, split_heads
from vitquant.program import ops
from vitquant.program.program import IntegerProgram
from vitquant.program.values import Array, Value

TORCH_TYPES = {
    "int8": torch.int8,
    "uint8": torch.uint8,
    "int16": torch.int16,
    "int32": torch.int32,
    "int64": torch.int64,
}


@dataclass(frozen=True)
class Logits:
    """What a program gives: ``codes`` int32 ``[B, K]``, and the ``scale`` that makes them logits, ``[1 or K]``."""

    codes: Tensor
    scale: Tensor

    def real(self) -> Tensor:
        """The logits as floats."""
        return self.codes * self.scale


class Reference:
    """Executes a copy of a program. Constants are put on the device once; a call keeps nothing but what it is asked
    for, so several threads may call one executor.

    Args:
        program: checked already, as all are that were compiled or loaded.
        device: where to compute: any device of PyTorch that is there.

    Raises:
        ConfigError, DeviceError: ``program`` is none, or the device is unknown or not there.
    """

    @plain_torch()
    def __init__(self, program: IntegerProgram, device: torch.device | str = "cpu") -> None:
        program = copy.deepcopy(require_kind(program, IntegerProgram, "program"))  # whose arrays are read in every call
        self.program, self.device = program, require_device(device)
        self.values = program.values()
        self.steps = [(op, self._constants(op)) for op in program.operations]
        self.last_use = {name: op.out.name for op in program.operations for name in op.inputs()}
        output = program.output_value
        self.output_zero = self._tensor(output.spread(output.zero_point))
        scale = output.scale if len(output.scale) == 1 else output.spread(output.scale)
        self.output_scale = self._tensor(scale.copy())

    def __call__(self, images: Tensor) -> Logits:
        """Images, uint8 ``[B, C, h, w]``, to logits.

        Raises:
            ProgramError: the images are of another type or shape.
            OutOfMemoryError: naming the value that memory did not suffice for.
        """
        return Logits(self.run(images)[self.program.output], self.output_scale.clone())

    @plain_torch()
    def run(self, images: Tensor, keep: Collection[str] = ()) -> dict[str, Tensor]:
        """The output's codes less their zero point, and the codes ``[B, ...]`` of the values named in ``keep``."""
        require_pixels(self.program, images)
        wanted = {*keep, self.program.output}
        held = {self.program.image.name: images.to(self.device)}
        for op, constants in self.steps:
            with memory_named(op.out.name, images):
                held[op.out.name] = EXECUTE[type(op)](op, constants, Inputs(held, self.values))
            for name in op.inputs():
                if self.last_use[name] == op.out.name and name not in wanted:
                    held.pop(name, None)  # an operation may read one value twice
        output = held[self.program.output]
        found = {name: held[name] for name in keep}
        found[self.program.output] = (output.long() - self.output_zero).to(torch.int32)[:, 0]
        return found

    def _tensor(self, array: Any) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(array)).to(self.device)

    def _constants(self, op: ops.Operation) -> dict[str, Tensor]:
        """The operation's tensors, in the form in which they are used."""
        found = {name: self._tensor(array) for name, array in op.constants()}
        for name in list(found):
            if name.startswith(("multiplier", "shift")):
                found[name] = along(op.out, found[name].long())
        if "multiplier" in found:  # what rescaling begins with
            found["start"] = half(found["shift"])
        if isinstance(op, ops.Linear):  # ``(acc + bias) m`` is ``acc m + bias m``, one pass less
            found["weight"] = found["weight"].t()
            found["start"] = found["start"] + found["bias"] * found["multiplier"]
        zero = op.out.zero_point
        found["zero"] = along(op.out, self._tensor(zero if len(zero) == 1 else op.out.spread(zero)))
        return found


def require_pixels(program: IntegerProgram, images: Tensor) -> Tensor:
    """The images, if they are what the program takes: uint8 ``[B, C, h, w]``.

    Raises:
        ProgramError: they are of another type or shape, or there are none.
    """
    shape = program.image.shape
    tensor = isinstance(images, Tensor)
    if not tensor or images.dtype != torch.uint8 or tuple(images.shape[1:]) != shape or not len(images):
        raise ProgramError(
            "images that the program does not take",
            where="images",
            got=f"{str(images.dtype).removeprefix('torch.')} {list(images.shape)}" if tensor else type(images).__name__,
            expected=f"uint8 [N, {', '.join(map(str, shape))}]",
            fix="give the pixels as they are, resized and cropped to this size",
        )
    return images


@dataclass(frozen=True)
class Inputs:
    """The tensors and the meanings of the values that an operation reads."""

    tensors: Mapping[str, Tensor]
    values: Mapping[str, Value]

    def __getitem__(self, name: str) -> Tensor:
        return self.tensors[name]

    def zero(self, name: str) -> Tensor | None:
        """The zero point, in the form that meets the tensor; ``None`` where it is 0."""
        value = self.values[name]
        if value.is_plain:
            return None
        return along(value, torch.from_numpy(value.spread(value.zero_point)).to(self.tensors[name].device))

    def centred(self, name: str) -> Tensor:
        """Codes less their zero point, in the narrowest type."""
        zero, value = self.zero(name), self.values[name]
        if zero is None:
            return self.tensors[name]
        centred = self.tensors[name].to(torch.int32) - zero
        return centred.to(torch.int16) if value.centred_limit < 2**15 else centred


Constants = Mapping[str, Tensor]


def along(value: Value, per_place: Tensor) -> Tensor:
    """One number for each channel, or for each head of scores, in the form that meets the tensor."""
    return per_place[:, None, None] if len(value.shape) == 3 and len(per_place) > 1 else per_place


def stored(y: Tensor, value: Value) -> Tensor:
    """Clamped to the value's codes, in its type."""
    return y.clamp_(value.low, value.high).to(TORCH_TYPES[value.dtype.name])


def requantized(acc: Tensor, op: ops.Operation, c: Constants) -> Tensor:
    """Accumulators to codes: rescale, add the zero point, clamp."""
    return stored(with_zero(rescale(acc, c["multiplier"], c["shift"], c["start"]), op, c), op.out)


def with_zero(y: Tensor, op: ops.Operation, c: Constants) -> Tensor:
    """The zero point of the operation's value added in place, if it has one."""
    return y if op.out.is_plain else y.add_(c["zero"])


def patches(op: ops.Patches, c: Constants, x: Inputs) -> Tensor:
    """Layout only."""
    return patchify(x[op.x], (op.height, op.width))


def linear(op: ops.Linear, c: Constants, x: Inputs) -> Tensor:
    """Products of codes, the bias, requantized; the bias is in the start."""
    return requantized(int_matmul(x[op.x], c["weight"]), op, c)


def embed(op: ops.Embed, c: Constants, x: Inputs) -> Tensor:
    """Patch tokens added to the table's rows after the prefix."""
    y = rescale(x.centred(op.x), c["multiplier"], c["shift"], c["start"])
    table = c["table"].long().expand(len(y), -1, -1).clone()
    table[:, op.prefix :] += y
    return stored(table, op.out)


def layernorm(op: ops.LayerNorm, c: Constants, x: Inputs) -> Tensor:
    """As told in :mod:`vitquant.numerics.layernorm`."""
    out = op.out
    norm = IntegerLayerNorm(
        gain=c["gain"],
        offset=c["offset"],
        shift=c["shift"],
        epsilon=int(op.epsilon[0]),
        headroom=op.headroom,
        zero_point=c["zero"],
        qmin=out.low,
        qmax=out.high,
    )
    return norm(x[op.x]).to(TORCH_TYPES[out.dtype.name])


def requantize(op: ops.Requantize, c: Constants, x: Inputs) -> Tensor:
    """Some channels of a value, on another grid."""
    return requantized(x.centred(op.x)[..., op.start : op.start + op.out.shape[-1]], op, c)


def scores(op: ops.Scores, c: Constants, x: Inputs) -> Tensor:
    """Q and K, head by head."""
    q, k = (split_heads(x.centred(name), op.out.shape[0]) for name in (op.q, op.k))
    return requantized(int_matmul(q, k.transpose(-1, -2)), op, c)


def softmax_row(op: ops.SoftmaxRow, c: Constants, x: Inputs) -> Tensor:
    """Exponentials by the distance from the row's maximum."""
    return look_up(c["table"].to(TORCH_TYPES[op.out.dtype.name]), x[op.x])


def softmax_uniform(op: ops.SoftmaxUniform, c: Constants, x: Inputs) -> Tensor:
    """Shares of exponentials in their row, on an affine grid."""
    return requantized(shares(look_up(c["table"], x[op.x])), op, c)


def softmax_log2(op: ops.SoftmaxLog2, c: Constants, x: Inputs) -> Tensor:
    """Shares of exponentials in their row, as powers of two."""
    return log2_weights(look_up(c["table"], x[op.x]), op.last).to(TORCH_TYPES[op.out.dtype.name])


def mix(op: ops.Mix, c: Constants, x: Inputs) -> Tensor:
    """The weights times V, divided by the row's sum where they are no shares yet."""
    p = x.centred(op.p)
    acc = int_matmul(p, split_heads(x.centred(op.v), p.shape[1]))
    if op.normalize:
        total = p.sum(-1, keepdim=True, dtype=torch.int64)
        acc = divide(acc, total, op.reciprocal_bits, op.fraction_bits)
    return requantized(merge_heads(acc), op, c)


def add(op: ops.Add, c: Constants, x: Inputs) -> Tensor:
    """Both addends at the scale of the sum."""
    total = rescale(x.centred(op.a), c["multiplier_a"], c["shift_a"])
    b = x.centred(op.b)
    total += b if is_one(op.multiplier_b, op.shift_b) else rescale(b, c["multiplier_b"], c["shift_b"])
    return stored(with_zero(total, op, c), op.out)


def is_one(multiplier: Array, shift: Array) -> bool:
    """Whether a multiplier is exactly 1: what a linear layer wrote at the scale of the sum needs no other."""
    return len(multiplier) == 1 and int(multiplier[0]) == 1 << int(shift[0])


def lookup(op: ops.Lookup, c: Constants, x: Inputs) -> Tensor:
    """A table, or one for each kind of channel."""
    tables, codes = c["tables"], x[op.x].to(torch.int32)
    index = codes + (c["table_of"] * tables.shape[1] - x.values[op.x].low)
    return tables.flatten().index_select(0, index.flatten()).reshape(codes.shape)


def take(op: ops.Take, c: Constants, x: Inputs) -> Tensor:
    """One token."""
    return x[op.x][:, op.token : op.token + 1]


def pool(op: ops.Pool, c: Constants, x: Inputs) -> Tensor:
    """The rounded mean of the patch tokens."""
    return stored(rounded_mean(x[op.x][:, op.first :])[:, None], op.out)


EXECUTE: Mapping[type[ops.Operation], Callable[[Any, Constants, Inputs], Tensor]] = {
    ops.Patches: patches,
    ops.Linear: linear,
    ops.Embed: embed,
    ops.LayerNorm: layernorm,
    ops.Requantize: requantize,
    ops.Scores: scores,
    ops.SoftmaxRow: softmax_row,
    ops.SoftmaxUniform: softmax_uniform,
    ops.SoftmaxLog2: softmax_log2,
    ops.Mix: mix,
    ops.Add: add,
    ops.Lookup: lookup,
    ops.Take: take,
    ops.Pool: pool,
}
