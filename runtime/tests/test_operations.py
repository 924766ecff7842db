"""The operations of format 2: by hand, and against an executor that was written from the format's page alone."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from numpy.typing import NDArray

import vitquant_runtime
from block_programs import EIGHT_BITS, Blocks
from saved_programs import available, disagreements, images_for, load
from support.numpy_executor import NumpyExecutor
from support.random_programs import PLAIN, programs, tangled_programs
from vitquant.program import ops
from vitquant.program.ops.operation import Operation
from vitquant.program.program import IntegerProgram, Output
from vitquant.program.storage import encode_program, save_program
from vitquant.program.validate import validate
from vitquant.program.values import Array, Value

ONE: tuple[Array, Array] = np.array([2**21], np.int32), np.array([21], np.uint8)
HALF: tuple[Array, Array] = np.array([2**21], np.int32), np.array([22], np.uint8)
WIDE = (-(2**20), 2**20)


def value(name: str, shape: tuple[int, ...], low: int = WIDE[0], high: int = WIDE[1], zero: int = 0) -> Value:
    return Value(name, shape, low, high, PLAIN[0], np.array([zero], np.int32))


@pytest.fixture(scope="module")
def isas(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folder = tmp_path_factory.mktemp("any")
    save_program(made((ops.Constant(value("constant", (1, 1)), np.zeros((1, 1), np.int32)),), "constant"), folder)
    return available(folder)


def made(operations: tuple[Operation, ...], output: str) -> IntegerProgram:
    image = Value("image", (1, 2, 4), 0, 255, *PLAIN)
    program = IntegerProgram(image, operations, (Output("out", output, pooled=False),), {})
    validate(program)
    return program


def tokens(zero: int = 0) -> Operation:
    """The image 1, 2, .. 8 as [4, 2]: 1, 5 | 2, 6 | 3, 7 | 4, 8."""
    return ops.Patches(value("x", (4, 2), 0, 255, zero), "image", 2, 1)


def results(program: IntegerProgram, folder: Path, isas: list[str]) -> list[NDArray[np.int32]]:
    save_program(program, folder)
    image = np.arange(1, 9, dtype=np.uint8).reshape(1, 1, 2, 4)
    return [load(folder, isa, threads)(image)[0] for isa in isas for threads in (1, 2)]


def check(
    operations: tuple[Operation, ...], output: str, wanted: list[list[int]], folder: Path, isas: list[str]
) -> None:
    for found in results(made(operations, output), folder, isas):
        assert found.tolist() == wanted


def test_constant(tmp_path: Path, isas: list[str]) -> None:
    table = np.array([[1, -2, 3], [-128, 127, 0]], np.int8)
    operations = (ops.Constant(value("c", (2, 3), -128, 127, zero=5), table),)
    check(operations, "c", [[-4, -7, -2], [-133, 122, -5]], tmp_path, isas)


def test_multiply(tmp_path: Path, isas: list[str]) -> None:
    """(x - 3) (c - 1) / 2, rounded half up, plus 7 and less it again, up to 20 - 7."""
    table = np.array([[1, 2], [0, 5], [3, -2], [11, 21]], np.int8)
    operations = (
        tokens(zero=3),
        ops.Constant(value("c", (4, 2), -128, 127, zero=1), table),
        ops.Multiply(value("y", (4, 2), -100, 20, zero=7), "x", "c", *HALF),
    )
    # Products: -2 0, 2 1 | -1 -1, 3 4 | 0 2, 4 -3 | 1 10, 5 20
    check(operations, "y", [[0, 1], [1, 6], [0, -6], [5, 13]], tmp_path, isas)


def test_rotary(tmp_path: Path, isas: list[str]) -> None:
    cos = np.array([[1, 2], [0, 1], [-1, 0], [10, 20]], np.int16)
    sin = np.array([[-1, 3], [1, -1], [0, 2], [1, 1]], np.int16)
    operations = (
        tokens(zero=1),
        ops.Rotary(value("y", (4, 2), zero=9), "x", cos, sin, np.array([1, 0], np.int32), *ONE),
    )
    # ~x is 0, 4 | 1, 5 | 2, 6 | 3, 7
    wanted = [[0 - 4, 8 + 0], [0 + 5, 5 - 1], [-2 + 0, 0 + 4], [30 + 7, 140 + 3]]
    check(operations, "y", wanted, tmp_path, isas)


def test_rotary_of_groups_and_of_one_row(tmp_path: Path, isas: list[str]) -> None:
    """The angles of the token that is taken, and the same for each channel where there is but one."""
    angles = np.array([[1], [2], [3], [4]], np.int16)
    operations = (
        tokens(),
        ops.Rotary(value("y", (4, 2)), "x", angles, angles, np.array([0], np.int32), *ONE),
        ops.Take(value("z", (1, 2)), "y", 2),
    )
    check(operations, "y", [[2, 10], [8, 24], [18, 42], [32, 64]], tmp_path, isas)
    check(operations, "z", [[18, 42]], tmp_path, isas)


def test_gather(tmp_path: Path, isas: list[str]) -> None:
    operations = (
        tokens(zero=9),
        ops.Gather(value("y", (3, 4), -10, 300), "x", np.array([3, 0, -1, 1, 1, -1], np.int32)),
    )
    check(operations, "y", [[4, 8, 1, 5], [9, 9, 2, 6], [2, 6, 9, 9]], tmp_path, isas)


def attention(windows: int, table: Array, keys: str) -> tuple[Operation, ...]:
    """Two heads of one channel; queries are the tokens; the weight of a key is 8 div 2^(distance)."""
    exponentials = np.array([[max(8 >> d, 0) for d in range(2**9 + 1)]], np.int32)
    count = 2
    return (
        tokens(),
        ops.Constant(value("keys", (count, 2), -8, 7), np.array([[1, 0], [0, 1]], np.int8)),
        ops.Constant(value("values", (count, 2), -128, 127), np.array([[1, 100], [10, -100]], np.int8)),
        ops.Scores(value("s", (2, 4, count // windows), -256, 256), "x", keys, windows, table, *ONE),
        ops.SoftmaxRow(value("p", (2, 4, count // windows), 0, 255), "s", exponentials),
        ops.Mix(value("y", (4, 2)), "p", "values", windows, False, 0, 0, *ONE),
    )


def test_unequal_counts(tmp_path: Path, isas: list[str]) -> None:
    """Head 0: scores x0 and 0, weights 8 and 8 >> x0; head 1: scores 0 and x1, weights 8 >> x1 and 8."""
    wanted = [[8 + 40, -800], [8 + 20, -800], [8 + 10, -800], [8 + 0, -800]]
    check(attention(1, ops.no_table(), "keys"), "y", wanted, tmp_path, isas)


def test_windows(tmp_path: Path, isas: list[str]) -> None:
    """Queries 0 and 1 meet key 0 only, queries 2 and 3 key 1: every weight is 8."""
    check(attention(2, ops.no_table(), "keys"), "y", [[8, 800], [8, 800], [80, -800], [80, -800]], tmp_path, isas)


def test_tables(tmp_path: Path, isas: list[str]) -> None:
    """What is added moves weight from key to key; rows repeat, and the ends clamp."""
    table = np.array([[[0, 2], [-(2**30), 2**30]]], np.int32)
    # Head 0, queries 0 and 2: scores 1, 2 and 3, 2; queries 1 and 3: the key 1 alone.
    # Head 1: key 1 is ahead by 5 + 2 and more, so that it has all the weight.
    wanted = [[4 + 80, -800], [80, -800], [8 + 40, -800], [80, -800]]
    check(attention(1, table, "keys"), "y", wanted, tmp_path, isas)
    # One addend for all keys of a head moves nothing.
    wanted = [[8 + 40, -800], [8 + 20, -800], [8 + 10, -800], [8 + 0, -800]]
    check(attention(1, np.array([[[3]], [[-4]]], np.int8), "keys"), "y", wanted, tmp_path, isas)
    # A table for each head.
    heads = np.array([[[0, 100]], [[100, 0]]], np.int8)
    check(attention(1, heads, "keys"), "y", [[80, 800]] * 4, tmp_path, isas)


@settings(suppress_health_check=list(HealthCheck))
@given(program=programs() | tangled_programs())
def test_an_independent_executor(program: IntegerProgram, tmp_path: Path, isas: list[str]) -> None:
    save_program(program, tmp_path)
    independent, images = NumpyExecutor(*encode_program(program)), images_for(program, 1)
    wanted = [independent.outputs(image) for image in images]
    for isa in isas:
        for threads in (1, 2):
            found = load(tmp_path, isa, threads, [output.name for output in program.outputs]).run(images)
            for name, codes in found.items():
                assert np.array_equal(codes, np.stack([outputs[name] for outputs in wanted])), (name, isa, threads)


Softmax: TypeAlias = type[ops.SoftmaxRow | ops.SoftmaxDiffusion]
SOFTMAXES: tuple[Softmax, ...] = (ops.SoftmaxRow, ops.SoftmaxDiffusion)


@dataclass
class Windowed(Blocks):
    """Attention of real sizes, between windows of gathered tokens, with a table."""

    kind: Softmax = ops.SoftmaxRow

    def windowed(self, x: Value, windows: int, keys: int, table: Array) -> Value:
        (count, channels), heads = x.shape, 3
        q, k, v = (self.projection(x, channels, EIGHT_BITS) for _ in range(3))
        q = self.rotary_of(q) if self.chance() else q
        index = self.random.integers(-1, count, windows * keys).astype(np.int32)
        k, v = (self.emit(ops.Gather(self.like(y, windows * keys), y.name, index)) for y in (k, v))
        scores = self.value((heads, count, keys), 0, 255)
        limit = q.centred_limit * k.centred_limit * channels // heads // 8
        self.emit(ops.Scores(scores, q.name, k.name, windows, table, *self.rescale(heads, limit, scores)))
        weights = Value(f"v{len(self.operations)}", scores.shape, 0, 255, *PLAIN)
        slope = self.random.uniform(0.001, 0.2)
        top = 255 * 256 if self.kind is ops.SoftmaxDiffusion else 255
        exponentials = np.round(top * np.exp(-slope * np.arange(256)))[None].astype(np.int32)
        self.emit(self.kind(weights, scores.name, exponentials))
        mixed = self.value((count, channels), *self.pick(*EIGHT_BITS))
        bits = v.centred_limit.bit_length()
        operands_of_mix = weights.name, v.name, windows, True, 52 - bits, 30 - bits
        return self.emit(ops.Mix(mixed, *operands_of_mix, *self.rescale(channels, v.centred_limit << 30 - bits, mixed)))

    def like(self, x: Value, count: int) -> Value:
        return Value(f"v{len(self.operations)}", (count, x.shape[1]), x.low, x.high, x.scale, x.zero_point)

    def rotary_of(self, x: Value) -> Value:
        width = 16
        cos, sin = (self.random.integers(-(2**14), 2**14, (x.shape[0], width)).astype(np.int16) for _ in range(2))
        partner = np.roll(np.arange(width), width // 2).astype(np.int32)
        out = self.of(EIGHT_BITS, x.shape)
        return self.emit(ops.Rotary(out, x.name, cos, sin, partner, *self.rescale(x.shape[1], 2**21, out)))


def windowed(make: Windowed, grid: tuple[int, int], windows: int, keys: int, table: Array) -> IntegerProgram:
    """Of all tokens, and of the one that is taken first."""
    image = Value("image", (3, 2 * grid[0], 2 * grid[1]), 0, 255, *PLAIN)
    patches = Value("patches", (grid[0] * grid[1], 12), 0, 255, *PLAIN)
    x = make.projection(make.emit(ops.Patches(patches, "image", 2, 2)), 96, EIGHT_BITS)
    mixed = make.windowed(x, windows, keys, table)
    one = make.emit(ops.Take(make.value((1, 96), mixed.low, mixed.high), mixed.name, make.size(0, x.shape[0] - 1)))
    outputs = (Output("one", one.name), Output("all", mixed.name, pooled=False))
    program = IntegerProgram(image, tuple(make.operations), outputs, {})
    validate(program)
    return program


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("softmax", SOFTMAXES)
@pytest.mark.parametrize(("grid", "windows", "keys"), [((7, 14), 2, 49), ((8, 16), 1, 65), ((4, 15), 15, 4)], ids=str)
def test_fused_windows(
    grid: tuple[int, int], windows: int, keys: int, softmax: Softmax, seed: int, tmp_path: Path, isas: list[str]
) -> None:
    make, count = Windowed(np.random.default_rng(seed), kind=softmax), grid[0] * grid[1]
    spread = make.pick(0, 60, 300, 2**30)
    shape = make.pick(1, 3), make.pick(1, count // windows, count), make.pick(keys, keys, keys, 1)
    table = make.numbers(-spread, spread, *shape).astype(np.int32)
    program = windowed(make, grid, windows, keys, table)
    assert not disagreements(program, images_for(program, 1), tmp_path, isas, threads=(1, 3))


@pytest.mark.parametrize("softmax", SOFTMAXES)
@pytest.mark.parametrize(("columns", "is_quick"), [(1, False), (10, True)])
def test_which_attention_is_fused(softmax: Softmax, columns: int, is_quick: bool, tmp_path: Path) -> None:
    """All of it; by vectors, if each key has an addend of its own, or there is none."""
    make = Windowed(np.random.default_rng(0), kind=softmax)
    program = windowed(make, (4, 8), 2, 10, np.full((3, 16, columns), 7, np.int8))
    save_program(program, tmp_path)
    rows = [line.split() for line in vitquant_runtime.explain(tmp_path).splitlines()]
    (code,) = (row[-1] for row in rows if f"scores+{softmax.kind}+mix" in row)
    isa = load(tmp_path).isa
    assert code == (isa if is_quick and isa != "portable" else "scalar")
