"""``vitquant evaluate``: comparison of the float, simulated and integer models."""

from __future__ import annotations

import argparse
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

from vitquant.cli.common import (
    DIR,
    add_checkpoint_options,
    add_command,
    add_device_option,
    add_executor_option,
    add_labels_option,
    add_output_options,
    positive,
    preprocessing_options,
    print_json,
    print_model,
    print_parts,
)
from vitquant.cli.quality import add_quality_options, require_answerable, require_quality
from vitquant.errors import ConfigError
from vitquant.report.tables import COMPARED, comparison_rows, computed_with, table

if TYPE_CHECKING:
    from vitquant.adapters.adapt import FloatModel

EPILOG = """examples:
  vitquant evaluate out --model vit_small_patch14_dinov2 \\
      --weights dinov2.safetensors --img-size 224 --eval photos2/
  vitquant evaluate out --model fashion_vit    # after `vitquant demo`"""


def add_to(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command to the parser."""
    parser = add_command(
        commands,
        "evaluate",
        "compare the float, simulated and integer models; report the first point where they differ",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("folder", metavar="DIR", help=DIR)
    parser.add_argument(
        "--model", required=True, metavar="NAME", help="name of the float model (fashion_vit: embedded)"
    )
    parser.add_argument("--weights", metavar="FILE", help="checkpoint of the float model")
    parser.add_argument("--img-size", type=positive, metavar="PIXELS", help="input size (default: that of the model)")
    parser.add_argument("--eval", metavar="IMAGES", help="folder or .npz file (default: embedded images)")
    parser.add_argument("--limit", type=positive, metavar="N", help="use at most N images")
    parser.add_argument(
        "--batch-size", type=positive, default=8, metavar="N", help="images per forward pass (default: 8)"
    )
    add_labels_option(parser)
    add_device_option(parser)
    add_executor_option(parser)
    add_checkpoint_options(parser)
    add_output_options(parser)
    add_quality_options(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    """Print the comparison; fail if program and simulation disagree."""
    from vitquant.adapters.adapt import adapt
    from vitquant.adapters.fashion import FASHION, load_fashion, load_fashion_images
    from vitquant.device import require_device
    from vitquant.measure.compare import compare

    require_device(args.device)
    embedded = args.model == FASHION and args.weights is None
    if embedded:
        model = load_fashion()
    else:
        entry = args.weights_entry
        model = adapt(args.model, weights=args.weights, weights_entry=entry, img_size=args.img_size)
    images = args.eval
    if images is None:
        images = load_fashion_images()[2:] if embedded else missing_images()
    require_answerable(args, model, images)
    model = as_quantized(model, args.folder, preprocessing_options(args))
    print_model(model)
    found = compare(
        args.folder,
        model,
        images,
        limit=args.limit,
        batch_size=args.batch_size,
        device=args.device,
        kind=args.executor,
        ignore_labels=args.ignore_labels,
    )
    if args.json:
        print_json(asdict(found))
    else:
        title = f"{args.folder} on {found.evaluation.images} images"
        rows = comparison_rows(found.evaluation)
        print_parts([table(title, COMPARED, rows), computed_with(found.executor), found.agreement()])
    found.require_agreement()
    require_quality(found.evaluation, args)


def as_quantized(model: FloatModel, folder: str, given: dict[str, Any] | None) -> FloatModel:
    """The model with the preprocessing that it was quantized with, which is part of the integer weights.

    Raises:
        ArtifactError: the folder contains no saved model.
        ConfigError: the options specify another preprocessing.
    """
    from pathlib import Path

    from vitquant.artifact.manifest import read_manifest

    stored = read_manifest(Path(folder)).preprocessing
    wanted = stored.replaced(**given) if given else stored
    if wanted != stored:
        raise ConfigError(
            "the saved model was quantized with another preprocessing",
            where=folder,
            got=str(wanted),
            expected=str(stored),
            fix="omit the options, or quantize again with them",
        )
    if stored == model.preprocessing:
        return model
    changed = tuple(f for f in stored.to_dict() if getattr(stored, f) != getattr(model.preprocessing, f))
    return replace(model, preprocessing=stored, overridden=changed)


def missing_images() -> str:
    """The error if there are no images to evaluate on."""
    raise ConfigError("no images to evaluate on", where="--eval", expected="a folder or an .npz file")
