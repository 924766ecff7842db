"""Programs on disk, images for them, and comparison with the reference."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

import vitquant_runtime
from vitquant.executors.reference import Reference
from vitquant.program.program import IntegerProgram
from vitquant.program.storage import save_program

KNOWN_ISAS = ("plain", "portable", "avx2", "avxvnni", "avx512vnni", "avx512vbmi", "neondot")


@contextmanager
def forced(isa: str | None) -> Iterator[None]:
    """``VITQUANT_ISA`` set to this."""
    before = os.environ.pop("VITQUANT_ISA", None)
    if isa is not None:
        os.environ["VITQUANT_ISA"] = isa
    try:
        yield
    finally:
        os.environ.pop("VITQUANT_ISA", None)
        if before is not None:
            os.environ["VITQUANT_ISA"] = before


def load(
    path: Path, isa: str | None = None, threads: int | None = 1, outputs: str | list[str] | None = None
) -> vitquant_runtime.Runtime:
    with forced(isa):
        return vitquant_runtime.load(path, threads=threads, outputs=outputs)


def available(folder: Path) -> list[str]:
    """The instruction sets that this machine has, of those that there are."""
    found = []
    for isa in KNOWN_ISAS:
        try:
            load(folder, isa)
        except ValueError as error:
            if "VITQUANT_ISA" not in str(error):
                raise
        else:
            found.append(isa)
    return found


def images_for(program: IntegerProgram, count: int = 2, seed: int = 0) -> NDArray[np.uint8]:
    """Noise, and a black, a white and a black and white image."""
    noise = np.random.default_rng(seed).integers(0, 256, (count, *program.image.shape), dtype=np.uint8)
    extremes = [np.zeros_like(noise[:1]), np.full_like(noise[:1], 255), (noise[:1] > 127).astype(np.uint8) * 255]
    return np.concatenate([noise, *extremes])


def expected(program: IntegerProgram, images: NDArray[np.uint8]) -> NDArray[np.int32]:
    """Of the first output."""
    return Reference(program)(torch.from_numpy(images)).codes.numpy()


def all_expected(program: IntegerProgram, images: NDArray[np.uint8]) -> dict[str, NDArray[np.int32]]:
    reference = Reference(program, outputs=[output.name for output in program.outputs])
    return {name: output.codes.numpy() for name, output in reference.all(torch.from_numpy(images)).items()}


def disagreements(
    program: IntegerProgram,
    images: NDArray[np.uint8],
    folder: Path,
    isas: list[str],
    threads: tuple[int, ...] = (1, 3),
) -> list[str]:
    """Where the runtime differs from the reference, in the first output computed alone, or in all of them together."""
    save_program(program, folder)
    wanted, found = all_expected(program, images), []
    choices = [list(wanted)[:1], list(wanted)][: len(wanted)]
    for isa in isas:
        for count in threads:
            for outputs in choices:
                for name, codes in load(folder, isa, count, outputs).run(images).items():
                    assert codes.dtype == np.int32
                    if not np.array_equal(codes, wanted[name]):
                        found.append(f"{name} of {len(outputs)}, {isa}, {count} threads")
    return found
