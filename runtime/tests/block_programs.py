"""Programs shaped like real models: 8-bit layers, a 16-bit residual stream, any number of tokens and channels."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from support.random_programs import PLAIN, Maker
from vitquant.program import ops
from vitquant.program.program import IntegerProgram, Output
from vitquant.program.values import Value

EIGHT_BITS = ((0, 255), (-128, 127))
SIXTEEN_BITS = ((-32768, 32767),)
ADDENDS = ((-(2**30), 2**30),)


@dataclass(frozen=True)
class Sizes:
    """Of a model. Patches are ``patch`` pixels square; there are ``prefix`` tokens before them."""

    grid: tuple[int, int] = (3, 4)
    patch: int = 2
    prefix: int = 1
    channels: int = 64
    heads: int = 2
    hidden: int = 128
    classes: int = 10
    depth: int = 1


class Blocks(Maker):
    """Values have the ranges that real models give them."""

    ranges: tuple[tuple[int, int], ...] = EIGHT_BITS

    def value(self, shape: tuple[int, ...], low: int | None = None, high: int | None = None) -> Value:
        if low is None or high is None:
            low, high = self.pick(*self.ranges)
        return super().value(shape, low, high)

    def of(self, ranges: tuple[tuple[int, int], ...], shape: tuple[int, ...]) -> Value:
        return self.value(shape, *self.pick(*ranges))

    def projection(self, x: Value, width: int, ranges: tuple[tuple[int, int], ...]) -> Value:
        """A linear layer of int8 weights whose products spread over the codes."""
        out = self.of(ranges, (x.shape[0], width))
        weight = self.numbers(-128, 127, width, x.shape[1]).astype(np.int8)
        spread = int(40 * np.sqrt(x.shape[1]) * max(abs(x.low), x.high)) + 1
        bias = self.numbers(-spread, spread, width).astype(np.int32)
        return self.emit(ops.Linear(out, x.name, weight, bias, *self.rescale(width, spread, out)))

    def add_to(self, a: Value, b: Value) -> Value:
        a, b = (a, b) if self.chance(0.7) else (b, a)
        out = self.of(SIXTEEN_BITS, a.shape)
        rescales = (self.rescale(a.shape[1], x.high if x.high < 2**30 else 2**20, out) for x in (a, b))
        return self.emit(ops.Add(out, a.name, b.name, *(array for pair in rescales for array in pair)))

    def block(self, x: Value, sizes: Sizes) -> Value:
        tokens, channels = x.shape
        normed = self.layernorm(x)
        q, k, v = (self.projection(normed, channels, EIGHT_BITS) for _ in range(3))
        scores = self.value((sizes.heads, tokens, tokens), 0, 255)
        limit = q.centred_limit * k.centred_limit * channels // sizes.heads // 8
        self.emit(ops.Scores(scores, q.name, k.name, 1, ops.no_table(), *self.rescale(sizes.heads, limit, scores)))
        mixed = self.mix(self.softmax(scores), v)
        x = self.add_to(x, self.projection(mixed, channels, ADDENDS))
        hidden = self.lookup(self.projection(self.layernorm(x), sizes.hidden, EIGHT_BITS))
        return self.add_to(x, self.projection(hidden, channels, ADDENDS))


def block_program(seed: int, sizes: Sizes) -> IntegerProgram:
    """A program of this size; its class is read off a token, or off their mean."""
    make = Blocks(np.random.default_rng(seed))
    rows, columns = sizes.grid
    image = Value("image", (3, rows * sizes.patch, columns * sizes.patch), 0, 255, *PLAIN)
    patches = Value("patches", (rows * columns, 3 * sizes.patch**2), 0, 255, *PLAIN)
    make.emit(ops.Patches(patches, "image", sizes.patch, sizes.patch))
    x = make.projection(patches, sizes.channels, ADDENDS)
    out = make.of(SIXTEEN_BITS, (x.shape[0] + sizes.prefix, sizes.channels))
    table = make.numbers(2 * out.low, 2 * out.high, *out.shape).astype(np.int32)
    x = make.emit(ops.Embed(out, x.name, sizes.prefix, table, *make.rescale(sizes.channels, 2**20, out)))
    for _ in range(sizes.depth):
        x = make.block(x, sizes)
    x = make.layernorm(x)
    token = make.value((1, sizes.channels), x.low, x.high)
    if make.chance():
        x = make.emit(ops.Take(token, x.name, make.size(0, x.shape[0] - 1)))
    else:
        x = make.emit(ops.Pool(token, x.name, min(sizes.prefix, x.shape[0] - 1)))
    x = make.projection(x, sizes.classes, ADDENDS)
    return IntegerProgram(image, tuple(make.operations), (Output("logits", x.name),), {"model": "blocks"})
