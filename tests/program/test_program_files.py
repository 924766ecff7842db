"""Program files: what is written is read, and what is damaged or hostile is refused with one kind of error."""

from __future__ import annotations

import json
import os
import random
import re
import time
import tracemalloc
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from safetensors.numpy import load, save
from safetensors.torch import load_file

import vitquant
from support import mutations, packed_programs
from support.documents import TESTS
from support.integer_models import pixels, quantized
from support.mutations import Files
from support.numpy_executor import NumpyExecutor
from support.random_programs import STEPS, programs, random_program
from vitquant.errors import ProgramError
from vitquant.executors.reference import Reference
from vitquant.numerics.packing import Packing
from vitquant.program.program import IntegerProgram
from vitquant.program.storage import PROGRAM_MANIFEST, PROGRAM_TENSORS, decode_program, encode_program
from vitquant.strict_files import MAX_MANIFEST_BYTES

ROUNDS = 6 * settings().max_examples
"""Mutations of a kind: 300, and 6,000 with ``--hypothesis-profile=explore``."""

SLOWEST = 1.0
"""Seconds that reading or running a tiny program may take, on a busy machine too."""


GOLDEN = TESTS / "golden"
GOLDEN_PROGRAMS = sorted(path.name for path in GOLDEN.glob("program_v*"))


@pytest.fixture(scope="module")
def originals() -> list[Files]:
    """A small model with each form of softmax, and random programs with every step."""
    small: dict[str, Any] = {"depth": 1, "embed_dim": 6, "num_heads": 2, "mlp_hidden": 6, "patch_size": (8, 8)}
    changes: dict[str, dict[str, Any]] = {
        "row": {},
        "diffusion": {"reg_tokens": 1},
        "uniform": {"pool": "avg"},
        "log2": {"dist_token": True},
    }
    models = [quantized({"intSoft": {"softmax": form}}, **small, **more) for form, more in changes.items()]
    compiled = [vitquant.compile(model) for model in models]
    programs = [*compiled, *(random_program(seed, STEPS) for seed in range(3))]
    return [*(encode_program(program) for program in programs), *(golden(name) for name in GOLDEN_PROGRAMS)]


def golden(name: str) -> Files:
    """The files of a program that an earlier version wrote."""
    folder = GOLDEN / name
    return (folder / PROGRAM_MANIFEST).read_bytes(), (folder / PROGRAM_TENSORS).read_bytes()


@pytest.mark.parametrize("name", GOLDEN_PROGRAMS)
def test_golden_programs(name: str) -> None:
    """Written once by the code that had this version; whatever comes later must read them and agree."""
    program = decode_program(*golden(name))
    expected = load_file(GOLDEN / name / "expected.safetensors")
    names = [output.name for output in program.outputs]
    found = Reference(program, outputs=names).all(expected["images"])
    for output in names:
        assert torch.equal(found[output].codes, expected[output])
    again = decode_program(*encode_program(program))
    assert str(again) == str(program)


@pytest.mark.parametrize("name", ["program_v1_vit", "program_v1_every_kind"])
def test_version_1_has_nothing_of_version_2(name: str) -> None:
    """Not its kinds, keys, tensors or outputs, whatever else the file is."""
    program, tensors = mutations.parts(golden(name))
    arrays = load(tensors)
    scores = next(op for op in program["operations"] if op["op"] == "scores")
    mix = next(op for op in program["operations"] if op["op"] == "mix")
    table = {f"{scores['out']['name']}/table": np.zeros((1, 1, 1), np.int8)}
    with pytest.raises(ProgramError, match="the tensor file holds what no operation uses"):
        decode_program(*mutations.signed(program, save({**arrays, **table})))
    for op in (scores, mix):
        op["windows"] = 1
        with pytest.raises(ProgramError, match=r"unknown or missing keys\. Got windows"):
            decode_program(*mutations.signed(program, tensors))
        del op["windows"]
    decode_program(*mutations.signed(program, tensors))
    for kind in ("gather", "constant", "multiply", "rotary", "softmax_diffusion"):
        scores["op"] = kind
        with pytest.raises(ProgramError, match=rf"version 1 of the format has no such kind\. Got {kind}"):
            decode_program(*mutations.signed(program, tensors))


def test_the_oldest_version_that_holds_it_is_written(originals: list[Files]) -> None:
    """Programs without packed tensors stay readable for earlier versions."""
    versions = {
        json.loads(manifest)["format_version"]: decode_program(manifest, tensors).packed
        for manifest, tensors in originals
    }
    assert not versions[1]
    assert not versions[2]
    assert versions[3]
    for manifest, tensors in originals:
        program = decode_program(manifest, tensors)
        assert json.loads(encode_program(program)[0])["format_version"] == (3 if program.packed else 2)


def test_the_size_is_that_of_the_tensors_in_the_file(originals: list[Files]) -> None:
    for manifest, tensors in originals:
        program = decode_program(manifest, tensors)
        assert program.nbytes == sum(array.nbytes for array in load(encode_program(program)[1]).values())


