"""``vitquant bench``: latency of a program, compared with float PyTorch and other runtimes."""

from __future__ import annotations

import argparse
from dataclasses import asdict
from typing import TYPE_CHECKING

from vitquant.cli.common import DIR, add_command, add_output_options, positive, print_json, print_parts
from vitquant.report.tables import table

if TYPE_CHECKING:
    from vitquant.workflows.latency import Timing

COLUMNS = ("", "batch", "ms per call", "images per second", "time relative to float PyTorch")


def add_to(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command to the parser."""
    parser = add_command(
        commands, "bench", "compare the latency of an integer program with float PyTorch and other runtimes"
    )
    parser.add_argument("folder", metavar="DIR", help=DIR)
    parser.add_argument(
        "--batch", type=positive, nargs="+", default=[1, 8], metavar="N", help="batch sizes (default: 1 8)"
    )
    about = "number of timed rounds; the median is reported (default: 7)"
    parser.add_argument("--rounds", type=positive, default=7, metavar="N", help=about)
    parser.add_argument("--threads", type=positive, metavar="N", help="threads per runtime (default: that of torch)")
    add_output_options(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    """Print latency and throughput."""
    from vitquant.workflows.latency import compare_latency

    found = compare_latency(args.folder, batches=args.batch, rounds=args.rounds, threads=args.threads)
    if args.json:
        print_json([asdict(t) | {"images_per_second": t.images_per_second} for t in found])
        return
    print_parts([table(args.folder, COLUMNS, map(row, found))])


def row(timing: Timing) -> tuple[str, ...]:
    """The cells of one runtime."""
    speed = f"{timing.images_per_second:.1f}"
    return timing.name, str(timing.batch), f"{timing.milliseconds:.1f}", speed, f"{timing.ratio:.2f}"
