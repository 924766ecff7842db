"""``vitquant quantize``: quantization of a model with the user's images."""

from __future__ import annotations

import argparse

from vitquant.cli.common import (
    add_checkpoint_options,
    add_command,
    add_config_option,
    add_job_options,
    add_labels_option,
    positive,
    preprocessing_options,
    print_model,
    print_result,
)
from vitquant.cli.quality import add_quality_options, require_answerable, require_quality

EPILOG = """example:
  vitquant quantize --model vit_small_patch14_dinov2 \\
      --weights dinov2.safetensors --img-size 224 --calib photos/ \\
      --eval photos2/ --config vit_int8.yaml --out out/"""


def add_to(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command to the parser."""
    parser = add_command(
        commands,
        "quantize",
        "quantize a model, report the SQNR of each point, and save the result",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--model", required=True, metavar="NAME", help="timm name of the model")
    parser.add_argument("--weights", required=True, metavar="FILE", help="local checkpoint: a file or a folder")
    parser.add_argument("--img-size", type=positive, metavar="PIXELS", help="input size (default: that of the model)")
    parser.add_argument("--calib", required=True, metavar="IMAGES", help="calibration images: a folder or .npz file")
    parser.add_argument("--calib-limit", type=positive, metavar="N", help="use at most N calibration images")
    parser.add_argument("--eval", required=True, metavar="IMAGES", help="evaluation images, with or without labels")
    add_config_option(parser)
    about = "output to measure: logits, class_token or tokens (default: logits)"
    parser.add_argument("--output", metavar="NAME", help=about)
    add_labels_option(parser)
    add_job_options(parser)
    add_checkpoint_options(parser)
    add_quality_options(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    """Load the model, run the job, print the result."""
    from vitquant.adapters.adapt import adapt
    from vitquant.arguments import require_path
    from vitquant.device import require_device
    from vitquant.workflows import job
    from vitquant.workflows.quantize import as_config

    require_device(args.device)
    job.require_results_folder(require_path(args.out, "--out"))
    config = as_config(args.config)
    model = adapt(
        args.model,
        weights=args.weights,
        weights_entry=args.weights_entry,
        img_size=args.img_size,
        preprocessing=preprocessing_options(args),
    )
    print_model(model)
    require_answerable(args, model, args.eval)
    result = job.run(
        model,
        config,
        calibration=args.calib,
        evaluation=args.eval,
        out=args.out,
        calibration_limit=args.calib_limit,
        profile_images=args.profile_images,
        exact=args.exact,
        batch_size=args.batch_size,
        seed=args.seed,
        device=args.device,
        strict=args.strict,
        ignore_labels=args.ignore_labels,
        output=args.output,
    )
    print_result(result, args.json)
    require_quality(result.evaluation, args)
