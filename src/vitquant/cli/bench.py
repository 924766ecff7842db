"""``vitquant bench``: how quickly a program runs, beside float PyTorch and other runtimes."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict

from vitquant.cli.common import add_output_options, console, positive


def add_to(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command to the parser."""
    parser = commands.add_parser("bench", help="time an integer program beside float PyTorch and other runtimes")
    parser.add_argument("folder", metavar="DIR", help="what `vitquant quantize` wrote: model and integer program")
    parser.add_argument("--batch", type=positive, nargs="+", default=[1, 8], metavar="N", help="images a call (1 8)")
    parser.add_argument("--rounds", type=positive, default=7, metavar="N", help="median of so many (7)")
    parser.add_argument("--threads", type=positive, metavar="N", help="of all contenders (default: torch's)")
    add_output_options(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    """Print latency and throughput."""
    from vitquant.bench import bench

    found = bench(args.folder, batches=args.batch, rounds=args.rounds, threads=args.threads)
    if args.json:
        print(json.dumps([asdict(t) | {"images_per_second": t.images_per_second} for t in found], indent=2))
        return
    from rich.table import Table

    table = Table(title=args.folder, title_justify="left")
    for column in ("", "batch", "ms a call", "images a second", "of float PyTorch's time"):
        table.add_column(column, justify="right" if column else "left")
    for timing in found:
        speed = f"{timing.images_per_second:.1f}"
        table.add_row(timing.name, str(timing.batch), f"{timing.milliseconds:.1f}", speed, f"{timing.ratio:.2f}")
    console().print(table)
