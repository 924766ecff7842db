"""Which threads use which points now: any number may compute with them, and one alone may change them."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from torch import nn

from vitquant.errors import LifecycleError

LOCK = threading.RLock()
"""Held for moments only: while uses are compared, and while many points change their mode together."""


@dataclass(frozen=True, eq=False)
class Use:
    """A thread at work on some points; ``alone`` if it changes them."""

    thread: int
    points: frozenset[nn.Module]
    alone: bool


_uses: list[Use] = []


@contextmanager
def using(points: Iterable[nn.Module], *, alone: bool = False) -> Iterator[None]:
    """Note for the block that this thread computes with the points, or (``alone``) that it changes them.

    Raises:
        LifecycleError: another thread changes one of these points, or is computing with one that this thread would
            change. Nobody waits: figures of a model that changes on the way would be wrong.
    """
    use = Use(threading.get_ident(), frozenset(points), alone)
    with LOCK:
        require_free(use)
        _uses.append(use)
    try:
        yield
    finally:
        with LOCK:
            _uses.remove(use)


def require_free(use: Use) -> None:
    """Refuse a use that another thread's rules out.

    Raises:
        LifecycleError: there is one.
    """
    for other in _uses:
        if other.thread == use.thread or not (use.alone or other.alone) or use.points.isdisjoint(other.points):
            continue
        raise LifecycleError(
            "the model is being calibrated or converted in another thread"
            if other.alone
            else "the model cannot be changed while another thread computes with it",
            where="model",
            fix="wait for that thread, or give each thread a model of its own (copy.deepcopy)",
        )
