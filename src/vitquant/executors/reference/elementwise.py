"""Operations on each code by itself."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from vitquant.executors.reference.tensors import Constants, Execute, Inputs, requantized, stored, with_zero
from vitquant.numerics.requantize import rescale
from vitquant.program import ops
from vitquant.program.values import Array


def requantize(op: ops.Requantize, c: Constants, x: Inputs) -> Tensor:
    """Some channels of a value, on another grid."""
    return requantized(x.centred(op.x)[..., op.start : op.start + op.out.shape[-1]], op, c)


def add(op: ops.Add, c: Constants, x: Inputs) -> Tensor:
    """Both addends at the scale of the sum."""
    total = rescale(x.centred(op.a), c["multiplier_a"], c["shift_a"])
    b = x.centred(op.b)
    total += b if is_one(op.multiplier_b, op.shift_b) else rescale(b, c["multiplier_b"], c["shift_b"])
    return stored(with_zero(total, op, c), op.out)


def is_one(multiplier: Array, shift: Array) -> bool:
    """Whether a multiplier is exactly 1: what a linear layer wrote at the scale of the sum needs no other."""
    return len(multiplier) == 1 and int(multiplier[0]) == 1 << int(shift[0])


def multiply(op: ops.Multiply, c: Constants, x: Inputs) -> Tensor:
    """The product of both, code by code."""
    return requantized(x.centred(op.a).long() * x.centred(op.b), op, c)


def lookup(op: ops.Lookup, c: Constants, x: Inputs) -> Tensor:
    """A table, or one for each kind of channel."""
    tables, codes = c["tables"], x[op.x].to(torch.int32)
    index = codes + (c["table_of"] * tables.shape[1] - x.values[op.x].low)
    return tables.flatten().index_select(0, index.flatten()).reshape(codes.shape)


EXECUTE: Mapping[type[ops.Operation], Execute] = {
    ops.Requantize: requantize,
    ops.Add: add,
    ops.Multiply: multiply,
    ops.Lookup: lookup,
}
