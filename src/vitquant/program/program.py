"""The integer program: a short typed list of operations between named tensors of codes.

Everything in this package needs NumPy only. Nothing in a program refers to torch or to the model it was made
from, so an executor can live on the saved files alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from vitquant.errors import ConfigError
from vitquant.numerics.packing import Packing
from vitquant.program.ops import Operation
from vitquant.program.values import Array, Value


@dataclass(frozen=True)
class Output:
    """What a program gives under a name: the codes of a value less their zero points.

    ``pooled`` values have one row, and are given as ``[C]`` for each image; others as ``[N, C]``.
    """

    name: str
    value: str
    pooled: bool = True


@dataclass(frozen=True)
class IntegerProgram:
    """Image in, named outputs out, integers only.

    ``image`` is the ``uint8`` input, ``operations`` run in order, each making one new value. The first of ``outputs``
    is what an executor gives if it is not asked for another; the compiler makes it the logits (or the pooled features
    of a model without a head). ``metadata`` (JSON) tells what the program was made from, and how a picture becomes
    ``image``. ``packed`` says which constants take fewer than 8 bits per element in files; executors see int8.
    """

    image: Value
    operations: tuple[Operation, ...]
    outputs: tuple[Output, ...]
    metadata: Mapping[str, Any] = field(default_factory=dict)
    packed: Mapping[str, Packing] = field(default_factory=dict)

    def values(self) -> dict[str, Value]:
        """Every value by name, the image first."""
        return {v.name: v for v in (self.image, *(op.out for op in self.operations))}

    def tensors(self) -> Iterator[tuple[str, Array]]:
        """Every constant of the operations, as ``<value>/<field>``."""
        for op in self.operations:
            for name, array in op.constants():
                yield f"{op.out.name}/{name}", array

    @property
    def nbytes(self) -> int:
        """Bytes of all constants, scales and zero points as the program's files hold them."""
        grids = sum(v.scale.nbytes + v.zero_point.nbytes for v in self.values().values())
        packed = self.packed
        sizes = (len(a) * packed[name].row_bytes if name in packed else a.nbytes for name, a in self.tensors())
        return grids + sum(sizes)

    def choose(self, names: Sequence[str] = ()) -> tuple[Output, ...]:
        """The outputs of these names, in this order; without names the first.

        Raises:
            ConfigError: the program has no such output.
        """
        known = {output.name: output for output in self.outputs}
        for name in names:
            if name not in known:
                raise ConfigError(
                    "the program has no such output",
                    where="output",
                    got=ascii(name)[:100],
                    expected=" or ".join(known),
                    fix="" if len(known) > 1 else "compile the model again with this version",
                )
        return tuple(known[name] for name in dict.fromkeys(names)) or self.outputs[:1]

    def needed(self, values: Iterable[str]) -> tuple[Operation, ...]:
        """The operations that these values depend on, in order."""
        wanted = set(values)
        found = []
        for op in reversed(self.operations):
            if op.out.name in wanted:
                wanted.update(op.inputs())
                found.append(op)
        return tuple(reversed(found))

    def __str__(self) -> str:
        return "\n".join(self._lines())

    def _lines(self) -> Iterator[str]:
        values = self.values()
        name, size = self.metadata.get("model", "integer program"), self.nbytes / 1e6
        yield f"{name}: {len(self.operations)} operations, {size:.1f} MB of integers"
        yield f"{self.image.name:32} {'':17} {shape(self.image):16} {self.image.kind}"
        for op in self.operations:
            out, made_of = op.out, ", ".join(op.inputs())
            weight = getattr(op, "weight", None)
            detail = "" if weight is None else f" x {weight.dtype} {'x'.join(map(str, weight.shape))}"
            yield f"{out.name:32} {op.kind:17} {shape(out):16} {out.kind:7} {meaning(out):36} <- {made_of}{detail}"
        for output in self.outputs:
            scale = meaning(values[output.value]).removeprefix("x ")
            yield f"output {output.name}: {output.value}, less its zero point, times {scale}"


def shape(value: Value) -> str:
    """Such as ``257x384``."""
    return "x".join(map(str, value.shape))


def meaning(value: Value) -> str:
    """Scale and zero point in a few characters: ``x 0.0123 - 128``, ``x 0.01..0.2 (384)``."""
    low, high = float(value.scale.min()), float(value.scale.max())
    count = len(value.scale)
    scale = f"x {low:.3g}" if low == high else f"x {low:.3g}..{high:.3g} ({count})"
    if value.is_plain:
        return scale
    zeros = int(value.zero_point.min()), int(value.zero_point.max())
    return f"{scale}, zero {zeros[0]}" if zeros[0] == zeros[1] else f"{scale}, zero {zeros[0]}..{zeros[1]}"
