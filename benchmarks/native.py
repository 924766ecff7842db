"""The native executor beside float PyTorch and the int8 of other runtimes, for several models and batches.

Times are of one process, in turns. The model that --model names has its weights; of the architectures only the shapes
matter, and their weights are random.
"""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median
from typing import TypeAlias

import torch
from torch import Tensor

import vitquant
from benchmarks import peers
from benchmarks.model import arguments, load_model
from benchmarks.photos import load_crops, split
from benchmarks.report import Report
from benchmarks.timing import taking_turns
from vitquant.adapters.adapt import FloatModel
from vitquant.adapters.names import lookup
from vitquant.architectures.float_vit import VisionTransformer
from vitquant.executors.choose import open_executor

Run: TypeAlias = Callable[[Tensor], object]
FLOAT = "PyTorch, float, eager"
FLOATS = (FLOAT, "ONNX Runtime, float")


def contenders(model: FloatModel, calibration: Tensor, folder: Path, threads: int) -> dict[str, Run]:
    """What runs pixels ``uint8 [B, C, h, w]``: float PyTorch first, ours last."""
    normalize = model.preprocessing.normalize
    program = vitquant.compile(vitquant.quantize(model, "vit_int8.yaml", calibration=calibration))
    native = open_executor(program, "native", threads=threads)
    theirs = peers.runnable(model.vit, normalize(calibration), folder, threads)

    def normalized(run: peers.Features) -> Run:
        return lambda x: run(normalize(x))

    return {
        FLOAT: normalized(model.vit),
        **{name: normalized(run) for name, run in theirs.items()},
        native.name: native,
    }


def compare(model: FloatModel, calibration: Tensor, args: argparse.Namespace) -> Report:
    report = Report(
        f"Native executor, {model.name} at {calibration.shape[-1]}",
        [
            "executor",
            *(f"ms per image, batch {b}" for b in args.batches),
            *(f"of ours, batch {b}" for b in args.batches),
        ],
        peers.PACKAGES,
    )
    with peers.scratch() as folder:
        works = contenders(model, calibration, Path(folder), args.threads)
        times = {}
        for batch in args.batches:
            pixels = calibration.repeat(-(-batch // len(calibration)), 1, 1, 1)[:batch]
            calls = {name: partial(run, pixels) for name, run in works.items()}
            taking_turns(calls, 1)
            times[batch] = taking_turns(calls, args.rounds)
    ours = list(works)[-1]
    ratios = {
        name: [median(x / y for x, y in zip(times[b][name], times[b][ours], strict=True)) for b in args.batches]
        for name in works
    }
    for name in works:
        ms = [f"{median(times[b][name]) * 1e3 / b:.1f}" for b in args.batches]
        report.add(name, *ms, *(f"{ratio:.2f}" for ratio in ratios[name]))
    best = [min(column) for column in zip(*(r for n, r in ratios.items() if n not in (*FLOATS, ours)), strict=True)]
    report.notes.append(f"{args.threads} threads; medians of {args.rounds} rounds in turns.")
    report.notes.append(f"The best int8 of the others takes {told(best)} times ours (goal 1.8 at batch 1 and 8).")
    report.notes.append(f"Float PyTorch takes {told(ratios[FLOAT])} times ours (goal 7).")
    return report


def told(ratios: list[float]) -> str:
    return ", ".join(f"{ratio:.2f}" for ratio in ratios)


def shaped(name: str) -> FloatModel:
    """An architecture with random weights."""
    torch.manual_seed(0)
    found = lookup(name)
    return FloatModel(name, VisionTransformer(found.spec).eval(), found.preprocessing)


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--images", type=int, default=16, help="calibration images")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--shapes", nargs="*", default=["vit_tiny_patch16_224", "vit_base_patch16_224"])
    parser.add_argument("--rounds", type=int, default=7)
    args = parser.parse_args()
    torch.set_grad_enabled(False)
    warnings.simplefilter("ignore")
    model = load_model(args)
    files, _ = split(args.photos, model.preprocessing)
    compare(model, load_crops(files, model.preprocessing, args.images), args).show(args.markdown)
    for name in args.shapes:
        model = shaped(name)
        compare(model, load_crops(files, model.preprocessing, args.images), args).show(args.markdown)


if __name__ == "__main__":
    main()
