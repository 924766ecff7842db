"""The command line: each command is one library call. Importing this module imports no torch and no command."""

from __future__ import annotations

import argparse
import sys
import traceback
import warnings
from collections.abc import Iterable, Sequence
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
"""What is left is a fault of vitquant's; the number is ``EX_SOFTWARE`` of ``sysexits.h``."""

SIGNALLED = 128
INTERRUPTED = SIGNALLED + 2
CLOSED_PIPE = SIGNALLED + 13


class Command(Protocol):
    """A command: adds itself to the parser, with ``run`` among its defaults."""

    def add_to(self, commands: argparse._SubParsersAction[Any], /) -> None: ...


class Parser(argparse.ArgumentParser):
    """A parser whose errors hold one line of printable text, whatever was typed."""

    def error(self, message: str) -> NoReturn:
        super().error(printable(message))

    def _print_message(self, message: str, file: Any = None) -> None:
        if file is sys.stdout:
            file.write(message)  # argparse keeps to itself that it cannot
        else:
            super()._print_message(message, file)


def all_commands() -> Iterable[Command]:
    """The commands, in the order of the help."""
    from vitquant.cli import bench, check, config, demo, evaluate, export, quantize, run

    return demo, quantize, check, evaluate, run, bench, export, config


def build_parser(commands: Iterable[Command] | None = None) -> argparse.ArgumentParser:
    """The parser with these commands, or with all."""
    parser = Parser(prog="vitquant", description="Quantize Vision Transformers, layer by layer.")
    parser.add_argument("--version", action="version", version=f"vitquant {__version__}")
    parts = parser.add_subparsers(metavar="COMMAND", required=True)
    for command in all_commands() if commands is None else commands:
        command.add_to(parts)
    return parser


def main(argv: Sequence[str] | None = None, *, commands: Iterable[Command] | None = None) -> int:
    """Run one command and return the exit code.

    0: done; 1: a ``--fail-under`` was not met; 2: user input; 3: data or numerics; 4: environment; 70: a fault of
    vitquant's; 128 and a signal's number: stopped by it. This is the one place where errors end, and no traceback
    leaves it without ``--debug``.

    Args:
        argv: the arguments; those of the process if not given. Where they are given, somebody calls us from Python, and
            signals are left to them.
        commands: which there are; all of vitquant's if not given.

    Raises:
        SystemExit: ``--help`` and ``--version`` (0), wrong usage (2).
    """
    catch = stoppable() if argv is None else nullcontext(lambda: None)
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
        except BaseException as error:  # also what is no Exception, such as the panic of a library in Rust
            return explain(error, debug="--debug" in argv, written=written)
        finally:
            streams.close()
    return 0


def attempt(argv: Sequence[str], commands: Iterable[Command] | None) -> None:
    """Read the arguments and run the command; all that it printed is written when this returns."""
    try:
        args = build_parser(commands).parse_args(argv)
        args.run(args)
    except SystemExit:
        streams.flush()
        raise
    streams.flush()


def explain(error: BaseException, debug: bool, written: Sequence[Path] = ()) -> int:
    """Say what went wrong in one line on standard error, with the traceback if it was asked for; the exit code.

    ``written`` are the files and folders that were completely written before.
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
        return "memory: there is not enough of it. Fix: take a smaller batch, or fewer images.", ENVIRONMENT
    what = printable(f"{type(error).__name__}: {error}" if str(error) else type(error).__name__, MAX_PART)
    if isinstance(error, Warning):
        return f"{what}. This is a warning, which -W error or PYTHONWARNINGS makes an error.", ENVIRONMENT
    return f"unexpected {what}. This is a fault in vitquant. Fix: please report it, with what --debug adds.", UNEXPECTED


def interrupted(written: Sequence[Path]) -> str:
    """What Ctrl-C and its like leave behind."""
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
    """A warning as a line for people, without the source line that raised it."""
    streams.note(f"warning: {message}")


if __name__ == "__main__":
    sys.exit(main())
