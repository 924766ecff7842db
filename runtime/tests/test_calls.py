"""What a call takes and gives, from several Python threads too."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

import vitquant
import vitquant_runtime
from saved_programs import expected, forced, images_for, load
from support.integer_models import quantized
from vitquant.program.program import IntegerProgram
from vitquant.program.storage import save_program


@pytest.fixture(scope="module")
def program() -> IntegerProgram:
    return vitquant.compile(quantized())


@pytest.fixture(scope="module")
def folder(program: IntegerProgram, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("program")
    save_program(program, folder)
    return folder


def test_attributes(program: IntegerProgram, folder: Path) -> None:
    runtime = vitquant_runtime.load(folder / "program.json", threads=2)
    assert runtime.image_shape == (3, 16, 16)
    assert runtime.threads == 2
    assert runtime.metadata == program.metadata
    assert runtime.scale.dtype == np.float32
    assert runtime.isa in repr(runtime)
    assert vitquant_runtime.load(str(folder)).threads >= 1


@pytest.mark.parametrize(
    "images",
    [
        np.zeros((2, 3, 16, 16), np.float32),
        np.zeros((2, 3, 16, 16), np.int8),
        np.zeros((3, 16, 16), np.uint8),
        np.zeros((2, 3, 16, 17), np.uint8),
        np.zeros((2, 1, 3, 16, 16), np.uint8),
        np.zeros((0,), np.uint8),
        "a picture",
        None,
    ],
    ids=["float", "int8", "one image", "wider", "more dimensions", "none", "text", "nothing"],
)
def test_other_input_is_refused(images: object, folder: Path) -> None:
    with pytest.raises(ValueError, match=r"images: not what the program takes.*uint8 \[B, 3, 16, 16\]"):
        load(folder)(images)  # type: ignore[arg-type]


def test_images_need_not_be_contiguous(program: IntegerProgram, folder: Path) -> None:
    images = images_for(program, 6)
    wanted, runtime = expected(program, images), load(folder)
    assert np.array_equal(runtime(images[::-2]), wanted[::-2])
    channels_last = np.ascontiguousarray(images.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2)
    assert np.array_equal(runtime(channels_last), wanted)
    images.flags.writeable = False
    assert np.array_equal(runtime(images), wanted)


def test_several_python_threads(program: IntegerProgram, folder: Path) -> None:
    images = images_for(program, 13)
    wanted, runtime = expected(program, images), load(folder, threads=2)
    wrong: list[int] = []

    def work(seed: int) -> None:
        random = np.random.default_rng(seed)
        for _ in range(60):
            first, count = random.integers(0, 12), random.integers(1, 5)
            if not np.array_equal(runtime(images[first : first + count]), wanted[first : first + count]):
                wrong.append(seed)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
def test_after_fork(program: IntegerProgram, folder: Path, tmp_path: Path) -> None:
    """The child has none of the parent's threads, and computes all the same."""
    images = images_for(program)
    np.save(tmp_path / "images.npy", images)
    script = f"""
import os, sys, numpy as np, vitquant_runtime
images = np.load({str(tmp_path / "images.npy")!r})
runtime = vitquant_runtime.load({str(folder)!r}, threads=3)
wanted = runtime(images)
child = os.fork()
if child == 0:
    same = np.array_equal(runtime(images), wanted)
    del runtime
    os._exit(0 if same else 1)
sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""
    subprocess.run([sys.executable, "-W", "ignore", "-c", script], check=True, timeout=60)


def test_needs_numpy_only_and_is_quick_to_import() -> None:
    script = """
import sys, time, numpy
before = set(sys.modules)
start = time.perf_counter()
import vitquant_runtime
took = time.perf_counter() - start
foreign = {m.split(".")[0] for m in set(sys.modules) - before} - set(sys.stdlib_module_names)
foreign -= {"vitquant_runtime", "numpy"}
assert not foreign, foreign
assert took < 0.1, took
"""
    subprocess.run([sys.executable, "-c", script], check=True, timeout=60)


@pytest.mark.parametrize("isa", ["sse", "AVX2", "avx512vnni "])
def test_unknown_instruction_set(isa: str, folder: Path) -> None:
    with pytest.raises(ValueError, match=f"VITQUANT_ISA: .* Got {isa}"):
        load(folder, isa)


def test_empty_instruction_set_is_the_quickest(folder: Path) -> None:
    assert load(folder, "").isa == load(folder, None).isa
    with forced("portable"):
        assert vitquant_runtime.load(folder).isa == "portable"


@pytest.mark.parametrize("threads", [0, -1, 257, 1.0, True, "2"])
def test_not_a_number_of_threads(threads: object, folder: Path) -> None:
    with pytest.raises(ValueError, match=r"threads: not a number of threads.*1 to 256"):
        vitquant_runtime.load(folder, threads=threads)  # type: ignore[arg-type]


def test_profile(program: IntegerProgram, folder: Path) -> None:
    steps = load(folder).profile(images_for(program))
    assert {"linear+embed", "layernorm", "scores+softmax_row+mix", "linear+add", "linear+lookup"} <= {
        s for s, _ in steps
    }
    assert all(seconds >= 0 for _, seconds in steps)
