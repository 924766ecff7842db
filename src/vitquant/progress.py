"""The terminal as rich sees it, and progress bars: on standard error, and only where somebody watches."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, TextIO, TypeVar

if TYPE_CHECKING:
    from rich.console import Console

T = TypeVar("T")

NARROWEST = 60
"""Columns, however few the terminal says it has: a table needs some."""

PIPED = 120
"""Columns where nobody watches."""


def console(stream: TextIO) -> Console:
    """A stream to print tables on. Text is text: no markup, no emoji codes.

    The size is found here, as rich stumbles over some values of ``COLUMNS`` and ``LINES``.
    """
    from rich.console import Console

    size = shutil.get_terminal_size()
    width = max(size.columns, NARROWEST) if stream.isatty() else PIPED
    return Console(file=stream, width=width, height=max(size.lines, 2), markup=False, emoji=False, highlight=False)


def track(items: Iterable[T], what: str, total: int | None = None) -> Iterator[T]:
    """Pass the items on, drawing a bar as they go; silent when standard error is not a terminal."""
    if sys.stderr is None or sys.stderr.closed or not sys.stderr.isatty():
        yield from items
        return
    from rich.progress import track as rich_track

    yield from rich_track(items, what, total=total, console=console(sys.stderr), transient=True)
