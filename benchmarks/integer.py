"""The integer program beside the float model and the simulation: SQNR, size, lowering, speed and memory.

SQNR is at the final norm, over the evaluation photos. Times are of the reference executor against the float model in
eager PyTorch, in turns; memory is the peak of a process of its own that loads one of them and runs it.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from statistics import median

import torch
from torch import Tensor

import vitquant
from benchmarks.memory import peak_mib
from benchmarks.model import FinalNorm, arguments, load_model
from benchmarks.photos import load, load_crops, split
from benchmarks.report import Report
from benchmarks.timing import taking_turns
from vitquant.adapters.adapt import FloatModel, sqnr_db
from vitquant.architectures.model import QuantModel
from vitquant.executors.reference import Reference
from vitquant.program.program import IntegerProgram
from vitquant.program.storage import PROGRAM_TENSORS
from vitquant.report.units import decibels

BATCHES = (1, 8)


def final_norm(program: IntegerProgram, pixels: Tensor) -> Tensor:
    """The final norm of the integer program, as real numbers."""
    value = program.values()["final_norm"]
    codes = torch.cat([Reference(program).run(batch, ["final_norm"])["final_norm"] for batch in pixels.split(8)])
    zero, scale = (torch.from_numpy(value.spread(array).copy()) for array in (value.zero_point, value.scale))
    return (codes - zero) * scale


def accuracy(model: FloatModel, qmodel: QuantModel, program: IntegerProgram, pixels: Tensor) -> Report:
    images = model.preprocessing.normalize(pixels)
    exact, simulated = (
        torch.cat([f(b) for b in images.split(8)]) for f in (FinalNorm(model.vit), qmodel.forward_features)
    )
    integer = final_norm(program, pixels)
    report = Report("Integer program: SQNR at the final norm", ["what", "dB"])
    report.add("simulated, against float", f"{sqnr_db(exact, simulated):.2f}")
    report.add("integers, against float", f"{sqnr_db(exact, integer):.2f}")
    differing = int((simulated != integer).sum())
    report.add("integers, against simulated", decibels(sqnr_db(simulated, integer), 0))
    report.notes.append(f"{len(pixels)} photos; {differing} of {integer.numel()} numbers differ from the simulation.")
    return report


def speed(
    model: FloatModel, qmodel: QuantModel, program: IntegerProgram, pixels: Tensor, args: argparse.Namespace
) -> Report:
    report = Report(
        "Integer program: the reference executor beside float PyTorch",
        ["batch", "float, ms per image", "simulated", "reference", "simulated / float", "reference / float", "goal"],
    )
    reference = Reference(program)
    for batch in BATCHES:
        x = pixels[:batch]
        images = model.preprocessing.normalize(x)
        works = {
            "float": partial(model.vit, images),
            "simulated": partial(qmodel, images),
            "int": partial(reference, x),
        }
        taking_turns(works, 1)
        times = taking_turns(works, args.rounds)
        ms = [f"{median(t) * 1e3 / batch:.1f}" for t in times.values()]
        ratios = [ratio(times[name], times["float"]) for name in ("simulated", "int")]
        report.add(str(batch), *ms, *(f"{r:.2f}" for r in ratios), "2")
    report.notes.append(f"{args.threads} threads; medians of {args.rounds} rounds in turns.")
    return report


def ratio(times: Sequence[float], base: Sequence[float]) -> float:
    return median(a / b for a, b in zip(times, base, strict=True))


def resources(qmodel: QuantModel, args: argparse.Namespace) -> Report:
    report = Report("Integer program: size, lowering, memory", ["what", "figure", "goal"])
    start = time.perf_counter()
    program = vitquant.compile(qmodel, name=args.model)
    lowering = time.perf_counter() - start
    with tempfile.TemporaryDirectory(prefix="vitquant-bench-") as folder:
        vitquant.save_program(program, folder)
        size = Path(folder, PROGRAM_TENSORS).stat().st_size
        start = time.perf_counter()
        vitquant.load_program(folder)
        loading = time.perf_counter() - start
        peaks = [peak_of(args, kind, folder) for kind in ("nothing", "float", "program")]
    checkpoint = args.weights.stat().st_size
    report.add("program.safetensors", f"{size / 1e6:.1f} MB", "")
    report.add("of the float checkpoint", f"{size / checkpoint:.1%}", "26 %")
    report.add("lowering", f"{lowering:.2f} s", "5 s")
    report.add("loading, with all checks", f"{loading:.2f} s", "")
    report.add("peak memory, float model, one image", f"{peaks[1] - peaks[0]:.0f} MiB beyond Python and torch", "")
    report.add("peak memory, integer program, one image", f"{peaks[2] - peaks[0]:.0f} MiB beyond Python and torch", "")
    return report


def peak_of(args: argparse.Namespace, kind: str, program: str) -> float:
    """Peak memory of a process that loads and runs one kind of model."""
    given = {"weights": args.weights, "photos": args.photos, "model": args.model, "img-size": args.img_size}
    command = [sys.executable, "-W", "ignore", "-m", "benchmarks.integer", f"--child={kind}", f"--program={program}"]
    command += [f"--{name}={value}" for name, value in given.items()]
    return float(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)


def child(args: argparse.Namespace) -> None:
    image = torch.zeros(1, 3, args.img_size, args.img_size, dtype=torch.uint8)
    if args.child == "float":
        model = load_model(args)
        model.vit(model.preprocessing.normalize(image))
    elif args.child == "program":
        Reference(vitquant.load_program(args.program))(image)
    else:
        from vitquant.adapters import adapt  # noqa: F401  (what the others import)
    print(peak_mib())


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--images", type=int, default=128, help="calibration images")
    parser.add_argument("--config", default="vit_int8.yaml")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--child", default="", help=argparse.SUPPRESS)
    parser.add_argument("--program", default="", help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.set_grad_enabled(False)
    warnings.simplefilter("ignore")
    if args.child:
        child(args)
        return
    model = load_model(args)
    calibration, evaluation = split(args.photos, model.preprocessing)
    qmodel = vitquant.quantize(
        model, args.config, calibration=load_crops(calibration, model.preprocessing, args.images)
    )
    pixels = load(evaluation, model.preprocessing)
    resources(qmodel, args).show(args.markdown)
    program = vitquant.compile(qmodel, name=args.model)
    accuracy(model, qmodel, program, pixels).show(args.markdown)
    speed(model, qmodel, program, pixels, args).show(args.markdown)


if __name__ == "__main__":
    main()
