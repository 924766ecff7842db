"""What repair steps gain: SQNR with and without them, on images that no calibration has seen.

Of a configuration with repair steps: none of them, each alone, and the first ones in order. Of one without: GPTQ and
bias correction.

Photos: the files of one folder are split by name into calibration (even places) and evaluation (odd places). The
embedded model is calibrated on its calibration images and evaluated on its test images. SQNR is that of all tokens
after the final norm: over all images, and the median and the smallest over single images.
"""

from __future__ import annotations

import warnings
from typing import TypeAlias

import torch
from torch import Tensor

import vitquant
from benchmarks.model import FinalNorm, arguments, load_model
from benchmarks.photos import load, load_crops, split
from benchmarks.report import Report
from vitquant.adapters.adapt import FloatModel, sqnr_db
from vitquant.architectures.model import QuantModel
from vitquant.config import StepSettings
from vitquant.config.repair import BiasCorrectionSettings, GptqSettings

Figures: TypeAlias = tuple[str, ...]


def variants(config: vitquant.ModelConfig) -> dict[str, list[StepSettings]]:
    """The lists of steps to compare, by what the table calls them."""
    own: list[StepSettings] = list(config.document.repair)
    if not own:
        own = [GptqSettings(), BiasCorrectionSettings()]
    alone: dict[str, list[StepSettings]] = {step.name: [step] for step in own}
    in_order = {f"up to {step.name}": own[: i + 1] for i, step in enumerate(own) if i}
    return {"none": [], **alone, **in_order}


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--config", default="vit_int8.yaml", help="configuration of the points")
    parser.add_argument("--images", type=int, default=16, help="calibration images: photos, then crops of them")
    parser.add_argument("--bits", type=int, help="other width of the weights")
    args = parser.parse_args()
    torch.set_grad_enabled(False)
    warnings.simplefilter("ignore")
    model = load_model(args)
    calibration_files, evaluation_files = split(args.photos, model.preprocessing)
    photos = load_crops(calibration_files, model.preprocessing, args.images)
    others = load(evaluation_files, model.preprocessing)
    embedded = vitquant.load_fashion()
    calibration, _, test, labels = vitquant.load_fashion_images()

    columns = ["model", "repair", "all images", "median", "smallest", "top-1"]
    report = Report(f"SQNR at the final norm with repair steps, {args.config}, dB", columns)
    report.notes.append(
        f"{args.model} at {args.img_size}: {len(photos)} images for calibration, {len(others)} others for evaluation. "
        f"Embedded model: {len(calibration)} and {len(test)} images."
    )
    for name, steps in variants(vitquant.ModelConfig.from_yaml(args.config)).items():
        config = vitquant.load_config_from_yaml(args.config) | {"repair": steps}
        if args.bits is not None:
            config["overrides"] = {"*.weight": {"bit_type": {"bits": args.bits}}}
        report.add(args.model, name, *figures(model, config, photos, others, None))
        report.add("embedded", name, *figures(embedded, config, calibration[:, None], test[:, None], labels))
    report.show(args.markdown)


def figures(
    model: FloatModel, config: dict[str, object], calibration: Tensor, evaluation: Tensor, labels: Tensor | None
) -> Figures:
    """SQNR over all images, its median and minimum over single images, and top-1 where there are labels."""
    quantized = vitquant.quantize(model, config, calibration=calibration)
    found = figures_of(model, quantized, evaluation)
    if labels is None:
        return (*found, "")
    top1 = vitquant.evaluate(quantized, (evaluation, labels), batch_size=100).quantized_top1
    return (*found, f"{top1:.2f} %")


def figures_of(model: FloatModel, quantized: QuantModel, evaluation: Tensor) -> Figures:
    """SQNR over all images, and its median and minimum over single images."""
    images = model.preprocessing.normalize(evaluation)
    reference = torch.cat([FinalNorm(model.vit)(batch) for batch in images.split(50)])
    output = torch.cat([quantized.forward_features(batch) for batch in images.split(50)])
    single = torch.tensor([sqnr_db(r, o) for r, o in zip(reference, output, strict=True)])
    return tuple(f"{db:.2f}" for db in (sqnr_db(reference, output), float(single.median()), float(single.min())))


if __name__ == "__main__":
    main()
