"""Named outputs: which are computed, what they are, and what that does to the plan."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import vitquant_runtime
from block_programs import ADDENDS, SIXTEEN_BITS, Blocks
from saved_programs import all_expected, available, disagreements, forced, images_for, load
from support.random_programs import PLAIN
from vitquant.program import ops
from vitquant.program.program import IntegerProgram, Output
from vitquant.program.storage import encode_program, save_program
from vitquant.program.validate import validate
from vitquant.program.values import Value


def two_blocks() -> tuple[Blocks, Value, Value, dict[str, str]]:
    """Operations and image of a small model; its tokens; and what its values are for."""
    make = Blocks(np.random.default_rng(3))
    image = Value("image", (3, 8, 10), 0, 255, *PLAIN)
    x = make.emit(ops.Patches(Value("patches", (20, 12), 0, 255, *PLAIN), "image", 2, 2))
    x = make.add_to(make.projection(x, 24, ADDENDS), make.constant((20, 24)))
    inside: dict[str, str] = {}
    for _ in range(2):
        normed = make.layernorm(x)
        q, k, v = (make.projection(normed, 24, make.ranges) for _ in range(3))
        scores = make.scores(q, k, 3)
        weights = make.softmax(scores)
        mixed = make.mix(weights, v)
        projected = make.projection(mixed, 24, ADDENDS)
        x = make.add_to(x, projected)
        inside = {"queries": q.name, "mixed": mixed.name, "projected": projected.name, "stream": x.name}
    return make, image, x, inside


@pytest.fixture(scope="module")
def program() -> IntegerProgram:
    make, image, x, inside = two_blocks()
    scales = make.random.uniform(0.5, 2, 24).astype(np.float32)
    zeros = make.random.integers(-100, 100, 24).astype(np.int32)
    tokens = Value("tokens_value", (20, 24), -32768, 32767, scales, zeros)
    make.emit(ops.Requantize(tokens, x.name, 0, *make.rescale(24, 2**15, tokens)))
    first = make.emit(ops.Take(make.value((1, 24), *SIXTEEN_BITS[0]), tokens.name, 0))
    logits = make.projection(first, 5, ADDENDS)
    outputs = (
        Output("logits", logits.name),
        Output("class_token", first.name),
        Output("tokens", tokens.name, pooled=False),
        Output("again", tokens.name, pooled=False),
        Output("row", first.name, pooled=False),
        *(Output(name, value, pooled=False) for name, value in inside.items()),
        Output("constant", next(op.out.name for op in make.operations if op.kind == "constant"), pooled=False),
    )
    program = IntegerProgram(image, tuple(make.operations), outputs, {"model": "outputs"})
    validate(program)
    return program


@pytest.fixture(scope="module")
def folder(program: IntegerProgram, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("program")
    save_program(program, folder)
    return folder


def test_all_outputs(program: IntegerProgram, tmp_path: Path, folder: Path) -> None:
    assert not disagreements(program, images_for(program, 5), tmp_path, available(folder), threads=(1, 2, 3))


def test_each_alone_and_in_pairs(program: IntegerProgram, folder: Path) -> None:
    """Whatever is left out for the others."""
    images = images_for(program)
    wanted = all_expected(program, images)
    for isa in available(folder):
        for i, name in enumerate(wanted):
            assert np.array_equal(load(folder, isa, outputs=name)(images), wanted[name]), (isa, name)
            pair = [name, list(wanted)[i - 3]]
            found = load(folder, isa, outputs=pair).run(images)
            assert list(found) == pair
            assert all(np.array_equal(found[n], wanted[n]) for n in pair), (isa, pair)


def test_attributes(program: IntegerProgram, folder: Path) -> None:
    runtime = load(folder, outputs=["tokens", "logits"])
    assert runtime.output_names == tuple(output.name for output in program.outputs)
    assert list(runtime.outputs) == ["tokens", "logits"]
    assert runtime.outputs["tokens"].shape == (20, 24)
    assert runtime.outputs["logits"].shape == (5,)
    values = program.values()
    assert np.array_equal(runtime.outputs["tokens"].scale, values["tokens_value"].scale)
    assert np.array_equal(runtime.scale, runtime.outputs["tokens"].scale)
    assert runtime.scale.dtype == np.float32
    with pytest.raises(dataclasses.FrozenInstanceError):
        runtime.outputs["tokens"].shape = (1,)  # type: ignore[misc]


def test_the_first_by_default(program: IntegerProgram, folder: Path) -> None:
    images = images_for(program)
    runtime = load(folder)
    assert list(runtime.outputs) == ["logits"]
    assert list(runtime.run(images)) == ["logits"]
    assert np.array_equal(runtime.run(images)["logits"], runtime(images))
    assert runtime(images).shape == (len(images), 5)


def names() -> Iterable[str]:
    yield from ("class_token", "logits")


@pytest.mark.parametrize("outputs", [names(), ("class_token", "logits"), {"class_token": 1, "logits": 2}])
def test_any_iterable(outputs: Any, program: IntegerProgram, folder: Path) -> None:
    images = images_for(program)
    wanted = all_expected(program, images)
    runtime = vitquant_runtime.loads(*encode_program(program), threads=1, outputs=outputs)
    assert np.array_equal(runtime(images), wanted["class_token"])
    assert list(runtime.outputs) == ["class_token", "logits"]


def test_a_name_given_twice_counts_once(folder: Path) -> None:
    assert list(load(folder, outputs=["tokens", "logits", "tokens"]).outputs) == ["tokens", "logits"]


@pytest.mark.parametrize(
    "outputs", ["", "Logits", "logits ", ["logits", "nothing"], "\udc80", "\0", "a\nb", "x" * 10**5]
)
def test_unknown_names(outputs: Any, program: IntegerProgram, folder: Path) -> None:
    for attempt in (lambda: load(folder, outputs=outputs), lambda: vitquant_runtime.explain(folder, outputs)):
        with pytest.raises(ValueError, match=r"outputs: .* one of logits, class_token, tokens, again") as caught:
            attempt()
        assert str(caught.value).isascii()
        assert len(str(caught.value)) < 1000


@pytest.mark.parametrize("outputs", [[], (), [1], [None], [b"logits"], [["logits"]]])
def test_what_are_no_names(outputs: Any, folder: Path) -> None:
    with pytest.raises(ValueError, match="outputs: not names of outputs"):
        load(folder, outputs=outputs)


def test_batches(program: IntegerProgram, folder: Path) -> None:
    images = images_for(program, 40)
    wanted = all_expected(program, images)
    runtime = load(folder, threads=2, outputs=["logits", "tokens"])
    for count in (1, 43, 2):
        found = runtime.run(images[:count])
        assert all(np.array_equal(found[name], wanted[name][:count]) for name in found)
    empty: dict[str, NDArray[np.int32]] = runtime.run(images[:0])
    assert [result.shape for result in empty.values()] == [(0, 5), (0, 20, 24)]


def steps(folder: Path, outputs: Any = None) -> str:
    with forced("portable"):
        return vitquant_runtime.explain(folder, outputs)


def test_what_is_computed_follows_the_choice(folder: Path) -> None:
    """A value that is asked for is stored whole; one that is not may be fused away, or left out."""
    default = steps(folder)
    assert "scores+softmax" in default
    assert "linear+add" in default
    assert "row 0 of [20, 24]" in default
    assert "\noutput           logits [5], the value" in default
    assert "\nnot computed     class_token [24], the value" in default
    assert "linear+add" in steps(folder, "mixed") or "linear+add" in steps(folder, "stream")
    whole = steps(folder, ["logits", "tokens"])
    assert "row 0 of" not in whole
    assert "\noutput           tokens [20, 24], the value tokens_value\n" in whole
    assert default.count("linear+add") == steps(folder, ["logits", "projected"]).count("linear+add") + 1
    assert "executed as 1 step in 1 phase" in steps(folder, "constant")


def test_command(folder: Path) -> None:
    command = [sys.executable, "-m", "vitquant_runtime", "--explain", str(folder)]
    done = subprocess.run(
        [*command, "--output", "tokens", "--output", "logits"], capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == vitquant_runtime.explain(folder, ["tokens", "logits"])
    done = subprocess.run([*command, "--output", "nothing"], capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert "one of logits, class_token" in done.stderr
