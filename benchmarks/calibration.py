"""What calibration costs beside the plain float forward over the same images.

Ours is the whole call ``vitquant.quantize``, from the float model to the quantized one, on images that are decoded
already; the float forward runs over the same images in the same batches. Every point of the model is observed (those of
vit_int8.yaml, and the probabilities too), and the weights, by the same observer in the same mode.
"""

from __future__ import annotations

import warnings

import torch
from torch import Tensor, nn

from benchmarks.model import add_clock, arguments, load_model
from benchmarks.photos import load_crops, split
from benchmarks.report import Report
from benchmarks.timing import CLOCKS, Work, ratio_to
from vitquant.adapters.adapt import FloatModel
from vitquant.data import ImagesLike, open_images
from vitquant.data.preprocessing import Preprocessing
from vitquant.numerics.pixels import normalize
from vitquant.workflows.quantize import quantize

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
            vit(normalize(batch.pixels, preprocessing.mean, preprocessing.std))

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


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--images", type=int, default=128)
    add_clock(parser, rounds=3)
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    model = load_model(args)
    files, _ = split(args.photos, model.preprocessing)
    pixels = load_crops(files, model.preprocessing, args.images)
    beside_float(model, pixels, args.rounds, args.clock, args.threads).show(args.markdown)


if __name__ == "__main__":
    main()
