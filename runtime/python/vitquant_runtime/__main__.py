"""``python -m vitquant_runtime --explain PROGRAM`` tells how a program is executed."""

from __future__ import annotations

import argparse
import sys

from vitquant_runtime.runtime import explain
from vitquant_runtime.version import __version__


def main() -> int:
    """Run the command, and return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m vitquant_runtime", description="Runs vitquant programs.")
    parser.add_argument("--version", action="version", version=__version__)
    parser.add_argument(
        "--explain",
        metavar="PROGRAM",
        required=True,
        help="print the steps, phases and memory of a program (a folder, or the path of its program.json)",
    )
    parser.add_argument(
        "--output",
        metavar="NAME",
        action="append",
        help="an output that is computed; may be given several times (default: the program's first)",
    )
    args = parser.parse_args()
    try:
        print(explain(args.explain, args.output), end="")
    except (ValueError, MemoryError) as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
