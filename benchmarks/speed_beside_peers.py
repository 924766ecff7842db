"""Seconds per image of a whole post-training quantization: ours beside ONNX Runtime and NNCF, on the same images.

The images are decoded already. The peers get the exported float graph; what they need once per model (export, shape
inference, graph optimisation) is not counted against them, while ours counts everything from the float model on. All
are timed on --images and on a quarter of them, so that the cost of a further image can be told from the rest.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import TypeAlias

from torch import Tensor

from benchmarks import peers
from benchmarks.model import FinalNorm, arguments, load_model
from benchmarks.photos import load_crops, split
from benchmarks.report import Report
from benchmarks.timing import Work, taking_turns
from vitquant.api import quantize
from vitquant.models.adapt import FloatModel

BATCH = 8
Tool: TypeAlias = Callable[[int], Work]
"""Quantizes with the first so many images."""


def tools_of(model: FloatModel, pixels: Tensor, folder: Path) -> dict[str, Tool]:
    float_path, prepared = folder / "float.onnx", folder / "prepared.onnx"
    images = model.preprocessing.normalize(pixels)
    peers.export_onnx(FinalNorm(model.vit), images[:1], float_path)
    peers.prepare_ort(float_path, prepared)

    def ours(config: str) -> Tool:
        return lambda count: lambda: quantize(model, config, calibration=pixels[:count], batch_size=BATCH)

    def ort(settings: peers.OrtSettings, batch_size: int) -> Tool:
        path = folder / "quantized.onnx"
        return lambda count: lambda: peers.quantize_ort(prepared, path, images[:count], settings, batch_size)

    minmax, linears = peers.OrtSettings(), peers.OrtSettings(linears_only=True)
    return {
        "vitquant, vit_int8.yaml": ours("vit_int8.yaml"),
        "vitquant, linears_int8.yaml": ours("linears_int8.yaml"),
        "ONNX Runtime, all ops, MinMax": ort(minmax, 1),
        f"ONNX Runtime, all ops, MinMax, batches of {BATCH}": ort(minmax, BATCH),
        "ONNX Runtime, linears, MinMax": ort(linears, 1),
        "NNCF, transformer preset": lambda count: lambda: peers.quantize_nncf(float_path, images[:count]),
    }


def compare(tools: dict[str, Tool], count: int, rounds: int, threads: int) -> Report:
    few = count // 4
    whole = taking_turns({name: tool(count) for name, tool in tools.items()}, rounds)
    part = taking_turns({name: tool(few) for name, tool in tools.items()}, rounds)
    further = {name: (median(whole[name]) - median(part[name])) / (count - few) for name in tools}
    report = Report(
        f"Post-training quantization on {count} images",
        ["tool", "s", "s per image", "of ours", "s per further image", "of ours"],
        peers.PACKAGES,
    )
    ours = next(iter(tools))
    for name, times in whole.items():
        ratio = median(theirs / mine for theirs, mine in zip(times, whole[ours], strict=True))
        total = median(times)
        row = f"{total:.1f}", f"{total / count:.3f}", f"{ratio:.1f}x"
        report.add(name, *row, f"{further[name]:.3f}", f"{further[name] / further[ours]:.1f}x")
    report.notes.append(
        f"{threads} threads; medians of {rounds} rounds in which the tools take turns. Goal: 5x for the peers."
    )
    return report


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--images", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    model = load_model(args)
    files, _ = split(args.photos, model.preprocessing)
    pixels = load_crops(files, model.preprocessing, args.images)
    with peers.scratch() as folder:
        tools = tools_of(model, pixels, Path(folder))
        compare(tools, args.images, args.rounds, args.threads).show(args.markdown)


if __name__ == "__main__":
    main()
