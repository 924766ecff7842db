"""Which executor runs a program: the native one where it is installed, else the reference."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias, get_args

import torch
from torch import Tensor

from vitquant.arguments import require_kind, require_whole
from vitquant.device import parse_device, require_device
from vitquant.errors import ConfigError, DeviceError, MissingDependencyError
from vitquant.executors.reference import IntegerOutput, Reference, require_pixels
from vitquant.program.program import IntegerProgram, Output
from vitquant.program.storage import encode_program

ExecutorName: TypeAlias = Literal["auto", "reference", "native"]

NATIVE = "vitquant_runtime"

MAX_THREADS = 256
"""Of the native executor."""


@dataclass(frozen=True)
class Executor:
    """Runs a program on images ``uint8 [B, C, h, w]``. All executors give the same integers."""

    name: str
    all: Callable[[Tensor], dict[str, IntegerOutput]]
    """Gives all chosen outputs by name."""

    def __call__(self, images: Tensor) -> IntegerOutput:
        """The first of them."""
        return next(iter(self.all(images).values()))


def open_executor(
    program: IntegerProgram,
    kind: ExecutorName = "auto",
    *,
    device: torch.device | str = "cpu",
    threads: int | None = None,
    outputs: Sequence[str] = (),
) -> Executor:
    """An executor of a program.

    Args:
        program: compiled or loaded.
        kind: ``native`` needs ``vitquant-runtime`` and the CPU; ``auto`` takes it where both are there.
        device: for the reference executor.
        threads: of the native executor, 1 to 256; torch's number if not given.
        outputs: names of the outputs to compute; the first one, if none is named.

    Raises:
        MissingDependencyError: ``native``, and ``vitquant-runtime`` is not installed.
        ConfigError: an unknown kind, device or output, a number of threads that cannot be, ``native`` on another device
            than the CPU, or with ``VITQUANT_ISA`` naming an instruction set that this machine does not have.
        DeviceError: the device is not there, or the native executor cannot start its threads.
    """
    require_kind(program, IntegerProgram, "program")
    if kind not in get_args(ExecutorName):
        raise ConfigError("unknown executor", where="executor", got=kind, expected=" or ".join(get_args(ExecutorName)))
    threads = require_threads(threads)
    on_cpu = parse_device(device).type == "cpu"
    if kind == "auto":
        kind = "native" if on_cpu and importlib.util.find_spec(NATIVE) is not None else "reference"
    if kind == "reference":
        return Executor("reference executor", Reference(program, require_device(device), outputs).all)
    if not on_cpu:
        raise ConfigError("the native executor runs on the CPU", where="executor", got=str(device), expected="cpu")
    return native(program, threads, program.choose(outputs))


def require_threads(threads: int | None) -> int:
    """How many threads to use; torch's number, if none is given.

    Raises:
        ConfigError: not from 1 to 256.
    """
    if threads is None:
        return min(torch.get_num_threads(), MAX_THREADS)
    return require_whole(threads, "threads", 1, MAX_THREADS)


def native(program: IntegerProgram, threads: int, outputs: Sequence[Output]) -> Executor:
    """The native executor, which reads programs as they are saved."""
    try:
        module = importlib.import_module(NATIVE)
    except ImportError as error:
        raise MissingDependencyError(
            f"the native executor cannot be imported: {error}", fix="pip install vitquant-runtime"
        ) from error
    try:
        runtime = module.loads(*encode_program(program), threads=threads, outputs=[o.name for o in outputs])
    except ValueError as error:  # not about the program, which was checked when it was made
        raise ConfigError(str(error).removesuffix(".")) from error
    except OSError as error:
        raise DeviceError(f"the native executor cannot start: {str(error).removesuffix('.')}") from error
    scales = {name: torch.from_numpy(output.scale) for name, output in runtime.outputs.items()}

    def execute(images: Tensor) -> dict[str, IntegerOutput]:
        pixels = require_pixels(program, images).cpu().contiguous().numpy()
        found = runtime.run(pixels)
        return {name: IntegerOutput(torch.from_numpy(found[name]), scale.clone()) for name, scale in scales.items()}

    return Executor(f"vitquant-runtime {module.__version__}, {runtime.isa}, {threads} threads", execute)
