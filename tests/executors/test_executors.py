"""Which executor runs a program, and that all of them give the same integers."""

from __future__ import annotations

import importlib.util
import os
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch

import vitquant
from support.integer_models import pixels, quantized
from vitquant.data import open_images
from vitquant.errors import ConfigError, MissingDependencyError
from vitquant.executors import choose as executors
from vitquant.executors.choose import open_executor
from vitquant.measure.compare import compare_models
from vitquant.workflows.latency import compare_latency


@pytest.mark.native
def test_the_native_executor_gives_the_same_integers() -> None:
    program = vitquant.compile(quantized())
    images = pixels(5, seed=3)
    native, reference = open_executor(program, threads=2), open_executor(program, "reference")
    assert native.name.startswith("vitquant-runtime ")
    assert native.name.endswith(", 2 threads")
    assert torch.equal(native(images).codes, reference(images).codes)
    assert torch.equal(native(images).real(), reference(images).real())


@pytest.mark.parametrize(
    "spec", [{}, {"dist_token": True}, {"num_classes": 0}, {"num_classes": 0, "pool": "avg"}], ids=str
)
def test_simulated_and_integer_figures_are_of_the_same_output(spec: dict[str, Any]) -> None:
    model = quantized(**spec)
    images = open_images(pixels(5, seed=3), model.preprocessing)
    found = compare_models(model, vitquant.compile(model), images).evaluation
    assert found.integer is not None
    assert found.integer.to_simulated_db == 300  # identical
    assert found.integer.sqnr_db == pytest.approx(found.sqnr_db, abs=1e-4)


def test_without_it_the_reference_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(executors, "NATIVE", "a_module_that_is_not_there")
    program = vitquant.compile(quantized(depth=1))
    assert open_executor(program).name == "reference executor"
    with pytest.raises(MissingDependencyError, match="pip install vitquant-runtime"):
        open_executor(program, "native")


def test_the_native_executor_needs_the_cpu() -> None:
    program = vitquant.compile(quantized(depth=1))
    with pytest.raises(ConfigError, match="runs on the CPU"):
        open_executor(program, "native", device="cuda")


def test_bench_times_all_that_is_installed(tmp_path: Path) -> None:
    folder = tmp_path
    model = quantized()
    vitquant.save(model, folder)
    vitquant.save_program(vitquant.compile(model), folder)
    found = compare_latency(folder, batches=(1, 2), rounds=1, threads=1)
    names = [t.name for t in found if t.batch == 2]
    assert names[0] == "PyTorch float32, eager"
    assert "reference executor" in names
    assert any(name.startswith("onnxruntime") for name in names) == (
        importlib.util.find_spec("onnxruntime") is not None
    )
    assert all(t.milliseconds > 0 and t.images_per_second == 1000 * t.batch / t.milliseconds for t in found)
    assert found[0].ratio == 1


@pytest.mark.native
@pytest.mark.parametrize("isa", ["foo", "AVX2", "avx2\n", "x" * 10**5], ids=lambda isa: ascii(isa[:9]))
def test_an_instruction_set_that_is_none(isa: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VITQUANT_ISA", isa)
    with pytest.raises(ConfigError, match=r"VITQUANT_ISA: .* does not have the instruction set\. Got .*plain") as error:
        open_executor(vitquant.compile(quantized(depth=1)), "native")
    assert str(error.value).isprintable()
    assert len(str(error.value)) < 600


@pytest.mark.native
@pytest.mark.parametrize("threads", [0, -1, 257, 10**9, True, 2.5])
def test_a_number_of_threads_that_is_none(threads: Any) -> None:
    with pytest.raises(ConfigError, match=r"threads: bad value\. Got .* expected an integer from 1 to 256"):
        open_executor(vitquant.compile(quantized(depth=1)), "native", threads=threads)


@pytest.mark.native
def test_as_many_threads_as_the_native_executor_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where torch has more."""
    monkeypatch.setattr(torch, "get_num_threads", lambda: 384)
    assert open_executor(vitquant.compile(quantized(depth=1)), "native").name.endswith(", 256 threads")


@pytest.mark.native
@pytest.mark.skipif(sys.platform == "win32", reason="signals of another kind")
def test_ctrl_c_ends_a_call_of_the_native_executor(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VITQUANT_ISA", "plain")
    program = vitquant.compile(quantized())
    executor = open_executor(program, "native", threads=2)
    images = pixels(1).expand(200_000, -1, -1, -1).contiguous()
    sent: list[float] = []

    def interrupt() -> None:
        sent.append(time.perf_counter())
        os.kill(os.getpid(), signal.SIGINT)

    timer = threading.Timer(0.5, interrupt)
    timer.start()
    with pytest.raises(KeyboardInterrupt):
        executor(images)
    assert time.perf_counter() - sent[0] < 1
    timer.join()
    assert torch.equal(executor(images[:2]).codes, open_executor(program, "reference")(images[:2]).codes)
