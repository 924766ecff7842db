"""``vitquant sensitivity`` and ``vitquant sweep``: what other settings of each point would cost."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from vitquant.cli.common import (
    add_checkpoint_options,
    add_command,
    add_config_option,
    add_device_option,
    add_output_options,
    number,
    positive,
    preprocessing_options,
    print_json,
    print_model,
    print_parts,
)
from vitquant.cli.streams import say
from vitquant.errors import ConfigError

if TYPE_CHECKING:
    from torch import Tensor

    from vitquant.adapters.adapt import FloatModel
    from vitquant.config.candidates import Candidates

EPILOG = """example:
  vitquant sensitivity --model vit_small_patch14_dinov2 --img-size 224 \\
      --weights dinov2.safetensors --calib photos/ --bits 4,6,8,16"""
SWEEP_EPILOG = """example:
  vitquant sweep --model vit_small_patch14_dinov2 --img-size 224 \\
      --weights dinov2.safetensors --calib photos/ \\
      --point 'blocks.*.attn_kv_out' --bits 6,8 --observer minmax,kl,omse"""


class Sensitivity:
    """The command ``vitquant sensitivity``."""

    name, about, epilog = "sensitivity", "estimate what other settings of each point cost or gain at the output", EPILOG
    defaults = "bits 4,6,8,16, of weights 3,4,6,8, observers minmax,omse"

    def add_to(self, commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
        """Add the command to the parser."""
        parser = add_command(
            commands,
            self.name,
            self.about,
            epilog=self.epilog,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        add_model_options(parser)
        parser.add_argument("--out", default=self.name, metavar="DIR", help=f"output folder (default: {self.name})")
        add_config_option(parser)
        add_candidate_options(parser, self.defaults)
        self.add_more(parser)
        add_cost_options(parser)
        add_checkpoint_options(parser)
        add_output_options(parser)
        parser.set_defaults(run=self.run)

    def add_more(self, parser: argparse.ArgumentParser) -> None:
        """Options of this command alone."""
        parser.set_defaults(exact=False)

    def candidates(self, args: argparse.Namespace) -> Candidates:
        """What is compared."""
        from vitquant.workflows.sensitivity import DEFAULT

        return given_candidates(args) or DEFAULT.replaced(points=points_of(args))

    def run(self, args: argparse.Namespace) -> None:
        """Print the table, and write it."""
        from vitquant.arguments import require_path
        from vitquant.files import write_folder
        from vitquant.report.sensitivity import CSV, PRODUCTS, TABLE
        from vitquant.workflows.job import require_results_folder
        from vitquant.workflows.sensitivity import calibrated, sensitivity

        candidates = self.candidates(args)
        out = require_path(args.out, "--out")
        require_results_folder(out)
        model, pixels = model_and_images(args)
        options: dict[str, Any] = {"batch_size": args.batch_size}
        quantized = calibrated(model, args.config, pixels, device=args.device, output=args.output, **options)
        found = sensitivity(
            quantized,
            pixels,
            candidates=candidates,
            name=model.name,
            draws=args.draws,
            exact=args.exact,
            simulation_only=args.simulation_only,
            cache=args.cache or out / "cache",
            **options,
        )
        write_folder(out, found.files())
        if args.json:
            print_json(found.to_dict())
            return
        print_parts(self.parts(found))
        say(f"Results in {out}/: {CSV} (all settings), {TABLE}, {PRODUCTS} (inner products).")
        say(self.next_step(args))

    def parts(self, found: Any) -> Any:
        """What is printed."""
        from vitquant.report.sensitivity import sensitivity_parts

        return sensitivity_parts(found)

    def next_step(self, args: argparse.Namespace) -> str:
        """What to do with the result."""
        return (
            "Next: put what helps under `overrides:` in a copy of the configuration, "
            "or let `vitquant tune` choose for all points together."
        )


class Sweep(Sensitivity):
    """The command ``vitquant sweep``."""

    name, about, epilog = "sweep", "compare all combinations of settings at the named points", SWEEP_EPILOG
    defaults = "those that the points have"

    def add_more(self, parser: argparse.ArgumentParser) -> None:
        about = "measure each setting by running the model, rather than estimate it"
        parser.add_argument("--exact", action="store_true", help=about)

    def candidates(self, args: argparse.Namespace) -> Candidates:
        found = given_candidates(args)
        if not args.point:
            raise ConfigError("no points to compare", where="--point", expected="names or patterns of points")
        if found is None:
            raise ConfigError("nothing to compare", where="sweep", expected="--bits, --observer, --mode or --softmax")
        return found

    def parts(self, found: Any) -> Any:
        from vitquant.report.sensitivity import grid_parts

        return grid_parts(found)

    def next_step(self, args: argparse.Namespace) -> str:
        exact = "" if args.exact else "--exact measures instead of estimating; "
        return f"Next: {exact}put the best settings under `overrides:` in a copy of the configuration."


def add_model_options(parser: argparse.ArgumentParser) -> None:
    """The model and the images."""
    about = "timm name of the model (fashion_vit: embedded)"
    parser.add_argument("--model", required=True, metavar="NAME", help=about)
    parser.add_argument("--weights", metavar="FILE", help="local checkpoint: a file or a folder")
    parser.add_argument("--img-size", type=positive, metavar="PIXELS", help="input size (default: that of the model)")
    about = "images: a folder or .npz file (default: embedded images); every fourth is held out to choose on"
    parser.add_argument("--calib", metavar="IMAGES", help=about)
    parser.add_argument("--calib-limit", type=positive, metavar="N", help="use at most N images")


def add_candidate_options(parser: argparse.ArgumentParser, defaults: str) -> None:
    """What is compared."""
    group = parser.add_argument_group(f"settings to compare, in all combinations (default: {defaults})")
    group.add_argument("--bits", metavar="LIST", help="widths, such as 4,6,8")
    group.add_argument("--weight-bits", metavar="LIST", help="widths of weights (default: those of --bits)")
    group.add_argument("--observer", metavar="LIST", help="minmax, percentile, kl, omse")
    group.add_argument("--mode", metavar="LIST", help="layer_wise, channel_wise, head_wise")
    group.add_argument("--percentile", metavar="LIST", help="percentile_alpha of percentile, such as 0.999,0.9999")
    group.add_argument("--softmax", metavar="LIST", help="forms of softmax: uniform, row, diffusion, log2")
    about = "points to compare settings at; can be repeated (default: all)"
    group.add_argument("--point", action="append", default=[], metavar="PATTERN", help=about)
    about = "also settings that integers cannot execute"
    group.add_argument("--simulation-only", action="store_true", help=about)


def add_cost_options(parser: argparse.ArgumentParser) -> None:
    """How much is computed, and where."""
    parser.add_argument(
        "--draws", type=positive, default=8, metavar="N", help="random vectors per image for estimates (default: 8)"
    )
    about = "images per forward pass (default: 8)"
    parser.add_argument("--batch-size", type=positive, default=8, metavar="N", help=about)
    about = "folder for tables that were computed before (default: cache in the output folder)"
    parser.add_argument("--cache", metavar="DIR", help=about)
    about = "output to measure: logits, class_token or tokens (default: logits)"
    parser.add_argument("--output", metavar="NAME", help=about)
    add_device_option(parser)


def given_candidates(args: argparse.Namespace) -> Candidates | None:
    """The settings that the options name; ``None`` if they name none.

    Raises:
        ConfigError: a value is not allowed.
    """
    from vitquant.config.candidates import Candidates

    texts = {
        "observers": items(args.observer),
        "modes": items(args.mode),
        "softmax": items(args.softmax),
    }
    bits = tuple(whole(text, "--bits") for text in items(args.bits))
    weight_bits = tuple(whole(text, "--weight-bits") for text in items(args.weight_bits))
    percentiles = tuple(number(text, "--percentile") for text in items(args.percentile))
    if not (bits or weight_bits or percentiles or any(texts.values())):
        return None
    return Candidates(bits=bits, weight_bits=weight_bits, percentiles=percentiles, points=points_of(args), **texts)


def points_of(args: argparse.Namespace) -> tuple[str, ...]:
    """The patterns of the points."""
    return tuple(args.point) or ("*",)


def items(text: str | None) -> tuple[str, ...]:
    """The items of a list that commas separate."""
    return () if text is None else tuple(part.strip() for part in text.split(","))


def whole(text: str, option: str) -> int:
    """The integer in an option.

    Raises:
        ConfigError: it is not one.
    """
    try:
        return int(text)
    except ValueError as error:
        raise ConfigError("not a whole number", where=option, got=repr(text), expected="a number such as 8") from error


def model_and_images(args: argparse.Namespace) -> tuple[FloatModel, Tensor]:
    """The float model, and the images as pixels.

    Raises:
        ConfigError: a model without weights or images that is not the embedded one.
    """
    from vitquant.adapters.adapt import adapt
    from vitquant.adapters.fashion import FASHION, load_fashion, load_fashion_images
    from vitquant.device import require_device
    from vitquant.workflows.quantize import as_config
    from vitquant.workflows.sensitivity import read_pixels

    require_device(args.device)
    as_config(args.config)
    embedded = args.model == FASHION and args.weights is None
    if embedded:
        model = load_fashion()
    elif args.weights is None:
        raise ConfigError("no weights", where="--weights", expected="the checkpoint of the model")
    else:
        model = adapt(
            args.model,
            weights=args.weights,
            weights_entry=args.weights_entry,
            img_size=args.img_size,
            preprocessing=preprocessing_options(args),
        )
    images = args.calib
    if images is None:
        if not embedded:
            raise ConfigError("no images", where="--calib", expected="a folder or an .npz file")
        images = load_fashion_images()[0][:128]
    print_model(model)
    return model, read_pixels(images, model, args.calib_limit)
