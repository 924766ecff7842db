"""The command line: each command is one library call. Importing this module imports neither torch nor the commands."""

from __future__ import annotations

import argparse
import os
import sys
import traceback
import warnings
from collections.abc import Iterable, MutableMapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any, NoReturn, Protocol, TextIO

from vitquant.cli import streams
from vitquant.cli.signals import Stopped, stoppable
from vitquant.errors import MAX_PART, VitquantError, printable
from vitquant.files import recording
from vitquant.version import __version__

ENVIRONMENT = 4
UNEXPECTED = 70
"""Any other error is a bug in vitquant; the number is ``EX_SOFTWARE`` of ``sysexits.h``."""

WAIT_VARIABLES = frozenset({"OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME"})
"""How the threads of GNU and LLVM OpenMP wait."""

SIGNALLED = 128
INTERRUPTED = SIGNALLED + 2
CLOSED_PIPE = SIGNALLED + 13


class Command(Protocol):
    """A command: adds itself to the parser and sets the default ``run``."""

    def add_to(self, commands: argparse._SubParsersAction[Any], /) -> None: ...


class Parser(argparse.ArgumentParser):
    """A parser whose errors are one line of printable text, whatever the arguments contain."""

    def error(self, message: str) -> NoReturn:
        super().error(printable(message))

    def _print_message(self, message: str, file: Any = None) -> None:
        if file is sys.stdout:
            file.write(message)  # argparse would ignore write errors
        else:
            super()._print_message(message, file)


def all_commands() -> Iterable[Command]:
    """The commands, in the order of the help text."""
    from vitquant.cli import bench, check, config, demo, evaluate, export, quantize, run, show, tune
    from vitquant.cli.sensitivity import Sensitivity, Sweep

    return demo, quantize, show, check, Sensitivity(), Sweep(), tune, evaluate, run, bench, export, config


def build_parser(commands: Iterable[Command] | None = None) -> argparse.ArgumentParser:
    """The parser with the given commands; by default all commands."""
    parser = Parser(
        prog="vitquant", description="Post-training quantization of Vision Transformers, configured point by point."
    )
    parser.add_argument("--version", action="version", version=f"vitquant {__version__}")
    parts = parser.add_subparsers(metavar="COMMAND", required=True)
    for command in all_commands() if commands is None else commands:
        command.add_to(parts)
    return parser


def main(argv: Sequence[str] | None = None, *, commands: Iterable[Command] | None = None) -> int:
    """Run one command and return the exit code.

    0: success; 1: a ``--fail-under`` limit was not met; 2: user input; 3: data or numerics; 4: environment; 70: a bug
    in vitquant; 128 plus the number of a signal: stopped by that signal. All errors are reported here, with a traceback
    only if ``--debug`` is given.

    Args:
        argv: the arguments; by default those of the process. If they are given, the caller is Python code, and neither
            signal handlers nor the environment are changed.
        commands: the available commands; all by default.

    Raises:
        SystemExit: ``--help`` and ``--version`` (0), wrong usage (2).
    """
    catch = stoppable() if argv is None else nullcontext(lambda: None)
    if argv is None:
        share_cores(os.environ)
    argv = sys.argv[1:] if argv is None else argv
    streams.prepare()
    warnings.showwarning = show_warning
    with catch as disarm, recording() as written:
        try:
            try:
                attempt(argv, commands)
            finally:
                disarm()
        except SystemExit:
            raise
        except BaseException as error:  # also errors that are not an Exception, such as a panic of a Rust library
            return explain(error, debug="--debug" in argv, written=written)
        finally:
            streams.close()
    return 0


def share_cores(environment: MutableMapping[str, str]) -> None:
    """Let OpenMP's threads sleep while they wait, unless the user has said how they wait.

    By default those of GNU OpenMP, which PyTorch is built with, spin, and take the cores from each other and from other
    programs. It is set for this process, before PyTorch, which reads it once, is imported.
    """
    if WAIT_VARIABLES.isdisjoint(environment):
        environment["OMP_WAIT_POLICY"] = "passive"


def attempt(argv: Sequence[str], commands: Iterable[Command] | None) -> None:
    """Parse the arguments, run the command and flush its output."""
    try:
        args = build_parser(commands).parse_args(argv)
        args.run(args)
    except SystemExit:
        streams.flush()
        raise
    streams.flush()


def explain(error: BaseException, debug: bool, written: Sequence[Path] = ()) -> int:
    """Print an error in one line on standard error, after the traceback if ``debug``, and return the exit code.

    ``written`` are the files and folders that were completely written before the error.
    """
    if isinstance(error, BrokenPipeError):
        streams.discard(sys.stdout)
        return CLOSED_PIPE
    if isinstance(error, KeyboardInterrupt):
        streams.note(f"error: {interrupted(written)}")
        return SIGNALLED + error.number if isinstance(error, Stopped) else INTERRUPTED
    if debug:
        for line in traceback.format_exception(error):
            streams.block(line.rstrip("\n"))
    message, code = described(error)
    streams.block(f"error: {message}")
    return code


def described(error: BaseException) -> tuple[str, int]:
    """Message and exit code of an error."""
    if isinstance(error, VitquantError):
        return str(error), error.exit_code
    if isinstance(error, OSError):
        return printable(f"{error.filename or 'system'}: {error.strerror or error}."), ENVIRONMENT
    if isinstance(error, MemoryError):
        return "out of memory. Fix: use a smaller batch or fewer images.", ENVIRONMENT
    what = printable(f"{type(error).__name__}: {error}" if str(error) else type(error).__name__, MAX_PART)
    if isinstance(error, Warning):
        return f"{what}. This is a warning; -W error or PYTHONWARNINGS turns it into an error.", ENVIRONMENT
    return (
        f"unexpected {what}. This is a bug in vitquant. Fix: please report it, with the output of --debug.",
        UNEXPECTED,
    )


def interrupted(written: Sequence[Path]) -> str:
    """The message after an interruption."""
    if not written:
        return "interrupted; nothing was written. Run the same command to start again."
    names = ", ".join(map(str, dict.fromkeys(written)))
    return f"interrupted; {names} {'is' if len(set(written)) == 1 else 'are'} completely written."


def show_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    """Print a warning as one line, without the source line that raised it."""
    streams.note(f"warning: {message}")


if __name__ == "__main__":
    sys.exit(main())
