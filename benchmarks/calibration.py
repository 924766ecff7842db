"""What calibration costs: beside the plain float forward, and per image beside ONNX Runtime and NNCF.

Ours is the whole call ``vitquant.quantize``, from the float model to the quantized one, on images that are decoded
already; the float forward runs over the same images in the same batches. Every point of the model is observed (those of
vit_int8.yaml, and the probabilities too) by the same observer in the same mode.

The peers get the exported float graph and the same images; what they need once per model (export, shape inference,
reading the file) is not counted against them. All three are timed on --images and on a quarter of them, so that the
time per image can be told from what does not depend on the number of images.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable
from pathlib import Path
from statistics import median

import torch
from torch import Tensor, nn

from benchmarks import peers
from benchmarks.model import FinalNorm, add_clock, arguments, load_model
from benchmarks.photos import load_crops, split
from benchmarks.report import Report
from benchmarks.timing import CLOCKS, Work, ratio_to, taking_turns
from vitquant.api import quantize
from vitquant.data import ImagesLike, open_images
from vitquant.data.preprocessing import Preprocessing
from vitquant.models.adapt import FloatModel

OBSERVERS = ("MinmaxObserver", "PercentileObserver", "KLObserver", "OmseObserver")
GOALS = {"MinmaxObserver": "1.3", "PercentileObserver": "1.6", "KLObserver": "1.6", "OmseObserver": "-"}
MODES = ("layer_wise", "channel_wise", "head_wise")
BATCH = 8


def config(observer: str, mode: str) -> dict[str, object]:
    """The points of vit_int8.yaml, all with one observer in one mode; weights have no heads, but rows."""
    weight_mode = "channel_wise" if mode == "head_wise" else mode
    point = {"observer_type": observer, "calibration_mode": mode, "bit_type": {"bits": 8, "signed": True}}
    off = {**point, "calibration_mode": weight_mode, "output_quant_enable": False}
    weight = {**point, "calibration_mode": weight_mode}
    probabilities = {**point, "bit_type": {"bits": 8, "signed": False}, "softmax": "uniform"}
    kinds = {"weight": weight, "outputs": off, "activation": point, "norm": point, "intsoft": probabilities}
    return {"defaults": kinds, "mlp_fc1": {"output": {**point, "output_quant_enable": True}}}


def calibration(model: FloatModel, images: ImagesLike, observer: str, mode: str) -> Work:
    return lambda: quantize(model, config(observer, mode), calibration=images, batch_size=BATCH)


def float_pass(vit: nn.Module, images: ImagesLike, preprocessing: Preprocessing) -> Work:
    @torch.no_grad()
    def run() -> None:
        for batch in open_images(images, preprocessing).batches(BATCH):
            vit(batch.images)

    return run


def beside_float(model: FloatModel, pixels: Tensor, rounds: int, clock: str, threads: int) -> Report:
    report = Report(
        f"Calibration on {len(pixels)} images, as a multiple of the float forward",
        ["observer", "mode", "times float", "goal", "s"],
    )
    base = float_pass(model.vit, pixels, model.preprocessing)
    for observer in OBSERVERS:
        for mode in MODES:
            ratio, taken = ratio_to(base, calibration(model, pixels, observer, mode), rounds, CLOCKS[clock])
            report.add(observer, mode, f"{ratio:.2f}", GOALS[observer], f"{taken:.1f}")
    report.notes.append(
        f"Batches of {BATCH}, {threads} threads, {clock} time; medians of {rounds} rounds, each between float passes."
    )
    return report


def beside_peers(model: FloatModel, pixels: Tensor, folder: Path, rounds: int, threads: int) -> Report:
    float_path, prepared = folder / "float.onnx", folder / "prepared.onnx"
    images = model.preprocessing.normalize(pixels)
    peers.export_onnx(FinalNorm(model.vit), images[:1], float_path)
    peers.prepare_ort(float_path, prepared)

    def ort(settings: peers.OrtSettings, batch_size: int) -> Callable[[int], Work]:
        path = folder / "quantized.onnx"
        return lambda count: lambda: peers.quantize_ort(prepared, path, images[:count], settings, batch_size)

    minmax, linears = peers.OrtSettings(), peers.OrtSettings(linears_only=True)
    tools: dict[str, Callable[[int], Work]] = {
        "vitquant, vit_int8.yaml": lambda n: (
            lambda: quantize(model, "vit_int8.yaml", calibration=pixels[:n], batch_size=BATCH)
        ),
        "vitquant, linears_int8.yaml": lambda n: (
            lambda: quantize(model, "linears_int8.yaml", calibration=pixels[:n], batch_size=BATCH)
        ),
        "ONNX Runtime, all ops, MinMax": ort(minmax, 1),
        f"ONNX Runtime, all ops, MinMax, batches of {BATCH}": ort(minmax, BATCH),
        "ONNX Runtime, linears, MinMax": ort(linears, 1),
        "NNCF, transformer preset": lambda n: lambda: peers.quantize_nncf(float_path, images[:n]),
    }
    count, few = len(images), len(images) // 4
    torch.set_num_threads(threads)
    whole = taking_turns({name: work(count) for name, work in tools.items()}, rounds)
    part = taking_turns({name: work(few) for name, work in tools.items()}, rounds)
    report = Report(
        f"Post-training quantization on {count} images, seconds per image",
        ["tool", "whole, s", "s per image", "ours is faster by", "s per further image", "ours is faster by"],
        peers.PACKAGES,
    )
    ours = next(iter(tools))
    total = {name: median(times) for name, times in whole.items()}
    marginal = {name: (total[name] - median(part[name])) / (count - few) for name in tools}
    for name in tools:
        by_total = median(theirs / mine for theirs, mine in zip(whole[name], whole[ours], strict=True))
        report.add(
            name,
            f"{total[name]:.1f}",
            f"{total[name] / count:.3f}",
            f"{by_total:.1f}x",
            f"{marginal[name]:.3f}",
            f"{marginal[name] / marginal[ours]:.1f}x",
        )
    report.notes.append(f"{threads} threads; medians of {rounds} rounds in which the tools take turns. Goal: 5x.")
    return report


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--images", type=int, default=128)
    add_clock(parser, rounds=3)
    parser.add_argument("--part", choices=("float", "peers", "both"), default="both")
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    logging.getLogger().setLevel(logging.ERROR)
    model = load_model(args)
    files, _ = split(args.photos, model.preprocessing)
    pixels = load_crops(files, model.preprocessing, args.images)
    if args.part != "peers":
        beside_float(model, pixels, args.rounds, args.clock, args.threads).show(args.markdown)
    if args.part != "float":
        with peers.scratch() as folder:
            beside_peers(model, pixels, Path(folder), args.rounds, args.threads).show(args.markdown)


if __name__ == "__main__":
    main()
