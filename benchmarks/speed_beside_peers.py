"""Seconds per image of a whole post-training quantization: ours beside ONNX Runtime and NNCF, on the same images.

The images are decoded already. The peers get the exported float graph; what they need once per model (export, shape
inference, graph optimisation) is told beside the table and not counted against them, while ours counts everything from
the float model on. All are timed on a quarter of the images too, so that the cost of a further one can be told from the
rest. ONNX Runtime's searches for a clipping range keep every activation in memory: they get --few images, and stand
beside ours by the same method.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from statistics import median
from typing import TypeAlias

from onnxruntime.quantization import CalibrationMethod, QuantType
from torch import Tensor

from benchmarks import peers
from benchmarks.calibration import config as calibration_config
from benchmarks.model import FinalNorm, arguments, load_model
from benchmarks.photos import load_crops, split
from benchmarks.report import Report
from benchmarks.timing import Work, seconds, taking_turns
from vitquant.adapters.adapt import FloatModel
from vitquant.workflows.quantize import quantize

BATCH = 8
CLIPPING = (("PercentileObserver", CalibrationMethod.Percentile), ("KLObserver", CalibrationMethod.Entropy))
Tool: TypeAlias = Callable[[int], Work]
"""Quantizes with the first so many images."""


class Contest:
    """The tools, ready to quantize the first so many images."""

    def __init__(self, model: FloatModel, pixels: Tensor, folder: Path) -> None:
        self.model = model
        self.pixels, self.images = pixels, model.preprocessing.normalize(pixels)
        self.float_path, self.prepared = folder / "float.onnx", folder / "prepared.onnx"
        self.quantized = folder / "quantized.onnx"
        once = FinalNorm(model.vit), self.images[:1], self.float_path
        self.export_seconds = seconds(lambda: peers.export_onnx(*once))
        self.prepare_seconds = seconds(lambda: peers.prepare_ort(self.float_path, self.prepared))

    def ours(self, config: str | Mapping[str, object]) -> Tool:
        return lambda count: lambda: quantize(self.model, config, calibration=self.pixels[:count], batch_size=BATCH)

    def ort(self, settings: peers.OrtSettings, batch_size: int = 1) -> Tool:
        paths = self.prepared, self.quantized
        return lambda count: lambda: peers.quantize_ort(*paths, self.images[:count], settings, batch_size)

    def nncf(self, count: int) -> Work:
        return lambda: peers.quantize_nncf(self.float_path, self.images[:count])

    def defaults(self) -> dict[str, Tool]:
        """The settings each tool ships."""
        minmax, linears = peers.OrtSettings(), peers.OrtSettings(linears_only=True)
        return {
            "vitquant, vit_int8.yaml": self.ours("vit_int8.yaml"),
            "vitquant, linears_int8.yaml": self.ours("linears_int8.yaml"),
            "ONNX Runtime, all ops, MinMax": self.ort(minmax),
            f"ONNX Runtime, all ops, MinMax, batches of {BATCH}": self.ort(minmax, BATCH),
            "ONNX Runtime, linears, MinMax": self.ort(linears),
            "NNCF, transformer preset": self.nncf,
        }

    def clipping(self, observer: str, method: CalibrationMethod) -> dict[str, Tool]:
        """One search for a clipping range: every point of ours, the linear layers of ONNX Runtime."""
        settings = peers.OrtSettings(method, QuantType.QUInt8, linears_only=True)
        return {
            f"vitquant, every point, {observer}": self.ours(calibration_config(observer, "layer_wise")),
            f"ONNX Runtime, linears, {method.name}": self.ort(settings),
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
    parser.add_argument("--few", type=int, default=16, help="images for ONNX Runtime's searches (default: 16)")
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    model = load_model(args)
    files, _ = split(args.photos, model.preprocessing)
    pixels = load_crops(files, model.preprocessing, args.images)
    with peers.scratch() as folder:
        contest = Contest(model, pixels, Path(folder))
        report = compare(contest.defaults(), args.images, args.rounds, args.threads)
        export, prepare = contest.export_seconds, contest.prepare_seconds
        report.notes.append(f"Once per model: ONNX export {export:.1f} s, ONNX Runtime's preparation {prepare:.1f} s.")
        report.show(args.markdown)
        for observer, method in CLIPPING:
            compare(contest.clipping(observer, method), args.few, args.rounds, args.threads).show(args.markdown)


if __name__ == "__main__":
    main()
