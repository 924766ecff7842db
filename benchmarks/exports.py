"""Exported graphs beside those that ONNX Runtime's and NNCF's own quantizers make of the same float model and images.

SQNR is that of the output against the float model, over the evaluation photos. Times are of one process, in turns.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median
from typing import TypeAlias

import torch
from torch import Tensor, nn

import vitquant
from benchmarks import peers
from benchmarks.model import arguments, load_model
from benchmarks.photos import load, load_crops, split
from benchmarks.report import Report
from benchmarks.timing import taking_turns
from vitquant.adapters.adapt import FloatModel, sqnr_db
from vitquant.executors.choose import Executor, open_executor
from vitquant.export.onnx.integer import export_integer
from vitquant.export.onnx.qdq import export_qdq
from vitquant.export.onnx.runtime import SESSIONS

Pooled: TypeAlias = Callable[[Tensor], Tensor]
"""Pixels ``uint8 [B, C, h, w]`` to the model's output ``[B, K]``."""

BATCHES = (1, 8)


def graphs(model: FloatModel, calibration: Tensor, folder: Path, threads: int) -> dict[str, Pooled]:
    normalize = model.preprocessing.normalize

    def through(features: peers.Features) -> Pooled:
        return lambda pixels: features(normalize(pixels))

    def session(blob: bytes, runtime: str) -> Pooled:
        run = SESSIONS[runtime](blob, threads=threads)
        return lambda pixels: torch.from_numpy(run(normalize(pixels).numpy()))

    def real(execute: Executor) -> Pooled:
        return lambda pixels: execute(pixels).real()

    qmodel = vitquant.quantize(model, "vit_int8.yaml", calibration=calibration)
    program = vitquant.compile(qmodel)
    logits = program.values()[program.outputs[0].value]
    scale = torch.from_numpy(logits.spread(logits.scale).copy())
    integer = SESSIONS["onnxruntime"](export_integer(program).SerializeToString(), threads=threads)
    theirs = peers.runnable(model.vit, normalize(calibration), folder, threads)
    ours = {name: export_qdq(qmodel, target=name).SerializeToString() for name in ("onnxruntime", "openvino")}
    return {
        "PyTorch, float": through(eager(model.vit)),
        **{name: through(run) for name, run in theirs.items()},
        "ONNX Runtime, our QDQ": session(ours["onnxruntime"], "onnxruntime"),
        "OpenVINO, our QDQ": session(ours["openvino"], "openvino"),
        "ONNX Runtime, our integer graph": lambda pixels: torch.from_numpy(integer(pixels.numpy())) * scale,
        "vitquant, simulated": through(qmodel),
        **{f"vitquant, {e.name}": real(e) for e in executors(program, threads)},
    }


def executors(program: vitquant.IntegerProgram, threads: int) -> list[Executor]:
    """The reference executor, and the native one if it is installed."""
    found = {e.name: e for e in (open_executor(program, "reference"), open_executor(program, threads=threads))}
    return list(found.values())


def eager(module: nn.Module) -> peers.Features:
    return lambda images: module(images)


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--images", type=int, default=128, help="calibration images")
    parser.add_argument("--rounds", type=int, default=7)
    args = parser.parse_args()
    torch.set_grad_enabled(False)
    warnings.simplefilter("ignore")
    model = load_model(args)
    calibration_files, evaluation_files = split(args.photos, model.preprocessing)
    calibration = load_crops(calibration_files, model.preprocessing, args.images)
    pixels = load(evaluation_files, model.preprocessing)
    report = Report(
        f"Exported graphs, {args.model} at {args.img_size}",
        [
            "graph",
            "SQNR, dB",
            *(f"ms per image, batch {b}" for b in BATCHES),
            *(f"of float PyTorch, batch {b}" for b in BATCHES),
        ],
        peers.PACKAGES,
    )
    with peers.scratch() as folder:
        works = graphs(model, calibration, Path(folder), args.threads)
        exact = model.vit(model.preprocessing.normalize(pixels))
        sqnr = {name: sqnr_db(exact, torch.cat([f(b) for b in pixels.split(8)])) for name, f in works.items()}
        times = {b: taking_turns({n: partial(f, pixels[:b]) for n, f in works.items()}, args.rounds) for b in BATCHES}
    base = next(iter(works))
    for name in works:
        ms = [f"{median(times[b][name]) * 1e3 / b:.1f}" for b in BATCHES]
        ratios = [median(x / y for x, y in zip(times[b][name], times[b][base], strict=True)) for b in BATCHES]
        told = "-" if sqnr[name] > 100 else f"{sqnr[name]:.2f}"
        report.add(name, told, *ms, *(f"{r:.2f}" for r in ratios))
    report.notes.append(f"{args.threads} threads; medians of {args.rounds} rounds in turns; {len(pixels)} photos.")
    report.show(args.markdown)


if __name__ == "__main__":
    main()
