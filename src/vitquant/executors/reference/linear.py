"""The linear layer."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from vitquant.executors.reference.tensors import Constants, Execute, Inputs, Prepare, requantized
from vitquant.numerics.matmul import int_matmul
from vitquant.program import ops


def linear(op: ops.Linear, c: Constants, x: Inputs) -> Tensor:
    """Products of codes, the bias, requantized; the bias is in the start."""
    return requantized(int_matmul(x[op.x], c["weight"]), op, c)


def prepare(op: ops.Linear, c: dict[str, Tensor]) -> dict[str, Tensor]:
    """``(acc + bias) m`` is ``acc m + bias m``, one pass less."""
    return {**c, "weight": c["weight"].t(), "start": c["start"] + c["bias"] * c["multiplier"]}


EXECUTE: Mapping[type[ops.Operation], Execute] = {
    ops.Linear: linear,
}

PREPARE: Mapping[type[ops.Operation], Prepare] = {ops.Linear: prepare}
