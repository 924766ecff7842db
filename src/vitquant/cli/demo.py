"""``vitquant demo``: the main job on the embedded model and images."""

from __future__ import annotations

import argparse

from vitquant.cli.common import add_job_options, print_model, print_result
from vitquant.cli.quality import add_quality_options, require_quality


def add_to(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command to the parser."""
    parser = commands.add_parser("demo", help="quantize the embedded ViT on real images; needs no download")
    parser.add_argument("--config", default="vit_int8.yaml", metavar="FILE", help="YAML file, or a shipped one's name")
    add_job_options(parser, batch_size=100)
    add_quality_options(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    """Run the job on the embedded Fashion-MNIST model, calibrating on 512 images, measuring on 2,000 others."""
    from vitquant.adapters.fashion import load_fashion, load_fashion_images
    from vitquant.device import require_device
    from vitquant.workflows import job
    from vitquant.workflows.quantize import as_config

    require_device(args.device)
    config = as_config(args.config)
    model = load_fashion()
    calibration, _, test, labels = load_fashion_images()
    print_model(model)
    result = job.run(
        model,
        config,
        calibration=calibration,
        evaluation=(test, labels),
        out=args.out,
        profile_images=args.profile_images,
        batch_size=args.batch_size,
        seed=args.seed,
        device=args.device,
        strict=args.strict,
    )
    print_result(result, args.json)
    require_quality(result.evaluation, args)
