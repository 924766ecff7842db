"""``vitquant bench``: how quickly a program runs, beside float PyTorch and other runtimes."""

from __future__ import annotations

import argparse
from dataclasses import asdict
from typing import TYPE_CHECKING

from vitquant.cli.common import add_output_options, positive, print_json, print_table

if TYPE_CHECKING:
    from vitquant.workflows.bench import Timing

COLUMNS = ("", "batch", "ms a call", "images a second", "of float PyTorch's time")


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
    from vitquant.workflows.bench import bench

    found = bench(args.folder, batches=args.batch, rounds=args.rounds, threads=args.threads)
    if args.json:
        print_json([asdict(t) | {"images_per_second": t.images_per_second} for t in found])
        return
    print_table(args.folder, COLUMNS, map(row, found))


def row(timing: Timing) -> tuple[str, ...]:
    """The cells of one contender."""
    speed = f"{timing.images_per_second:.1f}"
    return timing.name, str(timing.batch), f"{timing.milliseconds:.1f}", speed, f"{timing.ratio:.2f}"
