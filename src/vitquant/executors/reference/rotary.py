"""Rotary position embedding."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from vitquant.executors.reference.tensors import Constants, Execute, Inputs, requantized
from vitquant.program import ops


def rotary(op: ops.Rotary, c: Constants, x: Inputs) -> Tensor:
    """Each channel turned together with its partner."""
    runs = x.centred(op.x).long().unflatten(-1, (-1, len(op.partner)))
    turned = runs * c["cos"][:, None] + runs[..., c["partner"].long()] * c["sin"][:, None]
    return requantized(turned.flatten(-2), op, c)


EXECUTE: Mapping[type[ops.Operation], Execute] = {
    ops.Rotary: rotary,
}
