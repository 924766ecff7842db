"""What a profile of all points costs: in float forwards over the same images, for each ten points."""

from __future__ import annotations

import warnings

from benchmarks.calibration import float_pass
from benchmarks.model import add_clock, arguments, load_model
from benchmarks.photos import load, split
from benchmarks.report import Report
from benchmarks.timing import CLOCKS, ratio_to
from vitquant.data import open_images
from vitquant.measure import profile
from vitquant.workflows.quantize import quantize

BATCH = 8


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--images", type=int, default=16)
    add_clock(parser, rounds=3)
    parser.add_argument("--config", default="vit_int8.yaml")
    parser.add_argument("--exact", action="store_true", help="no estimates")
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    model = load_model(args)
    calibration_files, evaluation_files = split(args.photos, model.preprocessing)
    qmodel = quantize(model, args.config, calibration=load(calibration_files, model.preprocessing))
    pixels = load(evaluation_files[: args.images], model.preprocessing)
    source = open_images(pixels, model.preprocessing)
    points = len(qmodel.points())
    base = float_pass(model.vit, pixels, model.preprocessing)
    ratio, taken = ratio_to(
        base, lambda: profile(qmodel, source, batch_size=BATCH, exact=args.exact), args.rounds, CLOCKS[args.clock]
    )
    report = Report(
        f"{'Exact profile' if args.exact else 'Profile'} of all points, {args.config}, {len(pixels)} images",
        ["points", "s", "float forwards", "float forwards for each ten points", "goal"],
    )
    report.add(str(points), f"{taken:.1f}", f"{ratio:.1f}", f"{10 * ratio / points:.2f}", "20")
    report.notes.append(
        f"{args.threads} threads, {args.clock} time; medians of {args.rounds} rounds, each between two float passes."
    )
    report.show(args.markdown)


if __name__ == "__main__":
    main()
