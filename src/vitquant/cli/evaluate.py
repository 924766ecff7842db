"""``vitquant evaluate``: float, simulated and integer model side by side."""

from __future__ import annotations

import argparse
from dataclasses import asdict

from vitquant.cli.common import (
    COMPARED,
    add_device_option,
    add_executor_option,
    add_labels_option,
    add_output_options,
    comparison_rows,
    labels_option,
    positive,
    print_json,
    print_model,
    print_table,
)
from vitquant.cli.quality import add_quality_options, require_answerable, require_quality
from vitquant.cli.streams import say

EPILOG = """examples:
  vitquant evaluate out --model vit_small_patch14_dinov2 --weights dinov2.safetensors --img-size 224 --eval photos2/
  vitquant evaluate out --model fashion_vit     # what `vitquant demo` wrote"""


def add_to(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command to the parser."""
    parser = commands.add_parser(
        "evaluate",
        help="measure float, simulated and integer model side by side, and find where they part",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("folder", metavar="DIR", help="what `vitquant quantize` wrote: model and integer program")
    parser.add_argument("--model", required=True, metavar="NAME", help="the float model's name (fashion_vit: embedded)")
    parser.add_argument("--weights", metavar="FILE", help="its checkpoint")
    parser.add_argument("--img-size", type=positive, metavar="PIXELS", help="input size (default: the model's own)")
    parser.add_argument("--eval", metavar="IMAGES", help="folder or .npz of images (default: the embedded ones)")
    parser.add_argument("--limit", type=positive, metavar="N", help="at most so many images")
    parser.add_argument("--batch-size", type=positive, default=8, metavar="N", help="images at a time (8)")
    add_labels_option(parser)
    add_device_option(parser)
    add_executor_option(parser)
    add_output_options(parser)
    add_quality_options(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    """Print the comparison; fail if program and simulation disagree."""
    from vitquant.device import require_device
    from vitquant.integer.compare import compare
    from vitquant.models.adapt import adapt
    from vitquant.models.fashion import FASHION, load_fashion, load_fashion_images

    require_device(args.device)
    embedded = args.model == FASHION and args.weights is None
    model = load_fashion() if embedded else adapt(args.model, weights=args.weights, img_size=args.img_size)
    images = args.eval
    if images is None:
        images = load_fashion_images()[2:] if embedded else missing_images()
    print_model(model)
    require_answerable(args, model, images)
    found = compare(
        args.folder,
        model,
        images,
        limit=args.limit,
        batch_size=args.batch_size,
        device=args.device,
        kind=args.executor,
        **labels_option(args),
    )
    if args.json:
        print_json(asdict(found))
    else:
        title = f"{args.folder} on {found.evaluation.images} images"
        print_table(title, COMPARED, comparison_rows(found.evaluation))
        say(f"Integers by {found.executor}.")
        say(found.agreement())
    found.require_agreement()
    require_quality(found.evaluation, args)


def missing_images() -> str:
    """Refuse to evaluate on nothing."""
    from vitquant.errors import ConfigError

    raise ConfigError("no images to evaluate on", where="--eval", expected="a folder or an .npz file")
