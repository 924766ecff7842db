"""Who reads which value, and how often: unread ones of every kind, the image more than once, any as the output."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings

from saved_programs import available, disagreements, images_for
from support.random_programs import PLAIN, Maker, Tangle, tangled_program, tangled_programs
from vitquant.program import ops
from vitquant.program.ops import KINDS
from vitquant.program.program import IntegerProgram, Output
from vitquant.program.storage import save_program
from vitquant.program.validate import validate
from vitquant.program.values import Value


@pytest.fixture(scope="module")
def isas(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folder = tmp_path_factory.mktemp("any")
    save_program(tangled_program(0, 1), folder)
    return available(folder)


@settings(suppress_health_check=list(HealthCheck), max_examples=3 * settings().max_examples)
@given(program=tangled_programs())
def test_tangled_programs(program: IntegerProgram, tmp_path: Path, isas: list[str]) -> None:
    validate(program)
    assert not disagreements(program, images_for(program), tmp_path, isas)


def test_tangled_programs_hold_all_that_they_are_for() -> None:
    found: Counter[str] = Counter()
    for seed in range(240):
        program = tangled_program(seed, 1 + seed % 24)
        output = program.outputs[0].value
        reads = Counter(name for op in program.operations for name in op.inputs())
        found["image, several times"] += reads["image"] > 1
        found["one operation"] += len(program.operations) == 1
        found["output read by others"] += reads[output] > 0
        found["output before the end"] += output != program.operations[-1].out.name
        for op in program.operations:
            found[f"{op.kind}, unread"] += not reads[op.out.name] and op.out.name != output
            found[f"{op.kind}, several times"] += reads[op.out.name] > 1
            found["one value twice"] += len(set(op.inputs())) < len(op.inputs())
    assert {f"{kind}, {how}" for kind in KINDS for how in ("unread", "several times")} <= set(+found)
    assert {"image, several times", "one operation", "output read by others", "output before the end"} <= set(+found)
    assert found["one value twice"] > 10


def start(shape: tuple[int, int, int], patch: tuple[int, int]) -> tuple[Maker, Tangle, Value]:
    """The image, and its patches."""
    make = Maker(np.random.default_rng(1))
    tangle = Tangle(make, Value("image", shape, 0, 255, *PLAIN))
    return make, tangle, make.patches(tangle.image, *patch)


def finished(tangle: Tangle, output: Value) -> IntegerProgram:
    program = IntegerProgram(
        tangle.image, tuple(tangle.make.operations), (Output("logits", output.name),), {"model": "odd"}
    )
    validate(program)
    return program


@pytest.mark.parametrize("kind", sorted(KINDS))
@pytest.mark.parametrize("at_the_end", [False, True])
def test_a_value_that_nobody_reads(kind: str, at_the_end: bool, tmp_path: Path, isas: list[str]) -> None:
    """Whether the output is made before or after it."""
    make, tangle, patches = start((1, 4, 4), (2, 2))
    output = make.take(patches) if at_the_end else None
    named = "softmax" if kind.startswith("softmax_") else kind
    for _ in range(200):
        del make.operations[2 if at_the_end else 1 :]
        if named in ("softmax", "mix"):
            make.scores(patches, patches, 2)
        tangle.grow(named)
        if any(op.kind == kind for op in make.operations[2 if at_the_end else 1 :]):
            break
    assert any(op.kind == kind for op in make.operations)
    program = finished(tangle, output or make.take(patches))
    assert not disagreements(program, images_for(program), tmp_path, isas)


def test_one_operation(tmp_path: Path, isas: list[str]) -> None:
    _, tangle, patches = start((3, 2, 5), (2, 5))
    program = finished(tangle, patches)
    assert len(program.operations) == 1
    assert not disagreements(program, images_for(program), tmp_path, isas)


@pytest.mark.parametrize("shape", [(1, 1, 40), (1, 40, 1), (2, 3, 9), (3, 9, 2)], ids=str)
def test_softmax_of_what_is_not_square(shape: tuple[int, int, int], tmp_path: Path, isas: list[str]) -> None:
    """Of the image: its rows are of another number than their elements."""
    make, tangle, _ = start(shape, (1, 1))
    program = finished(tangle, make.patches(make.softmax(tangle.image), *shape[1:]))
    assert not disagreements(program, images_for(program), tmp_path, isas)


@pytest.mark.parametrize(("low", "high"), [(0, 255), (0, 100), (-128, 127), (-300, 5000), (-(2**20), 2**20)])
def test_patches_of_what_is_no_image(low: int, high: int, tmp_path: Path, isas: list[str]) -> None:
    """Of scores, whose codes have another type than pixels."""
    make, tangle, tokens = start((1, 4, 4), (2, 2))
    scores = make.value((2, 4, 4), low, high)
    make.emit(ops.Scores(scores, tokens.name, tokens.name, 1, ops.no_table(), *make.rescale(2, 2**16, scores)))
    program = finished(tangle, make.patches(scores, 4, 4))
    assert not disagreements(program, images_for(program), tmp_path, isas)


@pytest.mark.parametrize("read_by_others", [False, True])
@pytest.mark.parametrize("kind", [ops.SoftmaxRow, ops.SoftmaxDiffusion])
def test_exponentials_with_a_zero_point(
    kind: type[ops.SoftmaxRow | ops.SoftmaxDiffusion], read_by_others: bool, tmp_path: Path, isas: list[str]
) -> None:
    """Weights that are not divided by their sum may have any zero point, whichever softmax makes them."""
    make, tangle, x = start((1, 4, 4), (2, 2))
    scores = make.scores(x, x, 1)
    zero = np.array([9], dtype=np.int32)
    weights = Value("weights", scores.shape, 0, 255, np.ones(1, dtype=np.float32), zero)
    one = 256 if kind is ops.SoftmaxDiffusion else 1
    table = np.linspace(255 * one, 0, scores.high - scores.low + 1).round().astype(np.int32)[None]
    make.emit(kind(weights, scores.name, table))
    mixed = make.value(x.shape, -128, 127)
    rescale = make.rescale(x.shape[1], 255 * x.centred_limit, mixed)
    make.emit(ops.Mix(mixed, weights.name, x.name, 1, False, 0, 0, *rescale))
    if read_by_others:
        make.emit(ops.Mix(make.value(x.shape, -128, 127), weights.name, x.name, 1, False, 0, 0, *rescale))
    program = finished(tangle, make.take(mixed))
    assert not disagreements(program, images_for(program), tmp_path, isas)
