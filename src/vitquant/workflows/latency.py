"""How quickly a program runs, beside the float model in PyTorch and, where they are installed, other runtimes."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from typing import Any, TypeAlias

import torch
from torch import Tensor

from vitquant.architectures.families import require_family
from vitquant.architectures.model import QuantModel
from vitquant.arguments import require_count
from vitquant.artifact.storage import load
from vitquant.data import Preprocessing
from vitquant.errors import ConfigError
from vitquant.executors.choose import open_executor, require_threads
from vitquant.export.onnx.qdq import export_qdq
from vitquant.export.onnx.runtime import SESSIONS, Session, runtime_name
from vitquant.program.storage import load_program
from vitquant.workflows.export import made_up

Work: TypeAlias = Callable[[Tensor], Any]


@dataclass(frozen=True)
class Timing:
    """One runtime at one batch size: milliseconds a call (median), and a call's time as a share of the base's."""

    name: str
    batch: int
    milliseconds: float
    ratio: float

    @property
    def images_per_second(self) -> float:
        """Throughput."""
        return 1000 * self.batch / self.milliseconds


@torch.no_grad()
def compare_latency(
    folder: str | Path, *, batches: Sequence[int] = (1, 8), rounds: int = 7, threads: int | None = None
) -> list[Timing]:
    """Time the program in a folder and other runtimes on the same model, in turns.

    The float model has the architecture of the saved one, and random weights: its speed does not depend on them.

    Args:
        folder: what ``vitquant quantize`` wrote.
        batches: images in a call.
        rounds: each figure is the median of so many.
        threads: of all runtimes; torch's present number if not given.

    Raises:
        ConfigError: a number is not one of images, rounds or threads.
        ArtifactError: the folder holds no saved model.
        ProgramError: the folder holds no program.
    """
    if isinstance(batches, str | bytes) or not isinstance(batches, Iterable) or not batches:
        raise ConfigError("no batch sizes", where="batches", got=type(batches).__name__, expected="a list of numbers")
    sizes = [require_count(batch, "batches") for batch in batches]
    require_count(rounds, "rounds")
    threads, before = require_threads(threads), torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        model = load(folder)
        works = runtimes(model, folder, threads)
        found: list[Timing] = []
        for batch in sizes:
            pixels = made_up(model.preprocessing.shape, batch)
            found += timings(works, pixels, rounds)
        return found
    finally:
        torch.set_num_threads(before)


def runtimes(model: QuantModel, folder: str | Path, threads: int) -> dict[str, Work]:
    """What is timed, the base of the ratios first. All start from pixels."""
    normalize = model.preprocessing.normalize
    vit = require_family(model).float_model(model.spec).eval()
    program = load_program(folder)
    works: dict[str, Work] = {"PyTorch float32, eager": lambda x: vit(normalize(x))}
    for name in SESSIONS:
        if find_spec("onnx") is not None and find_spec(name) is not None:
            session = SESSIONS[name](export_qdq(model, target=name).SerializeToString(), threads=threads)
            works[f"{runtime_name(name)}, QDQ graph"] = normalized(session, model.preprocessing)
    works["simulator"] = lambda x: model(normalize(x))
    works["reference executor"] = open_executor(program, "reference")
    fastest = open_executor(program, threads=threads)
    return works | {fastest.name: fastest}


def normalized(session: Session, preprocessing: Preprocessing) -> Work:
    """A graph on normalised images, from pixels."""
    return lambda pixels: session(preprocessing.normalize(pixels).numpy())


def timings(works: dict[str, Work], pixels: Tensor, rounds: int) -> Iterable[Timing]:
    """Medians over the rounds, in which the works take turns, after one round that does not count."""
    seconds: dict[str, list[float]] = {name: [] for name in works}
    for turn in range(rounds + 1):
        for name, work in works.items():
            start = time.perf_counter()
            work(pixels)
            if turn:
                seconds[name].append(time.perf_counter() - start)
    base = next(iter(seconds.values()))
    for name, taken in seconds.items():
        ratio = median(a / b for a, b in zip(taken, base, strict=True))
        yield Timing(name, len(pixels), 1000 * median(taken), ratio)
