"""Odd paths, little memory, few threads, forks, and texts that do not fit in a line."""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import vitquant
import vitquant_runtime
from saved_programs import expected, forced, images_for, load
from support.integer_models import quantized
from vitquant.program.program import IntegerProgram
from vitquant.program.storage import save_program

linux = pytest.mark.skipif(sys.platform != "linux", reason="limits of processes as Linux has them")


@pytest.fixture(scope="module")
def program() -> IntegerProgram:
    return vitquant.compile(quantized(depth=1))


@pytest.fixture(scope="module")
def folder(program: IntegerProgram, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("program")
    save_program(program, folder)
    return folder


def refusal(path: Any) -> str:
    """The message, which is one line, at once."""
    start = time.perf_counter()
    with pytest.raises(ValueError, match=r".") as error:
        vitquant_runtime.load(path)
    assert time.perf_counter() - start < 2
    message = str(error.value)
    assert message.isascii()
    assert message.isprintable()
    assert len(message) < 800
    return message


def run(script: str, **environment: str) -> str:
    """What a process of its own prints; fails where it crashes or hangs."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", script],
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", **environment},
    )
    assert done.returncode == 0, (done.returncode, done.stderr)
    return done.stdout


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes in folders")
@pytest.mark.parametrize("name", ["program.json", "program.safetensors"])
def test_a_pipe_does_not_block(name: str, folder: Path, tmp_path: Path) -> None:
    for file in ("program.json", "program.safetensors"):
        if file != name:
            (tmp_path / file).write_bytes((folder / file).read_bytes())
    os.mkfifo(tmp_path / name)
    assert f"{name}: not a file" in refusal(tmp_path)
    assert f"{name}: not a file" in refusal(tmp_path / "program.json")


@pytest.mark.skipif(not os.path.exists("/dev/zero"), reason="no devices among files")
def test_what_is_no_file(tmp_path: Path) -> None:
    assert "/dev/zero: not a file" in refusal("/dev/zero")
    (tmp_path / "program.json").mkdir()
    assert "there is no such file" in refusal(tmp_path / "program.json")
    assert "not a file" in refusal(tmp_path)
    (tmp_path / "loop").symlink_to("loop")
    assert "cannot read the program" in refusal(tmp_path / "loop")
    assert "cannot read the program" in refusal("n" * 5000)


def test_files_that_are_too_large(folder: Path, tmp_path: Path) -> None:
    """Sparse ones, of 4 TB."""
    for name in ("program.json", "program.safetensors"):
        (tmp_path / "program.json").write_bytes((folder / "program.json").read_bytes())
        (tmp_path / name).touch()
        os.truncate(tmp_path / name, 2**42)
        assert f"{name}: the file is too large. Got {2**42} bytes" in refusal(tmp_path)


def test_names_of_any_bytes(program: IntegerProgram, folder: Path, tmp_path: Path) -> None:
    wanted = expected(program, images_for(program))
    for name in (b"caf\xe9", "ü 日".encode(), b"a'b\"c\nd"):
        other = os.path.join(os.fsencode(tmp_path), name)
        try:
            os.mkdir(other)
        except OSError:
            pytest.skip("this file system has names in Unicode only")
        refusal(other)
        for file in ("program.json", "program.safetensors"):
            Path(os.fsdecode(other), file).write_bytes((folder / file).read_bytes())
        for path in (other, os.fsdecode(other), Path(os.fsdecode(other))):
            assert np.array_equal(vitquant_runtime.load(path)(images_for(program)), wanted)


@pytest.mark.parametrize("path", ["", b"", "a\0b", "\0"])
def test_what_is_no_path(path: Any) -> None:
    assert "path: not the path of a program" in refusal(path)


def test_a_null_character_does_not_end_a_path(folder: Path) -> None:
    """As it would in C: the program before it is not the one that was asked for."""
    assert "not the path of a program" in refusal(f"{folder}\0/nowhere")


@pytest.mark.parametrize("path", [None, 1, 2.5, ["program.json"]])
def test_what_is_no_path_by_its_type(path: Any) -> None:
    with pytest.raises(TypeError):
        vitquant_runtime.load(path)


def test_a_long_path_shows_its_end(tmp_path: Path) -> None:
    message = refusal(tmp_path / "/".join(["a" * 60] * 8) / "model.json")
    assert f"{'a' * 60}/model.json: there is no such file" in message
    assert message.startswith(str(tmp_path)[:20])


@pytest.mark.parametrize("isa", ["foo", "Avx2", " ", "avx2\n", "ü", "x" * 10**5], ids=lambda isa: ascii(isa[:9]))
def test_the_message_about_instruction_sets_names_those_there_are(isa: str, folder: Path) -> None:
    with forced(isa), pytest.raises(ValueError, match="VITQUANT_ISA") as error:
        vitquant_runtime.load(folder)
    message = str(error.value)
    assert message.isprintable()
    assert len(message) < 600
    for known in message.split("one of ")[1].split(", or nothing")[0].split(", "):
        assert load(folder, known).isa == known


NO_THREADS = [10**9, 10**5000, -(10**5000), 2.5, np.nan, np.True_, "2", b"2", [2], "x" * 10**6]


@pytest.mark.parametrize("threads", NO_THREADS, ids=range(len(NO_THREADS)))
def test_what_is_no_number_of_threads(threads: Any, folder: Path) -> None:
    with pytest.raises(ValueError, match=r"threads: not a number of threads.*1 to 256") as error:
        vitquant_runtime.load(folder, threads=threads)
    assert len(str(error.value)) < 200


def test_numbers_of_threads_of_any_type(folder: Path) -> None:
    assert vitquant_runtime.load(folder, threads=np.int64(3)).threads == 3
    assert vitquant_runtime.load(folder, threads=256).threads == 256


def views(images: NDArray[np.uint8]) -> dict[str, NDArray[np.uint8]]:
    """The same images, laid out in other ways."""
    padded = np.zeros((len(images), 3, 20, 40), np.uint8)
    padded[:, :, 2:18, 1:33:2] = images
    read_only = images.copy()
    read_only.flags.writeable = False
    buffer = np.zeros(images.nbytes + 1, np.uint8)
    buffer[1:] = images.ravel()
    return {
        "Fortran order": np.asfortranarray(images),
        "steps": padded[:, :, 2:18, 1:33:2],
        "backwards": np.ascontiguousarray(images[::-1, ::-1, ::-1, ::-1])[::-1, ::-1, ::-1, ::-1],
        "read-only": read_only,
        "big-endian": images.astype(">u1"),
        "odd address": buffer[1:].reshape(images.shape),
        "a subclass": np.ma.masked_array(images),
    }


def test_images_in_any_layout(program: IntegerProgram, folder: Path) -> None:
    images = images_for(program)
    wanted, runtime = expected(program, images), load(folder)
    for how, view in views(images).items():
        assert np.array_equal(runtime(view), wanted), how
    one = np.broadcast_to(images[:1], (5, *images.shape[1:]))
    assert np.array_equal(runtime(one), np.broadcast_to(wanted[:1], (5, wanted.shape[1])))
    assert runtime(images[:0]).shape == (0, wanted.shape[1])


@pytest.mark.parametrize("dtype", [">u2", "int8", "bool", "float16", "object", "S1", "M8[s]", [("r", "u1")]], ids=str)
def test_images_of_other_types(dtype: Any, folder: Path) -> None:
    with pytest.raises(ValueError, match="images: not what the program takes"):
        load(folder)(np.zeros((1, 3, 16, 16), dtype))


def test_a_batch_that_no_memory_holds(program: IntegerProgram, folder: Path) -> None:
    runtime, images = load(folder), images_for(program)
    with pytest.raises(MemoryError):
        runtime(np.broadcast_to(images[:1], (2**45, *images.shape[1:])))
    assert np.array_equal(runtime(images), expected(program, images))


LIMITED = """
import resource, sys, numpy as np, vitquant_runtime
def virtual():
    return int(open("/proc/self/statm").read().split()[0]) * 4096
def limit(more):
    resource.setrlimit(resource.RLIMIT_AS, (virtual() + more, resource.RLIM_INFINITY))
"""


@linux
def test_loading_with_any_memory(tmp_path: Path) -> None:
    """Wherever it ends, it ends in an exception, and with more of it the program is loaded."""
    program = vitquant.compile(quantized(embed_dim=192, num_heads=3, mlp_hidden=768, depth=2))
    save_program(program, tmp_path)
    told = run(
        LIMITED
        + f"""
failed = loaded = 0
for i in range(60):
    limit(i * 400_000)
    try:
        vitquant_runtime.load({str(tmp_path)!r}, threads=1)
        loaded += 1
    except MemoryError as error:
        assert "not enough memory" in str(error), error
        failed += 1
limit(10**9)
vitquant_runtime.load({str(tmp_path)!r}, threads=1)
print(failed, loaded)
""",
        MALLOC_ARENA_MAX="1",
    )
    failed, loaded = map(int, told.split())
    assert failed > 2
    assert loaded > 2


@linux
def test_threads_that_the_system_does_not_start(program: IntegerProgram, folder: Path, tmp_path: Path) -> None:
    """An exception, and no thread is left; later the same object has all of them."""
    np.save(tmp_path / "images.npy", images_for(program))
    np.save(tmp_path / "logits.npy", expected(program, images_for(program)))
    told = run(
        LIMITED
        + f"""
import os
images, wanted = np.load({str(tmp_path / "images.npy")!r}), np.load({str(tmp_path / "logits.npy")!r})
runtime = vitquant_runtime.load({str(folder)!r}, threads=200)
before = len(os.listdir("/proc/self/task"))
limit(2**28)
for _ in range(3):
    try:
        runtime(images)
        print("it ran")
    except OSError as error:
        assert "threads: the system starts" in str(error), error
        assert len(os.listdir("/proc/self/task")) == before
alone = vitquant_runtime.load({str(folder)!r}, threads=1)
assert np.array_equal(alone(images), wanted)
limit(2**34)
assert np.array_equal(runtime(images), wanted)
assert len(os.listdir("/proc/self/task")) == before + 199
""",
    )
    assert told == ""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
@pytest.mark.parametrize("called_before", [False, True])
def test_processes_that_are_forked(called_before: bool, program: IntegerProgram, folder: Path, tmp_path: Path) -> None:
    """Each has threads of its own, while the parent goes on; a process forked from one of them too."""
    np.save(tmp_path / "images.npy", images_for(program))
    np.save(tmp_path / "logits.npy", expected(program, images_for(program)))
    told = run(
        f"""
import os, threading, numpy as np, vitquant_runtime
images, wanted = np.load({str(tmp_path / "images.npy")!r}), np.load({str(tmp_path / "logits.npy")!r})
runtime = vitquant_runtime.load({str(folder)!r}, threads=3)
if {called_before}:
    runtime(images)

def check(depth):
    for _ in range(3):
        assert np.array_equal(runtime(images), wanted)
    tasks = "/proc/self/task"
    assert not os.path.exists(tasks) or len(os.listdir(tasks)) >= 3, os.listdir(tasks)
    if depth:
        child = os.fork()
        if child == 0:
            code = 1
            try:
                check(depth - 1)
                code = 0
            finally:
                os._exit(code)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        check(0)

check(2)
""",
    )
    assert told == ""


def call(runtime: vitquant_runtime.Runtime, images: NDArray[np.uint8], out: Any) -> None:
    """In a child."""
    out.put(runtime(images))


@linux
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_fork_amid_calls(program: IntegerProgram, folder: Path) -> None:
    """Whatever other threads of the parent were at, whatever locks they held."""
    runtime, images = load(folder, threads=3), images_for(program)
    wanted, ended = expected(program, images), threading.Event()
    forking = multiprocessing.get_context("fork")

    def work() -> None:
        while not ended.is_set():
            runtime(images)

    callers = [threading.Thread(target=work) for _ in range(3)]
    for caller in callers:
        caller.start()
    try:
        for _ in range(20):
            out = forking.SimpleQueue()
            child = forking.Process(target=call, args=(runtime, images, out))
            child.start()
            child.join(30)
            assert child.exitcode == 0
            assert np.array_equal(out.get(), wanted)
    finally:
        ended.set()
        for caller in callers:
            caller.join()


def test_what_an_object_says_of_itself_is_one_line(tmp_path: Path) -> None:
    for name in ("a\nb\x1b[31m\u202e", "x" * 10**5, 5, None, ["deit"]):
        save_program(vitquant.compile(quantized(depth=1)), tmp_path)
        program = vitquant.load_program(tmp_path)
        changed = IntegerProgram(program.image, program.operations, program.outputs, {"model": name})
        save_program(changed, tmp_path)
        said = repr(load(tmp_path))
        assert said.isascii()
        assert said.isprintable()
        assert len(said) < 200
