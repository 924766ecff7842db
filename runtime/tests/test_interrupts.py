"""Ctrl-C, and signals at large, during a call: it ends at once, and the object is as good as before."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

import vitquant_runtime
from block_programs import Sizes, block_program
from saved_programs import expected, forced, images_for, load
from support.random_programs import PLAIN, Maker
from vitquant.program import ops
from vitquant.program.program import IntegerProgram, Output
from vitquant.program.storage import save_program
from vitquant.program.values import Value

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="signals of another kind")

SOON = 1.0
"""Seconds from the signal to the exception; a tenth is usual, on a busy machine too."""


@pytest.fixture(scope="module")
def program() -> IntegerProgram:
    return block_program(0, Sizes(grid=(12, 12), channels=64, heads=2, hidden=128))


@pytest.fixture(scope="module")
def folder(program: IntegerProgram, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("program")
    save_program(program, folder)
    return folder


class AlarmError(Exception):
    """Raised by the handler of the tests' signal."""


def raise_alarm(number: int, frame: object) -> None:
    raise AlarmError


class Signals:
    """Sends signals to this process after a while, from another thread, and tells when the first was sent; none after
    the block has been left, as they would end the tests.
    """

    def __init__(self, number: int, *delays: float) -> None:
        self.first = 0.0
        self.left = threading.Event()
        self.thread = threading.Thread(target=self.send, args=(number, delays))

    def send(self, number: int, delays: tuple[float, ...]) -> None:
        for delay in delays:
            if self.left.wait(delay):
                return
            self.first = self.first or time.perf_counter()
            os.kill(os.getpid(), number)

    def __enter__(self) -> Signals:
        self.thread.start()
        return self

    def __exit__(self, *details: object) -> None:
        self.left.set()
        self.thread.join()


def endless(program: IntegerProgram) -> NDArray[np.uint8]:
    """Images for minutes."""
    return np.zeros((60_000, *program.image.shape), np.uint8)


@pytest.mark.parametrize(("isa", "threads"), [("plain", 1), ("plain", 3), ("portable", 1), ("portable", 3)])
def test_a_call_is_interrupted(isa: str, threads: int, program: IntegerProgram, folder: Path) -> None:
    runtime, images = load(folder, isa, threads), images_for(program)
    wanted, many = expected(program, images), endless(program)
    assert np.array_equal(runtime(images), wanted)
    for call in (runtime, runtime.profile):
        with Signals(signal.SIGINT, 0.3) as sent, pytest.raises(KeyboardInterrupt):
            call(many)
        assert 0 < time.perf_counter() - sent.first < SOON
        assert np.array_equal(runtime(images), wanted)


def test_a_single_large_image_is_interrupted(tmp_path: Path) -> None:
    """8,100 tokens, by one thread: seconds of one layer. Of the last block a single token might be enough."""
    program = block_program(0, Sizes(grid=(90, 90), channels=192, heads=1, hidden=768, depth=2))
    save_program(program, tmp_path)
    runtime = load(tmp_path, "portable", 1)
    with Signals(signal.SIGINT, 0.3) as sent, pytest.raises(KeyboardInterrupt):
        runtime(np.zeros((1, *program.image.shape), np.uint8))
    assert 0 < time.perf_counter() - sent.first < SOON


def test_other_signals(program: IntegerProgram, folder: Path) -> None:
    """A handler that raises nothing is called meanwhile; one that does ends the call with its exception."""
    runtime, seen = load(folder, "plain", 2), []
    before = signal.signal(signal.SIGUSR1, lambda number, frame: seen.append(time.perf_counter()))
    try:
        images = images_for(program, 200)
        with Signals(signal.SIGUSR1, 0.05) as sent:
            logits = runtime(images)
            ended = time.perf_counter()
        assert np.array_equal(logits[:5], expected(program, images[:5]))
        assert seen
        assert seen[0] - sent.first < SOON
        assert ended > sent.first
        signal.signal(signal.SIGUSR1, raise_alarm)
        with Signals(signal.SIGUSR1, 0.3) as sent, pytest.raises(AlarmError):
            runtime(endless(program))
        assert time.perf_counter() - sent.first < SOON
    finally:
        signal.signal(signal.SIGUSR1, before)


def test_a_handler_may_run_the_same_program(program: IntegerProgram, folder: Path) -> None:
    runtime, images, found = load(folder, "plain", 2), images_for(program), []
    before = signal.signal(signal.SIGUSR1, lambda number, frame: found.append(runtime(images)))
    try:
        many = images_for(program, 200)
        with Signals(signal.SIGUSR1, 0.05):
            logits = runtime(many)
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert np.array_equal(found[0], expected(program, images))
    assert np.array_equal(logits[:5], expected(program, many[:5]))


def test_calls_of_other_threads_are_not_interrupted(program: IntegerProgram, folder: Path) -> None:
    """Signals are the main thread's, which waits meanwhile; a call elsewhere goes on to its end."""
    runtime, images, found = load(folder, "plain", 2), images_for(program, 200), []
    thread = threading.Thread(target=lambda: found.append(runtime(images)))
    thread.start()
    with Signals(signal.SIGINT, 0.1), pytest.raises(KeyboardInterrupt):
        time.sleep(60)
    thread.join()
    assert np.array_equal(found[0][:5], expected(program, images[:5]))


def test_ctrl_c_in_a_process(program: IntegerProgram, folder: Path) -> None:
    """It ends as any Python program does, its threads with it."""
    script = f"""
import numpy as np, vitquant_runtime
runtime = vitquant_runtime.load({str(folder)!r}, threads=2)
images = np.zeros((60_000, *runtime.image_shape), np.uint8)
runtime(images[:1])
print("ready", flush=True)
runtime(images)
"""
    with forced("plain"):
        process = subprocess.Popen(
            [sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    time.sleep(0.3)
    process.send_signal(signal.SIGINT)
    start = time.perf_counter()
    _, told = process.communicate(timeout=60)
    assert time.perf_counter() - start < 2 * SOON
    assert told.rstrip().endswith("KeyboardInterrupt")


def wide_program(width: int, layers: int) -> IntegerProgram:
    """Large files that are quick to write."""
    make = Maker(np.random.default_rng(0))
    image = Value("image", (1, 1, width), 0, 255, *PLAIN)
    x = make.patches(image, 1, width)
    weight, bias = np.ones((width, width), np.int8), np.zeros(width, np.int32)
    for _ in range(layers):
        out = make.value((1, width), 0, 255)
        x = make.emit(ops.Linear(out, x.name, weight, bias, *make.rescale(1, 2**20, out)))
    return IntegerProgram(image, tuple(make.operations), (Output("logits", x.name),))


def test_loading_is_interrupted(tmp_path: Path) -> None:
    save_program(wide_program(8192, 2), tmp_path)

    def load_for_minutes() -> None:
        for _ in range(100):
            vitquant_runtime.load(tmp_path)

    for delay in (0.02, 0.3):
        with Signals(signal.SIGINT, delay) as sent, pytest.raises(KeyboardInterrupt):
            load_for_minutes()
        assert time.perf_counter() - sent.first < SOON
