"""Options shared by the commands, and printing of results."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable
from textwrap import fill
from typing import TYPE_CHECKING, Any

from vitquant.cli.streams import note, say
from vitquant.errors import ConfigError
from vitquant.files import json_text
from vitquant.report.tables import Part, write
from vitquant.report.units import decibels

if TYPE_CHECKING:
    from vitquant.adapters.adapt import FloatModel
    from vitquant.workflows.job import JobResult


MOST = 2**31 - 1
"""Largest count on the command line."""

CONFIG = "YAML file, or the name of a shipped file"
DIR = "output folder of `vitquant quantize` or `demo`"


def add_command(
    commands: argparse._SubParsersAction[argparse.ArgumentParser], name: str, about: str, **options: Any
) -> argparse.ArgumentParser:
    """Add a subcommand whose help and description are the same sentence."""
    description = fill(f"{about[0].upper()}{about[1:]}.", width=78)
    return commands.add_parser(name, help=about, description=description, **options)


def positive(text: str, most: int = MOST) -> int:
    """A positive integer."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{value} is less than 1")
    if value > most:
        raise argparse.ArgumentTypeError(f"{value} is greater than {most}")
    return value


def depth(text: str) -> int:
    """A number of blocks."""
    return positive(text, most=1000)


def seed(text: str) -> int:
    """A seed of torch's generators."""
    value = int(text)
    if not -(2**63) <= value < 2**63:
        raise argparse.ArgumentTypeError(f"{value} is not a 64-bit integer")
    return value


def add_job_options(parser: argparse.ArgumentParser, batch_size: int = 16) -> None:
    """Options of the commands that quantize a model."""
    parser.add_argument("--out", default="out", metavar="DIR", help="output folder (default: out)")
    about = f"images per forward pass (default: {batch_size}); of the observers, only PercentileObserver depends on it"
    parser.add_argument("--batch-size", type=positive, default=batch_size, metavar="N", help=about)
    parser.add_argument(
        "--profile-images", type=positive, default=16, metavar="N", help="images used for the profile (default: 16)"
    )
    about = "measure the isolated SQNR of all points; by default, only those of the worst are not estimated"
    parser.add_argument("--exact", action="store_true", help=about)
    about = "recorded in summary.json; all steps are deterministic and do not depend on it (default: 0)"
    parser.add_argument("--seed", type=seed, default=0, metavar="N", help=about)
    add_device_option(parser)
    about = "reject a configuration that leaves any point in floating point"
    parser.add_argument("--strict", action="store_true", help=about)
    add_output_options(parser)


def add_config_option(parser: argparse.ArgumentParser) -> None:
    """The configuration: a file, or a shipped recipe."""
    choice = parser.add_mutually_exclusive_group()
    about = f"{CONFIG} (default: vit_int8.yaml)"
    choice.add_argument("--config", default="vit_int8.yaml", metavar="CONFIG", help=about)
    about = "a shipped configuration of a complete model by its number of bits, such as w8a8 or w4a8"
    choice.add_argument("--recipe", dest="config", type=recipe, metavar="NAME", help=about)


def recipe(text: str) -> str:
    """The file of a recipe, by its name."""
    from vitquant.config import recipe_file, recipe_names

    if text not in recipe_names():
        raise argparse.ArgumentTypeError(f"no recipe is called {text!r}; there are {', '.join(recipe_names())}")
    return recipe_file(text)


def add_device_option(parser: argparse.ArgumentParser) -> None:
    """The device. PyTorch checks the name when the command runs."""
    about = "PyTorch device: cpu, cuda, cuda:1, ... (default: cpu)"
    parser.add_argument("--device", default="cpu", metavar="DEVICE", help=about)


def add_executor_option(parser: argparse.ArgumentParser) -> None:
    """The executor of the program."""
    kinds = ("auto", "reference", "native")
    about = "executor of the program (default: auto, the native executor if it is installed)"
    parser.add_argument("--executor", choices=kinds, default="auto", help=about)


def add_program_output_option(parser: argparse.ArgumentParser) -> None:
    """The outputs that a program or graph gives."""
    about = "output to compute: logits, class_token or tokens; can be repeated (default: the main output)"
    parser.add_argument("--output", action="append", default=[], metavar="NAME", help=about)


def add_labels_option(parser: argparse.ArgumentParser) -> None:
    """Evaluation of images whose folders are not the classes of the model."""
    about = "ignore labels and class folders; top-1 is not computed"
    parser.add_argument("--ignore-labels", action="store_true", help=about)


def add_output_options(parser: argparse.ArgumentParser) -> None:
    """Options of every command."""
    parser.add_argument("--json", action="store_true", help="print the result as JSON")
    parser.add_argument("--debug", action="store_true", help="print the traceback of an error")


def add_checkpoint_options(parser: argparse.ArgumentParser) -> None:
    """Options of the commands that read a float model and images: checkpoint entry and preprocessing."""
    parser.add_argument(
        "--weights-entry",
        metavar="NAME",
        help="model to use if the checkpoint contains several, such as model or teacher (default: averaged weights)",
    )
    group = parser.add_argument_group("preprocessing (default: that of the model)")
    about = "for pixels from 0 to 1: one value, or one per channel"
    group.add_argument("--mean", nargs="+", metavar="X", help=f"mean {about}")
    group.add_argument("--std", nargs="+", metavar="X", help=f"standard deviation {about}")
    group.add_argument("--crop-pct", metavar="X", help="fraction of the resized image's side kept by the centre crop")
    group.add_argument("--interpolation", metavar="NAME", help="bicubic or bilinear")


def preprocessing_options(args: argparse.Namespace) -> dict[str, Any] | None:
    """The given fields of the preprocessing, for :func:`vitquant.adapt`; ``None`` if there are none.

    Raises:
        ConfigError: a value is not a number.
    """
    given = {
        "mean": None if args.mean is None else tuple(number(text, "--mean") for text in args.mean),
        "std": None if args.std is None else tuple(number(text, "--std") for text in args.std),
        "crop_pct": None if args.crop_pct is None else number(args.crop_pct, "--crop-pct"),
        "interpolation": args.interpolation,
    }
    return {name: value for name, value in given.items() if value is not None} or None


def number(text: str, option: str) -> float:
    """The number in an option.

    Raises:
        ConfigError: it is not a number.
    """
    try:
        return float(text)
    except ValueError as error:
        raise ConfigError("not a number", where=option, got=repr(text), expected="a number such as 0.5") from error


def print_parts(parts: Iterable[Part]) -> None:
    """Print tables and lines."""
    write(parts, sys.stdout)


def print_json(value: Any) -> None:
    """Print a result as JSON."""
    print(json_text(value))


def print_model(model: FloatModel) -> None:
    """Print on standard error what was loaded: name, comparison with the original, preprocessing, notes."""
    parity = "" if model.parity_db is None else f", compared with the original: {decibels(model.parity_db, 0)}"
    overridden = f" (overridden: {', '.join(model.overridden)})" if model.overridden else ""
    note(f"model          {model.name}{parity}")
    note(f"preprocessing  {model.preprocessing}{overridden}")
    for text in model.notes:
        note(f"note           {text}")


def print_result(result: JobResult, as_json: bool) -> None:
    """Print the result of the main job as tables or as JSON."""
    if as_json:
        print_json(result.record.to_dict())
        return
    from vitquant.report.run_tables import run_tables

    print_parts(run_tables(result.record))
    say(f"Finished in {result.record.seconds['total']:.0f} s. Results in {result.out}/")
    for name, what in result.files.items():
        say(f"  {name:33} {what}")
