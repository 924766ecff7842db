"""Random integer programs, built from the operations alone: ranges, shapes and constants that no model would have.

Two kinds: those of :func:`random_program` follow one path from the image to the classes; those of
:func:`tangled_program` read any value, any number of times, and leave some unread.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np
from hypothesis import strategies as st

from vitquant.numerics.limits import ADDEND_LIMIT, INT32_MAX
from vitquant.numerics.packing import Packing
from vitquant.numerics.softmax import division_bits
from vitquant.program import ops
from vitquant.program.checks import OPERAND_LIMIT
from vitquant.program.program import IntegerProgram, Output
from vitquant.program.values import Array, Value, narrowest

Choice = TypeVar("Choice")

PLAIN = np.ones(1, dtype=np.float32), np.zeros(1, dtype=np.int32)
EXTREMES = (*["random"] * 15, "small", "largest", "smallest", "both ends", "zero")


@dataclass
class Maker:
    """Adds operations to a program. Everything but the order of the steps comes from the generator."""

    random: np.random.Generator
    operations: list[ops.Operation] = field(default_factory=list)
    packed: dict[str, Packing] = field(default_factory=dict)

    def emit(self, operation: ops.Operation) -> Value:
        self.operations.append(operation)
        return operation.out

    def pick(self, *choices: Choice) -> Choice:
        return choices[int(self.random.integers(len(choices)))]

    def size(self, low: int, high: int) -> int:
        return int(self.random.integers(low, high, endpoint=True))

    def chance(self, probability: float = 0.5) -> bool:
        return bool(self.random.random() < probability)

    def numbers(self, low: int, high: int, *shape: int) -> Array:
        """int64 in ``[low, high]``: spread out, near zero, or at the ends."""
        how = self.pick(*EXTREMES)
        if how == "largest":
            return np.full(shape, high)
        if how == "smallest":
            return np.full(shape, low)
        if how == "both ends":
            return np.where(self.random.random(shape) < 0.5, low, high)
        if how == "zero":
            return np.full(shape, min(max(0, low), high))
        if how == "small":
            low, high = max(low, min(-2, high - 1)), min(high, max(2, low + 1))
        return self.random.integers(low, high, shape, endpoint=True)

    def value(self, shape: tuple[int, ...], low: int | None = None, high: int | None = None) -> Value:
        """A new value; its range is given, or that of some width."""
        if low is None or high is None:
            bits = self.size(1, 17)
            low, high = (0, 2**bits - 1) if self.chance() else (-(2**bits) // 2, 2**bits // 2 - 1 + (bits == 1))
            if self.chance(0.1):
                low, high = -ADDEND_LIMIT, ADDEND_LIMIT
        length = shape[0] if len(shape) == 3 else shape[-1]
        groups = self.pick(*(g for g in range(1, length + 1) if length % g == 0))
        zero = self.numbers(low, high, groups) if self.chance(0.3) else np.zeros(groups, dtype=np.int64)
        zero = np.clip(zero, max(low, high - INT32_MAX), min(high, low + INT32_MAX))
        scale = self.random.uniform(0.001, 2, groups).astype(np.float32)
        return Value(f"v{len(self.operations)}", shape, low, high, scale, zero.astype(np.int32))

    def rescale(self, length: int, limit: int, out: Value) -> tuple[Array, Array]:
        """Multipliers that bring numbers up to ``limit`` about to where the output saturates."""
        length = length if self.chance() else 1
        multiplier = self.random.integers(2**21, 2**22, length)
        exact = 22 + np.log2(max(limit, 1)) - np.log2(out.high - out.low)
        shift = np.clip(np.round(exact) + self.random.integers(-4, 3, length), 0, 52)
        return multiplier.astype(np.int32), shift.astype(np.uint8)

    def patches(self, x: Value, height: int, width: int) -> Value:
        channels, h, w = x.shape
        shape = (h // height * (w // width), channels * height * width)
        ranges = ((x.low, x.high), (x.low - self.size(0, 300), x.high + self.size(0, 300)))
        return self.emit(ops.Patches(self.value(shape, *self.pick(*ranges)), x.name, height, width))

    def take(self, x: Value) -> Value:
        out = self.value((1, x.shape[1]), x.low, x.high)
        return self.emit(ops.Take(out, x.name, self.size(0, x.shape[0] - 1)))

    def pool(self, x: Value) -> Value:
        x = self.narrow(x, min(ADDEND_LIMIT, INT32_MAX // x.shape[0]))
        out = self.value((1, x.shape[1]), x.low, x.high)
        return self.emit(ops.Pool(out, x.name, self.size(0, x.shape[0] - 1)))

    def linear(self, x: Value, width: int, out: Value | None = None) -> Value:
        largest = max(abs(x.low), abs(x.high))
        room = INT32_MAX // (largest * x.shape[1])
        top = min(room, self.pick(1, 127, 128, 32767, OPERAND_LIMIT - 1))
        packing = self.packing(top, x.shape[1]) if self.chance(0.3) else None
        weight = self.numbers(-top, top, width, x.shape[1]) if packing is None else self.products(packing, width, top)
        left = INT32_MAX - np.abs(weight).sum(1) * largest
        limit = INT32_MAX if self.chance(0.1) else min(INT32_MAX, int(np.sqrt(x.shape[1]) * top * largest) + 1)
        bias = np.clip(self.numbers(-limit, limit, width), -left, left)
        out = self.value((x.shape[0], width)) if out is None else out
        dtype = narrowest(int(weight.min()), int(weight.max()))
        dtype = np.dtype("int16") if dtype == np.uint8 else dtype
        rescale = self.rescale(width, limit, out)
        if packing is not None:
            self.packed[f"{out.name}/weight"], dtype = packing, np.dtype("int8")
        return self.emit(ops.Linear(out, x.name, weight.astype(dtype), bias.astype(np.int32), *rescale))

    def packing(self, top: int, columns: int) -> Packing | None:
        """For weights of at most ``top``, if that leaves two bits."""
        widest = min(7, top.bit_length())
        return Packing(self.size(2, widest), columns, self.pick(0, self.size(1, columns))) if widest >= 2 else None

    def products(self, packing: Packing, rows: int, top: int) -> Array:
        """Weights that can be packed like this."""
        largest = 2 ** (packing.bits - 1)
        most = min(16, top // largest, 127 // largest) if packing.group else 1
        codes = self.numbers(-largest, largest - 1, rows, packing.columns)
        if not packing.group:
            return codes
        multipliers = np.repeat(self.numbers(1, most, rows, packing.groups), packing.group, axis=1)
        products: Array = codes * multipliers[:, : packing.columns]
        return products

    def embed(self, x: Value) -> Value:
        prefix = self.size(0, 3)
        out = self.value((x.shape[0] + prefix, x.shape[1]))
        table = self.numbers(max(2 * out.low, -ADDEND_LIMIT), min(2 * out.high, ADDEND_LIMIT), *out.shape)
        table = table.astype(narrowest(int(table.min()), int(table.max())))
        return self.emit(ops.Embed(out, x.name, prefix, table, *self.rescale(x.shape[1], x.centred_limit, out)))

    def requantize(self, x: Value, width: int | None = None, out: Value | None = None) -> Value:
        width = self.size(1, x.shape[1]) if width is None else width
        start = self.size(0, x.shape[1] - width)
        out = self.value((x.shape[0], width)) if out is None else out
        return self.emit(ops.Requantize(out, x.name, start, *self.rescale(width, x.centred_limit, out)))

    def narrow(self, x: Value, limit: int) -> Value:
        """``x`` itself where its codes are small enough, and requantized where not."""
        if max(x.centred_limit, -x.low, x.high, x.high - x.low) <= limit:
            return x
        out = self.value(x.shape, *((0, limit) if self.chance() else (-(limit // 2), limit // 2)))
        return self.requantize(x, x.shape[1], out)

    def layernorm(self, x: Value) -> Value:
        x = self.narrow(x, 2**16 - 1)
        out, c = self.value(x.shape), x.shape[1]
        power = c**3 * ((x.high - x.low) // 2 + 1) ** 2
        headroom = min(60, self.size(0, (62 - power.bit_length()) // 2) * 2)
        largest = 2**62 - 1 - (power << headroom)
        epsilon = np.array([self.pick(0, 1, min(largest, 2 ** (10 + headroom)), largest)])
        bits = self.size(1, 36)
        exact = 20 + bits - np.log2(out.high - out.low)
        shift = np.clip(np.round(exact) + self.random.integers(-2, 4, c), 1, 42)
        gain = self.numbers(-(2**bits), 2**bits, c)
        offset = (
            self.numbers(-(2**60), 2**60, c) if self.chance(0.1) else self.numbers(-(2**20) << bits, 2**20 << bits, c)
        )
        return self.emit(ops.LayerNorm(out, x.name, gain, offset, shift.astype(np.uint8), epsilon, headroom))

    def lookup(self, x: Value) -> Value:
        x = self.narrow(x, 2**10)
        out, count = self.value(x.shape), self.size(1, 3)
        tables = self.numbers(out.low, out.high, count, x.high - x.low + 1)
        table_of = self.random.integers(0, count, x.shape[1])
        return self.emit(ops.Lookup(out, x.name, tables.astype(out.dtype), table_of.astype(np.int32)))

    def add(self, a: Value) -> Value:
        return self.sum(a, self.pick(*(op.out for op in self.operations if op.out.shape == a.shape)))

    def sum(self, a: Value, b: Value) -> Value:
        out = self.value(a.shape)
        rescales = (self.rescale(a.shape[1], x.centred_limit, out) for x in (a, b))
        return self.emit(ops.Add(out, a.name, b.name, *(array for pair in rescales for array in pair)))

    def multiply(self, x: Value, y: Value | None = None) -> Value:
        x = self.narrow(x, 2**15)
        y = x if y is None or self.chance(0.1) else self.narrow(y, 2**15)
        out = self.value(x.shape)
        rescale = self.rescale(x.shape[1], x.centred_limit * y.centred_limit, out)
        return self.emit(ops.Multiply(out, x.name, y.name, *rescale))

    def rotary(self, x: Value) -> Value:
        x = self.narrow(x, 2**14)
        out, width = self.value(x.shape), self.pick(*(d for d in range(1, x.shape[1] + 1) if x.shape[1] % d == 0))
        cos, sin = (self.numbers(-(2**15), 2**15 - 1, x.shape[0], width).astype(np.int16) for _ in range(2))
        partner = self.random.integers(0, width, width).astype(np.int32)
        rescale = self.rescale(x.shape[1], x.centred_limit << 14, out)
        return self.emit(ops.Rotary(out, x.name, cos, sin, partner, *rescale))

    def gather(self, x: Value, count: int | None = None) -> Value:
        together = 1 if count else self.pick(1, 1, 2)
        count = count or self.size(1, 6)
        index = self.random.integers(-1, x.shape[0], count * together).astype(np.int32)
        tiled = (np.tile(a, together if len(a) > 1 else 1) for a in (x.scale, x.zero_point))
        out = Value(f"v{len(self.operations)}", (count, together * x.shape[1]), x.low, x.high, *tiled)
        return self.emit(ops.Gather(out, x.name, index))

    def constant(self, shape: tuple[int, ...]) -> Value:
        out = self.value(shape)
        return self.emit(ops.Constant(out, self.numbers(out.low, out.high, *shape).astype(out.dtype)))

    def attention(self, x: Value) -> Value:
        tokens, heads = x.shape[0], self.size(1, 3)
        shape = (tokens, heads * self.size(1, 5))
        x = self.narrow(x, 2**16)
        limit = min(2**15, int(np.sqrt(INT32_MAX // shape[1])))
        q, k, v = (self.narrow(self.linear(x, shape[1]), limit) for _ in range(3))
        k = q if self.chance(0.1) else k
        windows = 1
        if self.chance(0.3):  # other keys than queries, and windows of both
            windows = self.size(1, 3)
            q = self.gather(q, windows * self.size(1, 3))
            k, v = (self.gather(y, windows * count) for count in [self.size(1, 3)] for y in (k, v))
        return self.mix(self.softmax(self.scores(q, k, heads, windows)), v, windows)

    def scores(self, q: Value, k: Value, heads: int, windows: int = 1) -> Value:
        (queries, channels), keys = q.shape, k.shape[0] // windows
        out = self.value((heads, queries, keys), *self.pick((0, 255), (-128, 127), (-3, 60), (0, 1000)))
        largest = channels // heads * q.centred_limit * k.centred_limit >> self.size(0, 8)
        table = ops.no_table()
        if self.chance(0.3):
            rows = self.pick(*(r for r in range(1, queries + 1) if queries % r == 0))
            spread = self.pick(1, out.high - out.low, ADDEND_LIMIT)
            table = self.numbers(-spread, spread, self.pick(1, heads), rows, self.pick(1, keys))
            table = table.astype(narrowest(min(int(table.min()), -1), int(table.max())))
        return self.emit(ops.Scores(out, q.name, k.name, windows, table, *self.rescale(heads, largest, out)))

    def softmax(self, x: Value) -> Value:
        heads = x.shape[0]
        tables, levels = self.pick(*{1, heads}), x.high - x.low + 1
        kind = self.pick("row", "diffusion", "uniform", "log2")
        top = self.pick(1, 15, 255, 4095, 65535)
        largest = {"row": top, "diffusion": top << 8}.get(kind, 2**15 - 1)
        table = self.numbers(0, largest, tables, levels)
        if self.chance():
            table = np.round(largest * np.exp(-(10 ** self.random.uniform(-2.5, 0, (tables, 1))) * np.arange(levels)))
        table[:, 0] = np.maximum(table[:, 0], 128 if kind == "diffusion" else 1)
        table = table.astype(np.int32)
        if kind in ("row", "diffusion"):
            out = Value(f"v{len(self.operations)}", x.shape, 0, top, *PLAIN)
            return self.emit((ops.SoftmaxRow if kind == "row" else ops.SoftmaxDiffusion)(out, x.name, table))
        if kind == "log2":
            out = Value(f"v{len(self.operations)}", x.shape, 0, 2**15, *PLAIN)
            return self.emit(ops.SoftmaxLog2(out, x.name, table, self.size(0, 15)))
        out = self.value(x.shape, 0, 2 ** self.size(1, 16) - 1)
        return self.emit(ops.SoftmaxUniform(out, x.name, table, *self.rescale(heads, 2**30, out)))

    def mix(self, p: Value, v: Value, windows: int = 1) -> Value:
        made_by = next((type(op) for op in self.operations if op.out is p), None)
        row = 46341 if made_by is ops.SoftmaxLog2 else p.shape[2] * p.centred_limit
        v = self.narrow(v, min(INT32_MAX // row, 2**17))
        out = self.value((p.shape[1], v.shape[1]))
        normalize = made_by in (ops.SoftmaxRow, ops.SoftmaxDiffusion) and self.chance()
        bits = division_bits(v.centred_limit) if normalize else (0, 0)
        limit = v.centred_limit << bits[1] if normalize else row * v.centred_limit
        return self.emit(ops.Mix(out, p.name, v.name, windows, normalize, *bits, *self.rescale(v.shape[1], limit, out)))


def product_with_constant(make: Maker, x: Value) -> Value:
    return make.multiply(x, make.constant(x.shape))


def gathered(make: Maker, x: Value) -> Value:
    return make.gather(x)


STEPS = (
    Maker.attention,
    Maker.attention,
    Maker.attention,
    Maker.attention,
    Maker.layernorm,
    Maker.lookup,
    Maker.add,
    Maker.requantize,
    Maker.rotary,
    product_with_constant,
    gathered,
)


def random_program(seed: int, steps: Sequence[Callable[[Maker, Value], Value]]) -> IntegerProgram:
    """A program that takes small images, cuts them, takes the steps, and reads off some classes."""
    make = Maker(np.random.default_rng(seed))
    height, width, rows, columns, colours = (make.size(1, 3) for _ in range(5))
    image = Value("image", (colours, rows * height, columns * width), 0, 255, *PLAIN)
    patches = Value("patches", (rows * columns, colours * height * width), 0, 255, *PLAIN)
    x = make.linear(make.emit(ops.Patches(patches, "image", height, width)), make.size(1, 9))
    x = make.embed(x) if make.chance() else x
    for step in steps:
        x = step(make, x)
    x = make.take(x) if make.chance() else make.pool(x)
    x = make.linear(make.narrow(x, 2**16), make.size(1, 5))
    return IntegerProgram(image, tuple(make.operations), (Output("logits", x.name),), {"model": "random"}, make.packed)


def programs() -> st.SearchStrategy[IntegerProgram]:
    """Such programs, for hypothesis."""
    return st.builds(
        random_program,
        st.integers(0, 2**32 - 1),
        st.lists(st.sampled_from(STEPS), min_size=1, max_size=6),
    )


def divisor(make: Maker, number: int) -> int:
    return make.pick(*(d for d in range(1, number + 1) if number % d == 0))


@dataclass
class Tangle:
    """Operations of every kind on any values that are there already: read once, several times or never, by several
    operations or twice by one, the image as well.
    """

    make: Maker
    image: Value

    def values(self, fits: Callable[[Value], bool]) -> list[Value]:
        return [v for v in (self.image, *(op.out for op in self.make.operations)) if fits(v)]

    def tokens(self) -> Value | None:
        """Late ones rather than early ones, so that there are long ways as well as side ways."""
        found = self.values(lambda v: len(v.shape) == 2)
        return self.make.pick(*found, *found[-2:], *found[-1:]) if found else None

    def maps(self) -> Value | None:
        """Scores, what softmax makes of them, or the image."""
        found = self.values(lambda v: len(v.shape) == 3)
        return self.make.pick(*found, *found[-1:])

    def grow(self, kind: str) -> None:
        """One operation of a kind, and what it takes to bring its operands into their ranges; nothing, if the program
        has no operands for it yet.
        """
        make, tokens, maps = self.make, self.tokens(), self.maps()
        if kind == "patches" and maps is not None:
            make.patches(maps, divisor(make, maps.shape[1]), divisor(make, maps.shape[2]))
        elif kind == "softmax" and maps is not None and maps.high - maps.low < 2**12:
            make.softmax(maps)
        elif tokens is None:
            return
        elif kind == "linear":
            make.linear(make.narrow(tokens, 2**16), make.size(1, 9))
        elif kind == "constant":
            make.constant(tokens.shape)
        elif kind in ("embed", "layernorm", "lookup", "requantize", "rotary", "gather", "take", "pool"):
            getattr(make, kind)(tokens)
        elif kind == "add":
            make.sum(tokens, make.pick(*self.values(lambda v: v.shape == tokens.shape)))
        elif kind == "multiply":
            make.multiply(tokens, make.pick(*self.values(lambda v: v.shape == tokens.shape)))
        elif kind == "scores":
            limit = min(2**15, int(np.sqrt(INT32_MAX // tokens.shape[1])))
            n, c = tokens.shape
            other = make.pick(*self.values(lambda v: len(v.shape) == 2 and v.shape[1] == c))
            q = make.narrow(tokens, limit)
            k = q if other is tokens else make.narrow(other, limit)
            windows = divisor(make, int(np.gcd(n, k.shape[0]))) if make.chance(0.3) else 1
            make.scores(q, k, divisor(make, c), windows)
        elif kind == "mix":
            n, c = tokens.shape
            fits = self.values(lambda v: len(v.shape) == 3 and n % v.shape[2] == 0 and c % v.shape[0] == 0)
            fits = [v for v in fits if v.shape[1] % (n // v.shape[2]) == 0]
            fits = [v for v in fits if v.centred_limit <= min(OPERAND_LIMIT - 1, INT32_MAX // n)]
            if fits:
                p = make.pick(*fits, *fits[-2:])
                make.mix(p, tokens, n // p.shape[2])


GROWTH = (
    *("patches", "linear", "embed", "layernorm", "requantize", "scores", "softmax", "mix", "add", "lookup"),
    *("rotary", "multiply", "constant", "gather"),
)
ENDS = ("take", "pool")


def tangled_program(seed: int, size: int) -> IntegerProgram:
    """A program of about ``size`` operations, whose output is any value of one row: the first that could be it, one in
    the middle that others read, or the last.
    """
    make = Maker(np.random.default_rng(seed))
    rows, columns, height, width, colours = (make.size(1, 3) for _ in range(5))
    if make.chance(0.3):
        rows, columns, height, width = rows, rows, height, height
    tangle = Tangle(make, Value("image", (colours, rows * height, columns * width), 0, 255, *PLAIN))
    whole = make.chance(0.3)  # one patch: every value of tokens has one row
    make.patches(tangle.image, *(tangle.image.shape[1:] if whole else (height, width)))
    attend = make.chance()  # scores, softmax and mix follow each other
    while len(make.operations) < size:
        before = len(make.operations)
        tangle.grow(make.pick(*GROWTH, *ENDS))
        if attend and make.operations[-1].kind == "scores":
            tangle.grow("softmax")
            tangle.grow("mix")
        if len(make.operations) == before:
            tangle.grow("requantize")

    def candidates() -> list[Value]:
        return [op.out for op in make.operations if len(op.out.shape) == 2 and op.out.shape[0] == 1]

    if not candidates():
        tangle.grow(make.pick(*ENDS))
    output = make.pick(candidates()[0], *candidates(), *candidates()[-1:] * 3)
    outputs = [Output("logits", output.name)]
    for number in range(make.pick(0, 0, 1, 2)):
        other = make.pick(*(op.out for op in make.operations if len(op.out.shape) == 2))
        outputs.append(Output(f"more{number}", other.name, pooled=other.shape[0] == 1 and make.chance()))
    return IntegerProgram(tangle.image, tuple(make.operations), tuple(outputs), {"model": "tangled"}, make.packed)


def tangled_programs() -> st.SearchStrategy[IntegerProgram]:
    """Such programs, for hypothesis."""
    return st.builds(tangled_program, st.integers(0, 2**32 - 1), st.integers(1, 24))
