"""Operations that make, choose and arrange tokens."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from vitquant.executors.reference.tensors import TORCH_TYPES, Constants, Execute, Inputs, stored
from vitquant.numerics.mean import rounded_mean
from vitquant.numerics.requantize import rescale
from vitquant.numerics.tokens import patchify
from vitquant.program import ops


def patches(op: ops.Patches, c: Constants, x: Inputs) -> Tensor:
    """Layout only."""
    return patchify(x[op.x], (op.height, op.width))


def embed(op: ops.Embed, c: Constants, x: Inputs) -> Tensor:
    """Patch tokens added to the table's rows after the prefix."""
    y = rescale(x.centred(op.x), c["multiplier"], c["shift"], c["start"])
    table = c["table"].long().expand(len(y), -1, -1).clone()
    table[:, op.prefix :] += y
    return stored(table, op.out)


def constant(op: ops.Constant, c: Constants, x: Inputs) -> Tensor:
    """The same for every image."""
    return c["table"].expand(x.batch, -1, -1)


def gather(op: ops.Gather, c: Constants, x: Inputs) -> Tensor:
    """Rows by number, of which -1 is the zero point."""
    value, rows = x.values[op.x], x[op.x].to(TORCH_TYPES[op.out.dtype.name])
    zero = torch.from_numpy(value.spread(value.zero_point)).to(rows)
    rows = torch.cat([rows, zero.expand(x.batch, 1, -1)], dim=1)
    return rows[:, c["index"].long()].reshape(x.batch, *op.out.shape)


def take(op: ops.Take, c: Constants, x: Inputs) -> Tensor:
    """One token."""
    return x[op.x][:, op.token : op.token + 1]


def pool(op: ops.Pool, c: Constants, x: Inputs) -> Tensor:
    """The rounded mean of the patch tokens."""
    return stored(rounded_mean(x[op.x][:, op.first :])[:, None], op.out)


EXECUTE: Mapping[type[ops.Operation], Execute] = {
    ops.Patches: patches,
    ops.Embed: embed,
    ops.Constant: constant,
    ops.Gather: gather,
    ops.Take: take,
    ops.Pool: pool,
}