def test_what_cannot_be_packed_is_not_written() -> None:
    program = vitquant.compile(quantized())
    for name, message in (("logits/weight", "the tensor cannot be packed: -"), ("x", "does not hold it")):
        with pytest.raises(ProgramError, match=message):
            encode_program(replace(program, packed={name: Packing(4, 24)}))


@pytest.mark.parametrize("name", packed_programs.SPOILED)
def test_packed_tensors_are_checked(name: str) -> None:
    decode_program(*encode_program(packed_programs.one_layer()))
    with pytest.raises(ProgramError, match=packed_programs.SPOILED[name][2]):
        decode_program(*packed_programs.spoiled(name))


def read(files: Files) -> IntegerProgram | None:
    """The program, if it is not refused; whatever else is raised, or hangs, fails the test."""
    start = time.process_time()
    try:
        return decode_program(*files)
    except ProgramError:
        return None
    finally:
        assert time.process_time() - start < SLOWEST


def check_it_runs(program: IntegerProgram) -> None:
    """Whatever is not refused runs, and both executors give the same integers, inside the promised widths."""
    image = torch.randint(0, 256, program.image.shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    start = time.process_time()
    found = Reference(program)(image[None]).codes[0]
    assert time.process_time() - start < SLOWEST
    assert found.tolist() == NumpyExecutor(*encode_program(program)).logits(image.numpy()).tolist()


@settings(suppress_health_check=list(HealthCheck))
@given(programs())
def test_what_is_written_is_read(program: IntegerProgram) -> None:
    files = encode_program(program)
    again = decode_program(*files)
    assert encode_program(again) == files
    assert str(again) == str(program)


def test_files(tmp_path: Path) -> None:
    program = vitquant.compile(quantized())
    (tmp_path / "notes.txt").write_text("stays")
    vitquant.save_program(program, tmp_path)
    assert sorted(os.listdir(tmp_path)) == ["notes.txt", PROGRAM_MANIFEST, PROGRAM_TENSORS]
    for path in (tmp_path, str(tmp_path), tmp_path / PROGRAM_MANIFEST):
        again = vitquant.load_program(path)
        assert encode_program(again) == encode_program(program)
        assert torch.equal(Reference(again)(pixels(2)).codes, Reference(program)(pixels(2)).codes)
    size = (tmp_path / PROGRAM_TENSORS).stat().st_size
    assert program.nbytes <= size < 1.2 * program.nbytes + 2**14


def test_two_programs_do_not_mix(tmp_path: Path) -> None:
    for seed in (0, 1):
        vitquant.save_program(vitquant.compile(quantized(seed=seed)), tmp_path / str(seed))
    (tmp_path / "0" / PROGRAM_TENSORS).replace(tmp_path / "1" / PROGRAM_TENSORS)
    with pytest.raises(ProgramError, match=r"the tensor file is not the one that the program was written with"):
        vitquant.load_program(tmp_path / "1")


@pytest.mark.parametrize(
    ("put", "message"),
    [
        (b'"__metadata__":{},"__metadata__":{},', "an object has a duplicate key"),
        (b'"__metadata__":null,', "a tensor without description. Got '__metadata__'"),
        (b'"x":{"dtype":"U8","shape":[0],"data_offsets":[0,0],"more":1},', "unknown or missing keys. Got \\['more'\\]"),
        (b'"__metadata__":{"a":[[[[[[[1]]]]]]]},', "the tensor file's header is nested too deeply"),
        (b'"__metadata__":{"a":"' + b"x" * 2**23 + b'"},', "no header, or one longer than the file or than allowed"),
    ],
    ids=lambda text: text[:20],
)
def test_headers_that_some_readers_would_take(put: bytes, message: str, originals: list[Files]) -> None:
    """Of the tensor file, all but these bytes as it was written."""
    program, tensors = mutations.parts(originals[0])
    size = int.from_bytes(tensors[:8], "little") + len(put)
    tensors = size.to_bytes(8, "little") + b"{" + put + tensors[9:]
    with pytest.raises(ProgramError, match=message):
        decode_program(*mutations.signed(program, tensors))


@pytest.mark.parametrize(
    ("find", "put", "message"),
    [
        (
            b'"format_version": 2',
            b'"format_version": 4',
            r"another version .*\. Got 4, expected version 1 to 3",
        ),
        (b'"format_version": 2', b'"format_version": true', r"another version of the format\. Got True"),
        (b'"format_version": 2', b'"format_version": 1.0', r"another version of the format\. Got 1\.0"),
        (b"vitquant-program", b"vitquant-model", "not an integer program"),
        (b'"value": "logits"', b'"value": "norm"', "the program was changed after it was written"),
        (b"{", b"[", "the manifest is not JSON"),
        (b'"outputs": ', b'"outputs": "x", "outputs": ', "an object has a duplicate key"),
        (b'"outputs": ', b'"outputs": Infinity, "x": ', "Infinity is not allowed"),
        (b'"outputs": ', b'"outputs": 1e999, "x": ', "a number is too large"),
        (b'"outputs": ', b'"outputs": [[[[[[[1]]]]]]], "x": ', "the manifest is nested too deeply"),
    ],
)
def test_what_is_said(find: bytes, put: bytes, message: str, originals: list[Files]) -> None:
    manifest, tensors = originals[0]
    with pytest.raises(ProgramError, match=message):
        decode_program(manifest.replace(find, put, 1), tensors)


def test_missing_files_and_things_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(ProgramError, match="cannot read the program: No such file"):
        vitquant.load_program(tmp_path)
    vitquant.save_program(vitquant.compile(quantized()), tmp_path)
    (tmp_path / PROGRAM_TENSORS).unlink()
    with pytest.raises(ProgramError, match=r"program\.safetensors: cannot read the program: No such file"):
        vitquant.load_program(tmp_path)
    (tmp_path / PROGRAM_TENSORS).symlink_to("/dev/zero")
    with pytest.raises(ProgramError, match="not a file"):
        vitquant.load_program(tmp_path)
    (tmp_path / PROGRAM_MANIFEST).write_bytes(b" " * (MAX_MANIFEST_BYTES + 1))
    with pytest.raises(ProgramError, match="the file is too large"):
        vitquant.load_program(tmp_path)


@pytest.mark.parametrize("file", [0, 1])
def test_damage_is_refused(file: int, originals: list[Files]) -> None:
    rng = random.Random(file)
    for round_ in range(2 * ROUNDS):
        original = originals[round_ % len(originals)]
        files = list(original)
        files[file] = mutations.any_bytes(original[file], rng)
        assert read((files[0], files[1])) is None or tuple(files) == original


@pytest.mark.parametrize("torn", [0, 1])
def test_every_torn_file_is_refused(torn: int, originals: list[Files]) -> None:
    original = min(originals, key=lambda files: len(files[torn]))
    for length in range(0, len(original[torn]), 7):
        files = [*original]
        files[torn] = original[torn][:length]
        assert read((files[0], files[1])) is None


@pytest.mark.job
@pytest.mark.parametrize("mutate", mutations.SIGNED, ids=lambda kind: kind.__name__)
def test_hostile_files_are_refused_or_run(
    mutate: Callable[[Files, random.Random], Files], originals: list[Files]
) -> None:
    rng, ran = random.Random(mutate.__name__), 0
    for round_ in range(ROUNDS):
        program = read(mutate(originals[round_ % len(originals)], rng))
        if program is not None:
            check_it_runs(program)
            ran += 1
    assert ran < ROUNDS / 2, "most of it is refused"
    assert ran or mutate not in (mutations.signed_json, mutations.rewired, mutations.signed_arrays), "but not all"


def peak(files: Files) -> int:
    """Bytes that reading takes at most, beside the files."""
    tracemalloc.start()
    try:
        read(files)
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_memory(originals: list[Files]) -> None:
    """However large a file says that things are: a copy of the tensors, and Python's objects for the JSON."""
    rng = random.Random(0)
    for round_ in range(ROUNDS // 3):
        files = rng.choice(mutations.SIGNED)(originals[round_ % len(originals)], rng)
        assert peak(files) < 30 * len(files[0]) + 4 * len(files[1]) + 2**16
    many = b"[" + b"{}," * 10_000 + b"0]"
    assert peak((many, b"")) < 30 * len(many), "the worst there is, and a manifest has 4 MiB at most"


@pytest.mark.job
@pytest.mark.parametrize(
    "text",
    [
        b"[" * MAX_MANIFEST_BYTES,
        b'{"a":' * (MAX_MANIFEST_BYTES // 5),
        b"[" + b"[]," * (MAX_MANIFEST_BYTES // 3 - 1) + b"0]",
        b'"' + b'\\"' * (MAX_MANIFEST_BYTES // 2 - 1),
        b"1" * MAX_MANIFEST_BYTES,
        b"-0." + b"9" * (MAX_MANIFEST_BYTES - 3),
        b"1e" + b"9" * (MAX_MANIFEST_BYTES - 2),
        b"{" + b",".join(b'"%d":0' % i for i in range(MAX_MANIFEST_BYTES // 12)) + b"}",
        b"\xff" * 1000,
        b"",
        b"NaN",
    ],
    ids=lambda text: repr(text[:12]),
)
def test_largest_manifests_are_refused_fast(text: bytes) -> None:
    start = time.process_time()
    with pytest.raises(ProgramError):
        decode_program(text, b"")
    assert time.process_time() - start < 5 * SLOWEST


def test_messages_are_short_and_printable(originals: list[Files]) -> None:
    """Whatever a file holds, what is said about it fits a few lines of a terminal."""
    rng, said = random.Random(1), set[str]()
    for round_ in range(ROUNDS // 2):
        try:
            decode_program(*rng.choice(mutations.SIGNED)(originals[round_ % len(originals)], rng))
        except ProgramError as error:
            said.add(re.sub(r"\d+", "0", str(error)))
    assert len(said) > 40
    assert all(message.isprintable() and len(message) < 800 for message in said), max(said, key=len)
