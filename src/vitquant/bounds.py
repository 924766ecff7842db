"""Bounds of values that anybody may have written: a check, and how it is told."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, TypeAlias

Check: TypeAlias = tuple[Callable[[Any], bool], str]


def whole(low: int, high: int) -> Check:
    """A whole number within bounds; ``true`` is none."""
    return lambda v: type(v) is int and low <= v <= high, f"a whole number from {low} to {high}"


def pair(high: int) -> Check:
    """Height and width."""
    check, _ = whole(1, high)
    return lambda v: isinstance(v, list) and len(v) == 2 and all(map(check, v)), f"two whole numbers from 1 to {high}"


def number(low: float, high: float) -> Check:
    """A number within bounds."""
    return lambda v: type(v) in (int, float) and low <= v <= high, f"a number from {low:g} to {high:g}"


def colours(low: float, high: float) -> Check:
    """A number per colour."""
    check, told = number(low, high)
    return lambda v: isinstance(v, list) and len(v) in (1, 3) and all(map(check, v)), f"1 or 3 of {told}"


def one_of(*values: Any) -> Check:
    """One of a few."""
    told = " or ".join(json.dumps(value) for value in values)
    return lambda v: any(type(v) is type(value) and v == value for value in values), told


FLAG = one_of(True, False)
