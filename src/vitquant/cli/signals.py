"""Ctrl-C and termination signals: each raises an exception, so that files are left complete."""

from __future__ import annotations

import math
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

GRACE = 2.0
"""Seconds for cleaning up, during which further signals are ignored. One Ctrl-C is often delivered twice."""

STOPS: dict[int, Any] = {
    signal.SIGINT: signal.default_int_handler,
    **{number: signal.SIG_DFL for name in ("SIGTERM", "SIGHUP") if (number := getattr(signal, name, None))},
}
"""The signals, with their default handlers."""


class Stopped(KeyboardInterrupt):
    """The signal ``number`` was received."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


@contextmanager
def stoppable() -> Iterator[Callable[[], None]]:
    """Raise :class:`Stopped` in the block when one of the signals is received; ignore another one soon after it.

    Yields a function that makes the block ignore all further signals, for its last messages.

    A signal that is already ignored or handled is not changed: shells start background jobs with Ctrl-C ignored, and
    ``nohup`` ignores the end of the terminal.
    """
    ignored_until = 0.0

    def stop(number: int, _: FrameType | None) -> None:
        nonlocal ignored_until
        now = time.monotonic()
        if now >= ignored_until:
            ignored_until = now + GRACE
            raise Stopped(number)

    def disarm() -> None:
        nonlocal ignored_until
        ignored_until = math.inf

    ours = []
    if threading.current_thread() is threading.main_thread():
        ours = [number for number, default in STOPS.items() if signal.getsignal(number) == default]
    for number in ours:
        signal.signal(number, stop)
    try:
        yield disarm
    finally:
        for number in ours:
            signal.signal(number, STOPS[number])
