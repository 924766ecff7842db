"""LayerNorm."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from vitquant.executors.reference.tensors import TORCH_TYPES, Constants, Execute, Inputs
from vitquant.numerics.layernorm import IntegerLayerNorm
from vitquant.program import ops


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


EXECUTE: Mapping[type[ops.Operation], Execute] = {
    ops.LayerNorm: layernorm,
}
