"""The console for rich tables, and progress bars, which are shown on standard error if it is a terminal."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, TextIO, TypeVar

if TYPE_CHECKING:
    from rich.console import Console

T = TypeVar("T")

NARROWEST = 60
"""Fewest columns of a table, even in a narrower terminal."""

PIPED = 120
"""Columns if the stream is not a terminal."""


def console(stream: TextIO) -> Console:
    """A console that prints tables to a stream. Markup and emoji codes are not interpreted.

    The size is computed here because rich fails on some values of ``COLUMNS`` and ``LINES``.
    """
    from rich.console import Console

    size = shutil.get_terminal_size()
    width = max(size.columns, NARROWEST) if stream.isatty() else PIPED
    return Console(file=stream, width=width, height=max(size.lines, 2), markup=False, emoji=False, highlight=False)


def track(items: Iterable[T], what: str, total: int | None = None) -> Iterator[T]:
    """Iterate over the items and draw a progress bar; no bar if standard error is not a terminal."""
    if sys.stderr is None or sys.stderr.closed or not sys.stderr.isatty():
        yield from items
        return
    from rich.progress import track as rich_track

    yield from rich_track(items, what, total=total, console=console(sys.stderr), transient=True)
