"""SQNR of the shipped recipes on photographs of other sources than those of the calibration, by the integer program.

Each recipe is calibrated on photographs of some folders and evaluated on all of others, several times: each *draw*
leaves out another part of the calibration photographs, and cuts other crops. SQNR is that of all tokens after the final
norm: over all evaluation photographs, and the median and the smallest over single ones. The rows give the median of the
draws, and the range of the first figure.
"""

from __future__ import annotations

import statistics
import time
import warnings
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

import vitquant
from benchmarks.model import FinalNorm, arguments, load_model
from benchmarks.photos import load, load_crops
from benchmarks.report import Report
from vitquant.adapters.adapt import sqnr_db
from vitquant.config import recipe_file, recipe_names
from vitquant.data import open_images
from vitquant.data.folder import FolderSource
from vitquant.data.preprocessing import Preprocessing
from vitquant.executors.choose import open_executor
from vitquant.program.program import IntegerProgram
from vitquant.program.storage import encode_program
from vitquant.workflows.record import float_bytes

BATCH = 16


def main() -> None:
    parser = arguments(__doc__, photos=False)
    parser.add_argument("--weights", type=Path, required=True, help="checkpoint of the model")
    parser.add_argument("--model", default="vit_small_patch14_dinov2", help="name of the model")
    parser.add_argument("--img-size", type=int, default=224, help="input size in pixels")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="of torch and of the executor")
    parser.add_argument("--calibration", type=Path, nargs="+", required=True, help="folders of photographs")
    parser.add_argument("--evaluation", type=Path, nargs="+", required=True, help="folders of other photographs")
    parser.add_argument("--images", type=int, default=64, help="calibration images: photographs and crops of them")
    parser.add_argument("--draws", type=int, default=3, help="calibrations of each configuration")
    about = "recipes, or names of configurations (default: vit_int8.yaml and all recipes)"
    parser.add_argument("configs", nargs="*", help=about)
    args = parser.parse_args()
    torch.set_grad_enabled(False)
    warnings.simplefilter("ignore")
    model = load_model(args)
    calibration, evaluation = (photographs(f, model.preprocessing) for f in (args.calibration, args.evaluation))
    pixels = load(evaluation, model.preprocessing)
    final_norm = FinalNorm(model.vit)
    reference = torch.cat([final_norm(batch) for batch in model.preprocessing.normalize(pixels).split(BATCH)])

    columns = ["configuration", "all", "range", "median", "smallest", "program", "seconds"]
    report = Report(f"SQNR at the final norm, {args.model} at {args.img_size}, dB", columns)
    report.notes.append(
        f"{args.draws} draws of {args.images} calibration images from {len(calibration)} photographs "
        f"({names(args.calibration)}); {len(evaluation)} evaluation photographs ({names(args.evaluation)})."
    )
    for name in args.configs or ["vit_int8.yaml", *recipe_names()]:
        config = recipe_file(name) if name in recipe_names() else name
        found, seconds, size = [], [], 0
        for draw in range(args.draws):
            kept = [path for i, path in enumerate(calibration) if args.draws == 1 or i % (args.draws + 1) != draw]
            images = load_crops(kept, model.preprocessing, args.images, draw)
            start = time.perf_counter()
            program = vitquant.compile(vitquant.quantize(model, config, calibration=images, batch_size=BATCH))
            seconds.append(time.perf_counter() - start)
            size = sum(map(len, encode_program(program)))
            found.append(figures(reference, tokens(program, pixels, args.threads)))
        everything, median, smallest = (statistics.median(column) for column in zip(*found, strict=True))
        totals = [all_images for all_images, _, _ in found]
        share = f"{100 * size / float_bytes(model):.1f} %"
        spread = f"{min(totals):.2f} to {max(totals):.2f}"
        figs = [f"{value:.2f}" for value in (everything, median, smallest)]
        report.add(name, figs[0], spread, *figs[1:], share, f"{statistics.median(seconds):.0f}")
    report.show(args.markdown)


def photographs(folders: Sequence[Path], preprocessing: Preprocessing) -> list[Path]:
    """The image files of the folders."""
    found: list[Path] = []
    for folder in folders:
        source = open_images(folder, preprocessing, ignore_labels=True)
        if not isinstance(source, FolderSource):
            raise SystemExit(f"{folder}: not a folder of photographs")
        found.extend(source.files)
    return found


def names(folders: Sequence[Path]) -> str:
    return ", ".join(folder.name for folder in folders)


def tokens(program: IntegerProgram, pixels: Tensor, threads: int) -> Tensor:
    """All tokens after the final norm as the integer program gives them, ``[N, tokens, D]``."""
    execute = open_executor(program, threads=threads, outputs=["class_token", "tokens"]).all
    parts = []
    for batch in pixels.split(BATCH):
        found = {name: output.real() for name, output in execute(batch).items()}
        parts.append(torch.cat([found["class_token"][:, None], found["tokens"]], 1))
    return torch.cat(parts)


def figures(reference: Tensor, output: Tensor) -> tuple[float, float, float]:
    """SQNR over all images, and the median and the smallest over single images."""
    single = [sqnr_db(a, b) for a, b in zip(reference, output, strict=True)]
    return sqnr_db(reference, output), statistics.median(single), min(single)


if __name__ == "__main__":
    main()
