"""LayerNorm."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from vitquant.program.checks import KnownValues, refuse
from vitquant.program.ops.operation import Key, Operand, Operation, Sizes, TensorField
from vitquant.program.values import Array


@dataclass(frozen=True)
class LayerNorm(Operation):
    """LayerNorm over the channels: exact sums, integer square root, one division a token, one gain a channel.

    ``epsilon`` has ``headroom`` fractional bits.
    """

    kind = "layernorm"
    makes = "N C"
    x: Annotated[str, Operand("N C")]
    gain: Annotated[Array, TensorField("C", ("int64",))]
    offset: Annotated[Array, TensorField("C", ("int64",))]
    shift: Annotated[Array, TensorField("C", ("uint8",))]
    epsilon: Annotated[Array, TensorField("1", ("int64",))]
    headroom: Annotated[int, Key(0, 60)]

    def check(self, sizes: Sizes, known: KnownValues) -> None:
        x, name, channels, epsilon = known[self.x], self.out.name, sizes["C"], int(self.epsilon[0])
        spread = x.high - x.low
        if spread >= 2**16 or self.headroom % 2 or epsilon < 0:
            refuse(name, "not an integer LayerNorm", got=f"{x.kind}, headroom {self.headroom}, epsilon {epsilon}")
        power = (channels**3 * (spread // 2 + 1) ** 2 << self.headroom) + epsilon
        if power >= 2**62 or channels > 2**12:
            refuse(name, "integer LayerNorm would overflow", got=f"{channels} channels, headroom {self.headroom}")
        for field, limit in (("gain", 2**36), ("offset", 2**60)):
            array = getattr(self, field)
            if array.min() < -limit or array.max() > limit:
                refuse(f"{name}/{field}", "out of range", expected=f"{-limit} .. {limit}")
        if self.shift.min() < 1 or self.shift.max() > 42:
            refuse(f"{name}/shift", "out of range", expected="1 .. 42")


OPERATIONS = (LayerNorm,)
