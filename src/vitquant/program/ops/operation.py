"""What an operation is: a frozen record whose fields declare all that checks, storage and documents need to know.

Axes are written as in ``docs/program-format.md``: a letter is a length, which is the same wherever it stands in one
operation; a key of the operation stands for its number; lengths can be added, multiplied (``"C*height*width"``) and
divided without remainder (``"M/windows"``).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from types import MappingProxyType
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, TypeAlias, TypeVar, get_args, get_origin, get_type_hints

import numpy as np

from vitquant.numerics.limits import MAX_SHIFT, MULTIPLIER_BITS
from vitquant.program.values import Array, Value

if TYPE_CHECKING:
    from vitquant.program.checks import KnownValues

Sizes: TypeAlias = Mapping[str, int]
"""Lengths and keys of one operation, by name."""


@dataclass(frozen=True)
class Operand:
    """A field with the name of a value that is read, and the value's axes."""

    axes: str


@dataclass(frozen=True)
class Key:
    """A field with a number, at least ``low`` and at most ``high``."""

    low: int
    high: int | None = None


@dataclass(frozen=True)
class Flag:
    """A field that is true or false."""


@dataclass(frozen=True)
class TensorField:
    """A field with integers of one of these types; without types, of the storage type of the result."""

    axes: str
    types: tuple[str, ...] = ()


@dataclass(frozen=True)
class PerPlace:
    """A field with one integer within bounds, or one for each channel (head, for scores) of the result."""

    type: str
    low: int
    high: int


Multiplier: TypeAlias = Annotated[Array, PerPlace("int32", 2 ** (MULTIPLIER_BITS - 1), 2**MULTIPLIER_BITS - 1)]
Shift: TypeAlias = Annotated[Array, PerPlace("uint8", 0, MAX_SHIFT)]
"""Both belong together: ``(x * multiplier + 2^(shift-1)) >> shift`` in 64 bits, the half left out if the shift is 0."""

Declaration = TypeVar("Declaration")


@dataclass(frozen=True)
class Operation:
    """One step. ``kind`` is its name in files, ``makes`` are the axes of its result, ``out``."""

    kind: ClassVar[str]
    makes: ClassVar[str]
    since: ClassVar[int] = 1
    """The first version of the format that has it."""

    keeps_codes: ClassVar[bool] = False
    """Whether codes of ``x`` become codes of the result unchanged, so that its range must contain theirs."""

    declarations: ClassVar[Mapping[str, Any]]
    """What each field but ``out`` is declared as, in order."""

    reads: ClassVar[tuple[str, ...]]
    """The fields that name operands."""

    out: Value

    def __init_subclass__(cls) -> None:
        hints = get_type_hints(cls, include_extras=True)
        cls.declarations = MappingProxyType(
            {name: get_args(hint)[1] for name, hint in hints.items() if get_origin(hint) is Annotated}
        )
        cls.reads = tuple(cls.declared(Operand))

    @classmethod
    def declared(cls, what: type[Declaration]) -> Mapping[str, Declaration]:
        """The fields that are declared as ``what``, in order."""
        return {name: d for name, d in cls.declarations.items() if isinstance(d, what)}

    def inputs(self) -> tuple[str, ...]:
        """Names of the values that the operation reads."""
        return tuple(getattr(self, name) for name in self.reads)

    def constants(self) -> Iterator[tuple[str, Array]]:
        """The integer tensors of the operation, by field."""
        for f in fields(self):
            value = getattr(self, f.name)
            if isinstance(value, np.ndarray):
                yield f.name, value

    def check(self, sizes: Sizes, known: KnownValues) -> None:
        """What the declarations cannot say, after they have been checked.

        Raises:
            ProgramError: something does not fit.
            DeployabilityError: an accumulator could leave 32 bits.
        """


def length(expression: str, sizes: Sizes) -> int | None:
    """What an expression for the length of an axis amounts to; ``None`` if it is no length."""
    if "+" in expression:
        terms = [length(term, sizes) for term in expression.split("+")]
        return None if None in terms else sum(filter(None, terms))
    product = 1
    for factor in expression.split("*"):
        dividend, *divisors = (sizes.get(name, int(name) if name.isdigit() else 0) for name in factor.split("/"))
        for divisor in divisors:
            if divisor < 1 or dividend % divisor:
                return None
            dividend //= divisor
        product *= dividend
    return product
