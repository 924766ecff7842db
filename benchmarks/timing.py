"""Ratios that survive a busy machine: the compared things take turns, and medians are taken."""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable, Mapping
from statistics import median
from typing import TypeVar

Work = Callable[[], object]
Clock = Callable[[], float]
Key = TypeVar("Key", bound=Hashable)

CLOCKS: Mapping[str, Clock] = {"wall": time.perf_counter, "cpu": time.process_time}
"""Processor time is for machines that have other work; it only makes sense with one thread."""


def seconds(work: Work, clock: Clock = time.perf_counter) -> float:
    """How long one run takes."""
    start = clock()
    work()
    return clock() - start


def ratio_to(base: Work, work: Work, rounds: int, clock: Clock = time.perf_counter) -> tuple[float, float]:
    """How long ``work`` takes: as a multiple of ``base``, and in seconds; medians over the rounds.

    Each round times base, work, base, and divides by the mean of the two bases, so that a load that comes or goes
    slowly falls on both sides.
    """
    ratios, times = [], []
    before = seconds(base, clock)
    for _ in range(rounds):
        taken = seconds(work, clock)
        after = seconds(base, clock)
        ratios.append(2 * taken / (before + after))
        times.append(taken)
        before = after
    return median(ratios), median(times)


def taking_turns(works: Mapping[Key, Work], rounds: int) -> dict[Key, list[float]]:
    """Seconds of each work in each round; every second round goes backwards."""
    times: dict[Key, list[float]] = {name: [] for name in works}
    for turn in range(rounds):
        for name in list(works)[:: -1 if turn % 2 else 1]:
            times[name].append(seconds(works[name]))
    return times
