"""Numbers as text."""

from __future__ import annotations

from vitquant.results import IDENTICAL_DB


def decibels(ratio: float | None, digits: int = 1) -> str:
    """An SQNR with its unit; ``identical`` for equal tensors, empty for ``None``.

    >>> decibels(37.46), decibels(300.0), decibels(None)
    ('37.5 dB', 'identical', '')
    """
    if ratio is None:
        return ""
    return "identical" if ratio >= IDENTICAL_DB else f"{ratio:.{digits}f} dB"


def marked(text: str, estimated: bool) -> str:
    """A number as text, ``~`` before it if it is an estimate.

    >>> marked("37.5 dB", True), marked("37.5 dB", False), marked("identical", True)
    ('~37.5 dB', '37.5 dB', 'identical')
    """
    return f"~{text}" if estimated and text[-1:] == "B" else text


def percent(value: float | None) -> str:
    """A percentage; empty for ``None``."""
    return "" if value is None else f"{value:.2f} %"


def megabytes(size: float | None) -> str:
    """A size in MB (10^6 bytes); empty for ``None``."""
    return "" if size is None else f"{size:.1f} MB"


def difference(before: float | None, after: float | None, unit: str, digits: int = 1) -> str:
    """A change with its sign; empty where one of the values is missing or, for an SQNR, ``identical``.

    >>> difference(37.5, 36.25, "dB"), difference(300.0, 40.0, "dB"), difference(None, 1.0, "%")
    ('-1.2 dB', '', '')
    """
    if before is None or after is None:
        return ""
    if unit == "dB" and max(before, after) >= IDENTICAL_DB:
        return ""
    return f"{round(after - before, digits) + 0.0:+.{digits}f} {unit}"  # -0.0 becomes +0.0
