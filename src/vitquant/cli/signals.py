"""Ctrl-C, and the signals with which systems stop a command: each unwinds it, so that files are left whole."""

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
"""Seconds to clean up in. Terminals and the tools between them and us often pass one Ctrl-C on twice."""

STOPS: dict[int, Any] = {
    signal.SIGINT: signal.default_int_handler,
    **{number: signal.SIG_DFL for name in ("SIGTERM", "SIGHUP") if (number := getattr(signal, name, None))},
}
"""The signals, and what they do where nobody has asked for anything else."""


class Stopped(KeyboardInterrupt):
    """One of the signals came; ``number`` says which."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


@contextmanager
def stoppable() -> Iterator[Callable[[], None]]:
    """Raise :class:`Stopped` where one of the signals finds the block; another one soon after it is ignored.

    Gives a function after whose call they are all ignored, for the block's last words.

    A signal that the caller ignores or handles is left alone: shells start background jobs deaf to Ctrl-C, and
    ``nohup`` deaf to the end of the terminal.
    """
    deaf_until = 0.0

    def stop(number: int, _: FrameType | None) -> None:
        nonlocal deaf_until
        now = time.monotonic()
        if now >= deaf_until:
            deaf_until = now + GRACE
            raise Stopped(number)

    def disarm() -> None:
        nonlocal deaf_until
        deaf_until = math.inf

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
