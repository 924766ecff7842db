"""Where the native executor's time goes, how it grows with threads and batch, and what it takes to hold a model.

The breakdown is of one thread, operation by operation. The rate of ``torch._int_mm`` is that on the shapes of the
model's own linear layers, in turns with whole runs of the executor; the executor's counts the multiplications of its
linear layers and divides by the time of everything.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import warnings
from collections import defaultdict
from functools import partial
from pathlib import Path
from statistics import median

import numpy as np
import torch
from numpy.typing import NDArray

import vitquant
import vitquant_runtime
from benchmarks.model import arguments, load_model
from benchmarks.photos import load_crops, split
from benchmarks.report import Report
from benchmarks.timing import Work, taking_turns
from vitquant.program import ops
from vitquant.program.program import IntegerProgram

Images = NDArray[np.uint8]
WIDTH = 40
"""Characters of the bar for the whole time."""

CHILD = """
import sys, time
import numpy
from pathlib import Path
def resident(): return int(Path("/proc/self/statm").read_text().split()[1]) * 4096 / 2**20
before, start = resident(), time.perf_counter()
import vitquant_runtime
imported = time.perf_counter()
runtime = vitquant_runtime.load(sys.argv[1], threads=int(sys.argv[2]))
loaded = time.perf_counter()
runtime(numpy.zeros((1, *runtime.image_shape), numpy.uint8))
print(resident() - before, imported - start, loaded - imported)
"""


def breakdown(runtime: vitquant_runtime.Runtime, images: Images, rounds: int, title: str) -> Report:
    """Time by kind of step, the largest first, with a bar."""
    runtime.profile(images)
    taken = []
    for _ in range(rounds):
        kinds: defaultdict[str, float] = defaultdict(float)
        for kind, seconds in runtime.profile(images):
            kinds[kind] += seconds
        taken.append(kinds)
    ms = {kind: 1e3 * median(kinds[kind] for kinds in taken) / len(images) for kind in taken[0]}
    whole = sum(ms.values())
    report = Report(title, ["step", "ms per image", "share", ""], ("vitquant-runtime",))
    for kind, value in sorted(ms.items(), key=lambda item: -item[1]):
        report.add(kind, f"{value:.2f}", f"{value / whole:.1%}", ("#" * round(WIDTH * value / whole)).ljust(WIDTH))
    report.add("together", f"{whole:.2f}", "", "")
    report.notes.append(f"One thread, batch {len(images)}, {runtime.isa}; medians of {rounds} rounds.")
    return report


def growth(folder: Path, images: Images, threads: int, rounds: int) -> Report:
    """One thread against several, and one image against many."""
    runtimes = {count: vitquant_runtime.load(folder, threads=count) for count in (1, threads)}
    report = Report(
        "Native executor: threads and batches",
        ["batch", "ms per image, 1 thread", f"{threads} threads", "gain of threads", "per image, of batch 1"],
        ("vitquant-runtime",),
    )
    batches = (1, 2, 4, 8, 16, 32)
    works = {
        (b, n): partial(run, np.resize(images, (b, *images.shape[1:]))) for b in batches for n, run in runtimes.items()
    }
    taking_turns(works, 1)
    times = taking_turns(works, rounds)
    for b in batches:
        one, many = times[b, 1], times[b, threads]
        gain = median(x / y for x, y in zip(one, many, strict=True))
        per_image = median(x / y / b for x, y in zip(many, times[1, threads], strict=True))
        ms = [f"{median(t) * 1e3 / b:.2f}" for t in (one, many)]
        report.add(str(b), *ms, f"{gain:.2f}", f"{per_image:.2f}")
    report.notes.append(f"Medians of {rounds} rounds in turns. Goal: 2 threads gain 1.8.")
    return report


def products(program: IntegerProgram, batch: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Random 8-bit operands in the shapes of the linear layers."""
    values = program.values()
    shapes = [
        (batch * values[op.x].shape[0], *op.weight.shape) for op in program.operations if isinstance(op, ops.Linear)
    ]
    draw = partial(torch.randint, -128, 128, dtype=torch.int8)
    return [(draw((m, k)), draw((n, k)).t()) for m, n, k in shapes]


