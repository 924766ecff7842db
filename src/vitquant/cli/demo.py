"""``vitquant demo``: quantization of the embedded model on the embedded images."""

from __future__ import annotations

import argparse

from vitquant.cli.common import add_command, add_config_option, add_job_options, print_model, print_result
from vitquant.cli.quality import add_quality_options, require_quality


def add_to(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command to the parser."""
    parser = add_command(commands, "demo", "quantize the embedded ViT on real images; no download needed")
    add_config_option(parser)
    add_job_options(parser, batch_size=100)
    add_quality_options(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    """Run the job on the embedded Fashion-MNIST model, with 512 calibration and 2,000 evaluation images."""
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
        exact=args.exact,
        batch_size=args.batch_size,
        seed=args.seed,
        device=args.device,
        strict=args.strict,
    )
    print_result(result, args.json)
    require_quality(result.evaluation, args)
