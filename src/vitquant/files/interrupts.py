"""Delaying Ctrl-C and SIGTERM while files are replaced, and a record of the files written."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from types import FrameType
from typing import Any

SIGNALS = (signal.SIGINT, signal.SIGTERM)
_written: ContextVar[list[Path] | None] = ContextVar("written", default=None)


@contextmanager
def recording() -> Iterator[list[Path]]:
    """Record every file and folder that is completely written within the block, in order of completion."""
    written: list[Path] = []
    token = _written.set(written)
    try:
        yield written
    finally:
        _written.reset(token)


def completed(path: Path) -> None:
    """Record that a file or folder is completely written."""
    if (written := _written.get()) is not None:
        written.append(path)


@contextmanager
def uninterrupted() -> Iterator[None]:
    """Delay signals until the end of the block, then run their handlers.

    Only Python handlers can be delayed, and only in the main thread; Python delivers signals to no other thread.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    held: list[tuple[Callable[[int, FrameType | None], Any], int]] = []
    handlers: dict[int, Any] = {number: signal.getsignal(number) for number in SIGNALS}

    def hold(number: int, frame: FrameType | None) -> None:
        handler = handlers[number]
        if callable(handler):
            held.append((handler, number))

    replaced: list[int] = [number for number, handler in handlers.items() if callable(handler)]
    for number in replaced:
        signal.signal(number, hold)
    try:
        yield
    finally:
        for number in replaced:
            signal.signal(number, handlers[number])
        for handler, number in held[:1]:
            handler(number, None)
