"""What the commands share: options, and the printed result of the main job."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from vitquant.cli.streams import note, say
from vitquant.errors import ConfigError, printable
from vitquant.files import json_text
from vitquant.progress import console

if TYPE_CHECKING:
    from vitquant.adapters.adapt import FloatModel
    from vitquant.measure import Evaluation
    from vitquant.workflows.job import JobResult


COMPARED = ("", "float", "simulated", "integers")
"""The columns of a comparison."""

MOST = 2**31 - 1
"""The largest number of anything on the command line."""


def positive(text: str, most: int = MOST) -> int:
    """An option's whole number above 0."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{value} is not above 0")
    if value > most:
        raise argparse.ArgumentTypeError(f"{value} is above {most}")
    return value


def depth(text: str) -> int:
    """An option's number of blocks."""
    return positive(text, most=1000)


def seed(text: str) -> int:
    """An option's whole number that can seed torch's generators."""
    value = int(text)
    if not -(2**63) <= value < 2**63:
        raise argparse.ArgumentTypeError(f"{value} is not a whole number of 64 bits")
    return value


def add_job_options(parser: argparse.ArgumentParser, batch_size: int = 16) -> None:
    """Options of the commands that run the main job; small models are quicker in larger batches."""
    parser.add_argument("--out", default="out", metavar="DIR", help="folder of the results (default: out)")
    told = f"images per forward ({batch_size}); of the observers only PercentileObserver depends on it"
    parser.add_argument("--batch-size", type=positive, default=batch_size, metavar="N", help=told)
    parser.add_argument("--profile-images", type=positive, default=16, metavar="N", help="images to profile on (16)")
    told = "recorded in summary.json; changes nothing, all steps are deterministic (0)"
    parser.add_argument("--seed", type=seed, default=0, help=told)
    add_device_option(parser)
    parser.add_argument("--strict", action="store_true", help="refuse a configuration that leaves any point float")
    add_output_options(parser)


def add_device_option(parser: argparse.ArgumentParser) -> None:
    """Where to compute; which names there are is PyTorch's to say, when the command runs."""
    told = "where to compute, by PyTorch's name: cpu, cuda, cuda:1 ... (cpu)"
    parser.add_argument("--device", default="cpu", metavar="DEVICE", help=told)


def add_executor_option(parser: argparse.ArgumentParser) -> None:
    """Which executor runs the program."""
    kinds = ("auto", "reference", "native")
    parser.add_argument("--executor", choices=kinds, default="auto", help="auto: the native one, if it is installed")


def add_labels_option(parser: argparse.ArgumentParser) -> None:
    """Evaluation of images whose folders are not the model's classes."""
    told = "evaluate without labels, whatever folders the images are in"
    parser.add_argument("--ignore-labels", action="store_true", help=told)


def add_output_options(parser: argparse.ArgumentParser) -> None:
    """Options that every command has."""
    parser.add_argument("--json", action="store_true", help="print the result as JSON")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")


def add_checkpoint_options(parser: argparse.ArgumentParser) -> None:
    """Options of the commands that read a float model and images: which weights, and another preprocessing."""
    parser.add_argument(
        "--weights-entry",
        metavar="NAME",
        help="which model of the checkpoint to take, such as model or teacher (default: averaged weights, if there)",
    )
    group = parser.add_argument_group("preprocessing (default: that of the model's name)")
    told = "for pixels from 0 to 1, one number or one per channel"
    group.add_argument("--mean", nargs="+", metavar="X", help=f"mean {told}")
    group.add_argument("--std", nargs="+", metavar="X", help=f"standard deviation {told}")
    group.add_argument("--crop-pct", metavar="X", help="share of the resized image's side that the centre crop keeps")
    group.add_argument("--interpolation", metavar="NAME", help="bicubic or bilinear")


