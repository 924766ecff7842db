"""Rotary position embedding."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import numpy as np

from vitquant.program.checks import KnownValues, check_operand, refuse, require_int32
from vitquant.program.ops.operation import Multiplier, Operand, Operation, Shift, Sizes, TensorField
from vitquant.program.values import Array


@dataclass(frozen=True)
class Rotary(Operation):
    """Pairs of channels turned by an angle for each token: ``requantize(x cos + partner(x) sin)``, zero points removed.

    Within each run of ``D`` channels, channel ``d`` is paired with ``partner[d]``. Signs are in ``sin``, and so is what
    makes up for different scales of two partners.
    """

    kind = "rotary"
    since = 2
    makes = "N C"
    x: Annotated[str, Operand("N C")]
    cos: Annotated[Array, TensorField("N D", ("int16",))]
    sin: Annotated[Array, TensorField("N D", ("int16",))]
    partner: Annotated[Array, TensorField("D", ("int32",))]
    multiplier: Multiplier
    shift: Shift

    def check(self, sizes: Sizes, known: KnownValues) -> None:
        name, limit = self.out.name, known[self.x].centred_limit
        if sizes["C"] % sizes["D"]:
            refuse(name, "the channels are no whole number of runs", got=f"{sizes['C']} by {sizes['D']}")
        if self.partner.min() < 0 or self.partner.max() >= sizes["D"]:
            refuse(f"{name}/partner", "there is no such channel", expected=f"0 .. {sizes['D'] - 1}")
        check_operand(name, 0, limit)
        factors = np.abs(self.cos.astype(np.int64)) + np.abs(self.sin.astype(np.int64))
        require_int32(name, limit * int(factors.max()))


OPERATIONS = (Rotary,)
