"""What the commands share: options, and the printed result of the main job."""

from __future__ import annotations

import argparse
import json
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console

    from vitquant.job import JobResult
    from vitquant.models.adapt import FloatModel


def positive(text: str) -> int:
    """An option's whole number above 0."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{value} is not above 0")
    return value


def add_job_options(parser: argparse.ArgumentParser) -> None:
    """Options of the commands that run the main job."""
    parser.add_argument("--out", default="out", metavar="DIR", help="folder of the results (default: out)")
    parser.add_argument("--batch-size", type=positive, default=16, metavar="N", help="images in one forward (16)")
    parser.add_argument("--profile-images", type=positive, default=16, metavar="N", help="images to profile on (16)")
    parser.add_argument(
        "--seed", type=int, default=0, help="recorded in summary.json; changes nothing, all steps are deterministic (0)"
    )
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="where to compute (cpu)")
    add_output_options(parser)


def add_output_options(parser: argparse.ArgumentParser) -> None:
    """Options that every command has."""
    parser.add_argument("--json", action="store_true", help="print the result as JSON")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")


def console() -> Console:
    """The terminal; piped output is not folded at 80 columns."""
    from rich.console import Console

    return Console() if sys.stdout.isatty() else Console(width=120)


def print_model(model: FloatModel) -> None:
    """What was loaded, on standard error: name, proof of parity, preprocessing, notes."""
    parity = "" if model.parity_db is None else f", equal to the original to {min(model.parity_db, 300):.0f} dB"
    print(f"model          {model.name}{parity}", file=sys.stderr)
    print(f"preprocessing  {model.preprocessing}", file=sys.stderr)
    for note in model.notes:
        print(f"note           {note}", file=sys.stderr)


def print_result(result: JobResult, as_json: bool) -> None:
    """The figures of the main job as a table for people, or as JSON."""
    if as_json:
        print(json.dumps(result.summary, indent=2))
        return
    from rich.table import Table

    from vitquant.job import RESULTS
    from vitquant.profiling.report import worst_table

    found = result.evaluation
    out = console()
    table = Table(title=f"{result.summary['model']} on {found.images} images", title_justify="left")
    for column in ("", "float", "quantized"):
        table.add_column(column, justify="right" if column else "left")
    if found.fp32_top1 is not None and found.quantized_top1 is not None:
        table.add_row("top-1", f"{found.fp32_top1:.2f} %", f"{found.quantized_top1:.2f} %")
    if found.agreement is not None:
        table.add_row("same class as float", "", f"{found.agreement:.2f} %")
    table.add_row("SQNR of the output", "", f"{found.sqnr_db:.1f} dB")
    table.add_row("SQNR at the final norm", "", f"{found.sqnr_final_norm_db:.1f} dB")
    out.print(table)
    out.print(worst_table(result.profile))
    active = sum(p.active for p in result.profile.points)
    out.print(f"{active} of {len(result.profile.points)} points are quantized, the others stay float.")
    out.print(f"{result.summary['seconds']['total']:.0f} s. Results in {result.out}/", highlight=False)
    for name, what in RESULTS.items():
        out.print(f"  {name:33} {what}", highlight=False)
