"""Standard output and standard error. Untrusted names are escaped before they are printed."""

from __future__ import annotations

import io
import os
import sys
from contextlib import suppress
from typing import TextIO

from vitquant.errors import OutputError, printable


def prepare() -> None:
    """Make both streams writable.

    A stream that was closed before the start is replaced by the null device; otherwise the next opened file would get
    its number. Characters that the encoding lacks are escaped, so that no name can cause an error.
    """
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        stream = getattr(sys, name)
        if stream is None or stream.closed:
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def say(text: str) -> None:
    """Print a line on standard output."""
    print(printable(text))


def note(text: str) -> None:
    """Print a line on standard error. Write errors are ignored; the exit code reports the result."""
    try:
        print(printable(text), file=sys.stderr, flush=True)
    except OSError:
        discard(sys.stderr)


def block(text: str) -> None:
    """Print lines on standard error, such as a message followed by a line of a file."""
    for line in text.split("\n"):
        note(line)


def flush() -> None:
    """Flush standard output.

    Raises:
        BrokenPipeError: the reader, such as ``head``, has closed the pipe.
        OutputError: it cannot be written, as on a full disk.
    """
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        raise
    except OSError as error:
        raise OutputError(error.strerror or str(error), where="standard output") from error


def close() -> None:
    """Discard output that cannot be written; Python would otherwise report an error at exit."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:
            discard(stream)


def discard(stream: TextIO) -> None:
    """Redirect a stream, with its buffered output, to the null device."""
    with suppress(OSError, ValueError):  # a stream without a file descriptor has nothing to flush
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, stream.fileno())
        os.close(null)
