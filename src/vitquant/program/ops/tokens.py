"""Operations that make, choose and arrange tokens."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from vitquant.numerics.limits import ADDEND_LIMIT
from vitquant.program.checks import KnownValues, expect_shape, refuse, require_int32
from vitquant.program.ops.operation import Key, Multiplier, Operand, Operation, Shift, Sizes, TensorField
from vitquant.program.values import Array


@dataclass(frozen=True)
class Patches(Operation):
    """Cut the image into flattened patches; no arithmetic."""

    kind = "patches"
    makes = "P C*height*width"
    keeps_codes = True
    x: Annotated[str, Operand("C h w")]
    height: Annotated[int, Key(1)]
    width: Annotated[int, Key(1)]

    def check(self, sizes: Sizes, known: KnownValues) -> None:
        h, w = sizes["h"], sizes["w"]
        if h % self.height or w % self.width:
            refuse(self.out.name, "the patches do not tile the image", got=f"{self.height}x{self.width} of {h}x{w}")
        expect_shape(self.out, self.kind, (h // self.height * (w // self.width), self.out.shape[1]))


@dataclass(frozen=True)
class Embed(Operation):
    """``clamp(table + requantize(x - zero))``: patches to their places after ``prefix`` tokens.

    ``table`` holds positions, prefix tokens and the zero point; prefix tokens get nothing added.
    """

    kind = "embed"
    makes = "prefix+P C"
    x: Annotated[str, Operand("P C")]
    prefix: Annotated[int, Key(0)]
    table: Annotated[Array, TensorField("prefix+P C", ("int8", "uint8", "int16", "int32"))]
    multiplier: Multiplier
    shift: Shift

    def check(self, sizes: Sizes, known: KnownValues) -> None:
        if int(self.table.min()) < -ADDEND_LIMIT or int(self.table.max()) > ADDEND_LIMIT:
            refuse(f"{self.out.name}/table", "out of range", expected=f"{-ADDEND_LIMIT} .. {ADDEND_LIMIT}")


@dataclass(frozen=True)
class Constant(Operation):
    """The same tokens for every image: codes of the result."""

    kind = "constant"
    since = 2
    makes = "N C"
    table: Annotated[Array, TensorField("N C")]

    def check(self, sizes: Sizes, known: KnownValues) -> None:
        out = self.out
        if self.table.min() < out.low or self.table.max() > out.high:
            refuse(f"{out.name}/table", "out of range", expected=f"{out.low} .. {out.high}")


@dataclass(frozen=True)
class Gather(Operation):
    """Tokens in another order, some of them several times or not at all; -1 is a token of zero points.

    Where the result has ``r`` times the channels, each of its tokens consists of ``r`` in a row.
    """

    kind = "gather"
    since = 2
    makes = "K/r r*C"
    keeps_codes = True
    x: Annotated[str, Operand("N C")]
    index: Annotated[Array, TensorField("K", ("int32",))]

    def check(self, sizes: Sizes, known: KnownValues) -> None:
        count, channels = sizes["K"], sizes["C"]
        together = self.out.shape[1] // channels
        if together < 1 or count % together:
            refuse(self.out.name, "not so many tokens", got=f"{count}, {together} in each")
        expect_shape(self.out, self.kind, (count // together, together * channels))
        if self.index.min() < -1 or self.index.max() >= sizes["N"]:
            refuse(f"{self.out.name}/index", "there is no such token", expected=f"-1 .. {sizes['N'] - 1}")


@dataclass(frozen=True)
class Take(Operation):
    """One token."""

    kind = "take"
    makes = "1 C"
    keeps_codes = True
    x: Annotated[str, Operand("N C")]
    token: Annotated[int, Key(0)]

    def check(self, sizes: Sizes, known: KnownValues) -> None:
        check_token(self.out.name, self.token, sizes)


@dataclass(frozen=True)
class Pool(Operation):
    """The rounded mean of the tokens from ``first`` on: ``floor((2 sum + n) / 2n)``."""

    kind = "pool"
    makes = "1 C"
    keeps_codes = True
    x: Annotated[str, Operand("N C")]
    first: Annotated[int, Key(0)]

    def check(self, sizes: Sizes, known: KnownValues) -> None:
        x = known[self.x]
        check_token(self.out.name, self.first, sizes)
        require_int32(self.out.name, sizes["N"] * max(abs(x.low), abs(x.high)))


def check_token(name: str, token: int, sizes: Sizes) -> None:
    """A token that there is."""
    if token >= sizes["N"]:
        refuse(name, "there is no such token", got=token, expected=f"0 .. {sizes['N'] - 1}")


OPERATIONS = (Patches, Embed, Constant, Gather, Take, Pool)
