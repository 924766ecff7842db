"""Operations on each code by itself."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from vitquant.program.checks import KnownValues, check_operand, refuse, require_int32
from vitquant.program.ops.operation import Key, Multiplier, Operand, Operation, Shift, Sizes, TensorField
from vitquant.program.values import Array


@dataclass(frozen=True)
class Requantize(Operation):
    """``requantize(x - zero)`` of the channels ``start .. start + C``."""

    kind = "requantize"
    makes = "N C"
    x: Annotated[str, Operand("N D")]
    start: Annotated[int, Key(0)]
    multiplier: Multiplier
    shift: Shift

    def check(self, sizes: Sizes, known: KnownValues) -> None:
        stop = self.start + sizes["C"]
        if stop > sizes["D"]:
            refuse(self.out.name, "too many channels", got=f"{self.start} .. {stop}", expected=f"of {sizes['D']}")


@dataclass(frozen=True)
class Add(Operation):
    """``clamp(zero + requantize(a - zero_a) + requantize(b - zero_b))``."""

    kind = "add"
    makes = "N C"
    a: Annotated[str, Operand("N C")]
    b: Annotated[str, Operand("N C")]
    multiplier_a: Multiplier
    shift_a: Shift
    multiplier_b: Multiplier
    shift_b: Shift


@dataclass(frozen=True)
class Multiply(Operation):
    """``requantize((a - zero_a) (b - zero_b))``, code by code."""

    kind = "multiply"
    since = 2
    makes = "N C"
    a: Annotated[str, Operand("N C")]
    b: Annotated[str, Operand("N C")]
    multiplier: Multiplier
    shift: Shift

    def check(self, sizes: Sizes, known: KnownValues) -> None:
        a, b = known[self.a].centred_limit, known[self.b].centred_limit
        check_operand(self.out.name, 0, max(a, b))
        require_int32(self.out.name, a * b)


@dataclass(frozen=True)
class Lookup(Operation):
    """``tables[table_of[channel], x - low]``, any function of one code."""

    kind = "lookup"
    makes = "N C"
    x: Annotated[str, Operand("N C")]
    tables: Annotated[Array, TensorField("T L")]
    table_of: Annotated[Array, TensorField("C", ("int32",))]

    def check(self, sizes: Sizes, known: KnownValues) -> None:
        name, out = self.out.name, self.out
        if self.tables.min() < out.low or self.tables.max() > out.high:
            refuse(f"{name}/tables", "out of range", expected=f"{out.low} .. {out.high}")
        if self.table_of.min() < 0 or self.table_of.max() >= len(self.tables):
            refuse(f"{name}/table_of", "there are not so many tables", expected=f"0 .. {len(self.tables) - 1}")


OPERATIONS = (Requantize, Add, Multiply, Lookup)
