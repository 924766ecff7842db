"""The linear layer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from vitquant.program.checks import KnownValues, accumulator_limit, check_operand, require_int32
from vitquant.program.ops.operation import Multiplier, Operand, Operation, Shift, Sizes, TensorField
from vitquant.program.values import Array


@dataclass(frozen=True)
class Linear(Operation):
    """``requantize(bias + x W^T)`` on tokens. The zero points of both sides are in the bias already.

    Weights lie within 24 bits.
    """

    kind = "linear"
    makes = "N O"
    x: Annotated[str, Operand("N I")]
    weight: Annotated[Array, TensorField("O I", ("int8", "int16", "int32"))]
    bias: Annotated[Array, TensorField("O", ("int32",))]
    multiplier: Multiplier
    shift: Shift

    def check(self, sizes: Sizes, known: KnownValues) -> None:
        x = known[self.x]
        check_operand(self.out.name, x.low, x.high)
        check_operand(self.out.name, int(self.weight.min()), int(self.weight.max()))
        require_int32(self.out.name, int(accumulator_limit(self.weight, self.bias, x).max()))


OPERATIONS = (Linear,)
