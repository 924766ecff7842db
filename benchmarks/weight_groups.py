"""What weight groups gain and cost: SQNR on images that no calibration has seen, and bytes of the files.

The photos of one folder are split by name into calibration (even places) and evaluation (odd places). SQNR is that of
all tokens after the final norm: over all images, and the median and the smallest over single images. The weights of the
patch embedding have 8 bits. Sizes are those of the tensor file of the saved model and of both files of the integer
program, as shares of the float checkpoint.
"""

from __future__ import annotations

import warnings
from typing import Any

import torch

import vitquant
from benchmarks.model import arguments, load_model
from benchmarks.photos import load, load_crops, split
from benchmarks.repair import figures_of
from benchmarks.report import Report
from vitquant.artifact.storage import TENSORS, encode_model
from vitquant.program.storage import encode_program


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--config", default="vit_int8.yaml", help="configuration of the other points")
    parser.add_argument("--images", type=int, default=16, help="calibration images: photos, then crops of them")
    parser.add_argument("--bits", type=int, nargs="+", default=[4, 3], help="widths of the weights")
    parser.add_argument("--groups", type=int, nargs="+", default=[0, 64, 32], help="group sizes; 0: none")
    args = parser.parse_args()
    torch.set_grad_enabled(False)
    warnings.simplefilter("ignore")
    model = load_model(args)
    calibration_files, evaluation_files = split(args.photos, model.preprocessing)
    photos = load_crops(calibration_files, model.preprocessing, args.images)
    others = load(evaluation_files, model.preprocessing)
    checkpoint = args.weights.stat().st_size

    columns = ["weights", "groups of", "repair", "all images", "median", "smallest", "saved model", "program"]
    report = Report(f"SQNR at the final norm with weight groups, {args.config}, dB", columns)
    report.notes.append(
        f"{args.model} at {args.img_size}: {len(photos)} images for calibration, {len(others)} others for evaluation. "
        f"The checkpoint has {checkpoint / 1e6:.1f} MB."
    )
    for bits in args.bits:
        for group in args.groups:
            for steps in ([], ["gptq"]):
                config = {**vitquant.load_config_from_yaml(args.config), **weights(bits, group), "repair": steps}
                quantized = vitquant.quantize(model, config, calibration=photos)
                files = [
                    len(encode_model(quantized)[TENSORS]),
                    sum(map(len, encode_program(vitquant.compile(quantized)))),
                ]
                shares = [f"{size / checkpoint:.1%}" for size in files]
                name = ", ".join(steps) or "none"
                report.add(f"{bits} bits", str(group), name, *figures_of(model, quantized, others), *shares)
    report.show(args.markdown)


def weights(bits: int, group: int) -> dict[str, Any]:
    """Overrides for weights of this width in groups; those of the patch embedding keep 8 bits."""
    return {
        "overrides": {
            "*.weight": {"bit_type": {"bits": bits}, "weight_groups": group},
            "patch_embed.weight": {"bit_type": {"bits": 8}, "weight_groups": 0},
        }
    }


if __name__ == "__main__":
    main()
