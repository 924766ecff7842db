"""The operations of an integer program, one file for each family.

What each one computes is told in full in ``docs/program-format.md``; the files of the same names in
:mod:`vitquant.executors.reference` are the definition that runs.
"""

from collections.abc import Mapping
from types import MappingProxyType

from vitquant.program.ops import attention, elementwise, layernorm, linear, rotary, tokens
from vitquant.program.ops.attention import (
    Mix,
    Scores,
    SoftmaxDiffusion,
    SoftmaxLog2,
    SoftmaxRow,
    SoftmaxUniform,
    no_table,
)
from vitquant.program.ops.elementwise import Add, Lookup, Multiply, Requantize
from vitquant.program.ops.layernorm import LayerNorm
from vitquant.program.ops.linear import Linear
from vitquant.program.ops.operation import Operation
from vitquant.program.ops.rotary import Rotary
from vitquant.program.ops.tokens import Constant, Embed, Gather, Patches, Pool, Take

FAMILIES = (tokens, linear, layernorm, elementwise, rotary, attention)

OPERATIONS: tuple[type[Operation], ...] = tuple(kind for family in FAMILIES for kind in family.OPERATIONS)

KINDS: Mapping[str, type[Operation]] = MappingProxyType({op.kind: op for op in OPERATIONS})

__all__ = [
    "FAMILIES",
    "KINDS",
    "OPERATIONS",
    "Add",
    "Constant",
    "Embed",
    "Gather",
    "LayerNorm",
    "Linear",
    "Lookup",
    "Mix",
    "Multiply",
    "Operation",
    "Patches",
    "Pool",
    "Requantize",
    "Rotary",
    "Scores",
    "SoftmaxDiffusion",
    "SoftmaxLog2",
    "SoftmaxRow",
    "SoftmaxUniform",
    "Take",
    "no_table",
]
