"""The command line: each command is one library call. Importing this module imports no torch."""

from __future__ import annotations

import argparse
import os
import sys
import traceback
import warnings
from collections.abc import Sequence
from typing import TextIO

from vitquant.cli import bench, check, config, demo, evaluate, export, quantize, run
from vitquant.errors import VitquantError
from vitquant.version import __version__

INTERRUPTED = 130
ENVIRONMENT = 4
CLOSED_PIPE = 141


def build_parser() -> argparse.ArgumentParser:
    """The parser with all commands."""
    parser = argparse.ArgumentParser(prog="vitquant", description="Quantize Vision Transformers, layer by layer.")
    parser.add_argument("--version", action="version", version=f"vitquant {__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    for module in (demo, quantize, check, evaluate, run, bench, export, config):
        module.add_to(commands)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return the exit code: 0, 2 user input, 3 data or numerics, 4 environment."""
    args = build_parser().parse_args(argv)
    warnings.showwarning = show_warning
    try:
        args.run(args)
        sys.stdout.flush()
    except BrokenPipeError:  # whoever reads, such as head, has read enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for what Python still wants to write
        return CLOSED_PIPE
    except VitquantError as error:
        return fail(str(error), error.exit_code, args.debug)
    except OSError as error:
        return fail(f"{error.filename or 'system'}: {error.strerror or error}.", ENVIRONMENT, args.debug)
    except KeyboardInterrupt:
        return fail("interrupted; nothing was written. Run the same command to start again.", INTERRUPTED, False)
    return 0


def fail(message: str, code: int, debug: bool) -> int:
    """Say what went wrong on standard error, with the traceback if it was asked for."""
    if debug:
        traceback.print_exc()
    print(f"error: {message}", file=sys.stderr)
    return code


def show_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    """A warning as a line for people, without the source line that raised it."""
    print(f"warning: {message}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