def preprocessing_options(args: argparse.Namespace) -> dict[str, Any] | None:
    """The fields of the preprocessing that were given, for :func:`vitquant.adapt`; ``None`` if there are none.

    Raises:
        ConfigError: if a value is no number.
    """
    given = {
        "mean": None if args.mean is None else tuple(number(text, "--mean") for text in args.mean),
        "std": None if args.std is None else tuple(number(text, "--std") for text in args.std),
        "crop_pct": None if args.crop_pct is None else number(args.crop_pct, "--crop-pct"),
        "interpolation": args.interpolation,
    }
    return {name: value for name, value in given.items() if value is not None} or None


def number(text: str, option: str) -> float:
    """An option's number.

    Raises:
        ConfigError: if it is none.
    """
    try:
        return float(text)
    except ValueError as error:
        raise ConfigError("this is no number", where=option, got=repr(text), expected="a number such as 0.5") from error


def print_table(title: str, columns: Iterable[str], rows: Iterable[Sequence[str]], numbers: bool = True) -> None:
    """A table of plain text. All columns but the first hold numbers, or else text that may be folded."""
    from rich.table import Table

    table = Table(title=printable(title), title_justify="left")
    for column in columns:
        table.add_column(column, justify="right" if column and numbers else "left", overflow="fold")
    for row in rows:
        table.add_row(*map(printable, row))
    console(sys.stdout).print(table)


def print_json(value: Any) -> None:
    """A result as JSON, and nothing else."""
    print(json_text(value))


def print_model(model: FloatModel) -> None:
    """What was loaded, on standard error: name, proof of parity, preprocessing, notes."""
    parity = "" if model.parity_db is None else f", equal to the original to {min(model.parity_db, 300):.0f} dB"
    overridden = f" (overridden: {', '.join(model.overridden)})" if model.overridden else ""
    note(f"model          {model.name}{parity}")
    note(f"preprocessing  {model.preprocessing}{overridden}")
    for text in model.notes:
        note(f"note           {text}")


def print_result(result: JobResult, as_json: bool) -> None:
    """The figures of the main job as a table for people, or as JSON."""
    if as_json:
        print_json(result.summary)
        return
    from vitquant.report.points import worst_table

    found, program = result.evaluation, result.program
    rows = list(comparison_rows(found))
    if program is not None:
        rows.append(("size", f"{result.float_bytes / 1e6:.1f} MB", "", f"{program.nbytes / 1e6:.1f} MB"))
    print_table(f"{result.summary['model']} on {found.images} images", COMPARED, rows)
    console(sys.stdout).print(worst_table(result.profile))
    active = sum(p.active for p in result.profile.points)
    say(f"{active} of {len(result.profile.points)} points are quantized; {result.kept_float}.")
    if program is not None and result.comparison is not None:
        say(f"Integers by {result.comparison.executor}.")
        say(result.comparison.agreement())
        share = program.nbytes / result.float_bytes
        say(f"It holds no float between pixels and logits, and takes {share:.1%} of the float model's bytes.")
    else:
        say(f"No integer program: {result.refusal}")
    say(f"{result.summary['seconds']['total']:.0f} s. Results in {result.out}/")
    for name, what in result.files.items():
        say(f"  {name:33} {what}")


def comparison_rows(found: Evaluation) -> Iterator[tuple[str, str, str, str]]:
    """Float, simulated and integer model side by side, where there is something to tell."""
    integer = found.integer

    def row(name: str, *values: float | None, unit: str, digits: int) -> tuple[str, str, str, str]:
        first, second, third = ("" if v is None else f"{min(v, 300):.{digits}f} {unit}" for v in values)
        return name, first, second, third

    if found.fp32_top1 is not None:
        top1 = integer.top1 if integer else None
        yield row("top-1", found.fp32_top1, found.quantized_top1, top1, unit="%", digits=2)
    if found.agreement is not None:
        same = integer.agreement if integer else None
        yield row("same class as float", None, found.agreement, same, unit="%", digits=2)
    output = integer.sqnr_db if integer else None
    yield row("SQNR of the output", None, found.sqnr_db, output, unit="dB", digits=1)
    yield row("SQNR at the final norm", None, found.sqnr_final_norm_db, None, unit="dB", digits=1)
    if integer is not None:
        yield row("SQNR against simulated", None, None, integer.to_simulated_db, unit="dB", digits=1)