def rate(program: IntegerProgram, folder: Path, images: Images, threads: int, rounds: int) -> Report:
    """The executor's rate of multiplications, beside that of torch's product of 8-bit matrices."""
    torch.set_num_threads(threads)
    runtime = vitquant_runtime.load(folder, threads=threads)
    report = Report(
        "Native executor: rate of multiplications",
        ["batch", "torch._int_mm, TOPS", "executor, whole run, TOPS", "share", "goal"],
        ("torch", "vitquant-runtime"),
    )
    for batch in (1, 8):
        operands = products(program, batch)
        operations = sum(2 * a.shape[0] * a.shape[1] * b.shape[1] for a, b in operands)

        def multiply(operands: list[tuple[torch.Tensor, torch.Tensor]] = operands) -> None:
            for a, b in operands:
                torch._int_mm(a, b)

        pixels = np.resize(images, (batch, *images.shape[1:]))
        works: dict[str, Work] = {"torch": multiply, "ours": partial(runtime, pixels)}
        taking_turns(works, 1)
        times = taking_turns(works, rounds)
        share = median(t / o for t, o in zip(times["torch"], times["ours"], strict=True))
        report.add(
            str(batch), *(f"{operations / median(t) / 1e12:.2f}" for t in times.values()), f"{share:.0%}", "70 %"
        )
    report.notes.append(f"{threads} threads; medians of {rounds} rounds in turns.")
    return report


def footprint(folder: Path, threads: int, rounds: int) -> Report:
    """What a process needs beyond Python and NumPy: memory, import, load."""
    command = [sys.executable, "-c", CHILD, str(folder), str(threads)]
    found = [
        [float(x) for x in subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.split()]
        for _ in range(rounds)
    ]
    memory, imported, loaded = (median(column) for column in zip(*found, strict=True))
    report = Report("Native executor: footprint", ["what", "figure", "goal"], ("vitquant-runtime",))
    report.add("resident memory, loaded and run at batch 1", f"{memory:.0f} MiB", "60 MB")
    report.add("import", f"{1e3 * imported:.0f} ms", "100 ms")
    report.add("load", f"{loaded:.2f} s", "0.3 s")
    report.notes.append(f"Beyond the interpreter and NumPy; medians of {rounds} processes.")
    return report


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--images", type=int, default=16, help="calibration images")
    parser.add_argument("--large", type=int, default=518, help="a larger input, whose breakdown is told too")
    parser.add_argument("--rounds", type=int, default=9)
    args = parser.parse_args()
    torch.set_grad_enabled(False)
    warnings.simplefilter("ignore")
    with tempfile.TemporaryDirectory(prefix="vitquant-bench-") as scratch:
        small, large = Path(scratch, "small"), Path(scratch, "large")
        program, images = write(args, args.img_size, args.images, small)
        runtime = vitquant_runtime.load(small, threads=1)
        for batch in (1, 8):
            title = f"Native executor: breakdown at {args.img_size}"
            breakdown(runtime, images[:batch], args.rounds, title).show(args.markdown)
        rate(program, small, images, args.threads, args.rounds).show(args.markdown)
        growth(small, images, args.threads, args.rounds).show(args.markdown)
        footprint(small, args.threads, args.rounds).show(args.markdown)
        program, images = write(args, args.large, 4, large)
        runtime = vitquant_runtime.load(large, threads=1)
        title = f"Native executor: breakdown at {args.large}, {program.values()['final_norm'].shape[0]} tokens"
        breakdown(runtime, images[:1], args.rounds, title).show(args.markdown)


def write(args: argparse.Namespace, img_size: int, count: int, folder: Path) -> tuple[IntegerProgram, Images]:
    """Quantize for an input size, and write the program into ``folder``; also the images."""
    model = load_model(argparse.Namespace(**{**vars(args), "img_size": img_size}))
    files, _ = split(args.photos, model.preprocessing)
    images = load_crops(files, model.preprocessing, count)
    program = vitquant.compile(vitquant.quantize(model, "vit_int8.yaml", calibration=images), name=args.model)
    vitquant.save_program(program, folder)
    return program, images.numpy()


if __name__ == "__main__":
    main()
