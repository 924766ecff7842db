"""What the operations share: their operands and constants as tensors, and the way back to codes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor

from vitquant.numerics.requantize import rescale
from vitquant.program.ops import Operation
from vitquant.program.values import Value

TORCH_TYPES = {
    "int8": torch.int8,
    "uint8": torch.uint8,
    "int16": torch.int16,
    "int32": torch.int32,
    "int64": torch.int64,
}

Constants: TypeAlias = Mapping[str, Tensor]
"""The tensors of an operation by field, besides ``start``, what rescaling begins with, and the result's ``zero``."""


@dataclass(frozen=True)
class Inputs:
    """The tensors and the meanings of the values that an operation reads; ``batch`` is the number of images."""

    tensors: Mapping[str, Tensor]
    values: Mapping[str, Value]
    batch: int

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


Execute: TypeAlias = Callable[[Any, Constants, Inputs], Tensor]
"""An operation, its constants and its operands, to the codes of its result ``[B, ...]``."""


Prepare: TypeAlias = Callable[[Any, dict[str, Tensor]], dict[str, Tensor]]
"""An operation and its constants, to these in the form in which they are used: what need not be done in every call."""


def along(value: Value, per_place: Tensor) -> Tensor:
    """One number for each channel, or for each head of scores, in the form that meets the tensor."""
    return per_place[:, None, None] if len(value.shape) == 3 and len(per_place) > 1 else per_place


def stored(y: Tensor, value: Value) -> Tensor:
    """Clamped to the value's codes, in its type."""
    return y.clamp_(value.low, value.high).to(TORCH_TYPES[value.dtype.name])


def requantized(acc: Tensor, op: Any, c: Constants) -> Tensor:
    """Accumulators to codes: rescale, add the zero point, clamp."""
    return stored(with_zero(rescale(acc, c["multiplier"], c["shift"], c["start"]), op, c), op.out)


def with_zero(y: Tensor, op: Operation, c: Constants) -> Tensor:
    """The zero point of the operation's value added in place, if it has one."""
    return y if op.out.is_plain else y.add_(c["zero"])
