"""Standard output and standard error, whatever they are connected to. Names from outside reach them escaped."""

from __future__ import annotations

import io
import os
import sys
from contextlib import suppress
from typing import TextIO

from vitquant.errors import OutputError, printable


def prepare() -> None:
    """Make both streams fit to be written to.

    A stream that was closed before we were started becomes one that drops everything; otherwise the next file that is
    opened would get its number. What an encoding lacks is escaped: no name can end a command.
    """
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        stream = getattr(sys, name)
        if stream is None or stream.closed:
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def say(text: str) -> None:
    """A line on standard output."""
    print(printable(text))


def note(text: str) -> None:
    """A line on standard error. Where it cannot be written, nobody can be told; the exit code says what matters."""
    try:
        print(printable(text), file=sys.stderr, flush=True)
    except OSError:
        discard(sys.stderr)


def block(text: str) -> None:
    """Lines on standard error, such as a message with the line of a file under it."""
    for line in text.split("\n"):
        note(line)


def flush() -> None:
    """Write out what standard output still holds.

    Raises:
        BrokenPipeError: whoever reads, such as ``head``, has read enough.
        OutputError: it cannot be written, as on a full disk.
    """
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        raise
    except OSError as error:
        raise OutputError(error.strerror or str(error), where="standard output") from error


def close() -> None:
    """Drop what a stream cannot write; Python would try again when it ends, and complain."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:
            discard(stream)


def discard(stream: TextIO) -> None:
    """Send a stream, with what it still holds, to the null device."""
    with suppress(OSError, ValueError):  # a stream without a file number holds nothing for Python to write
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, stream.fileno())
        os.close(null)
