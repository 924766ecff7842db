"""Numbers as text."""

from __future__ import annotations

IDENTICAL_DB = 300.0
"""The meters report this SQNR for equal tensors, since JSON has no infinity."""


def decibels(ratio: float | None, digits: int = 1) -> str:
    """An SQNR with its unit; ``identical`` for equal tensors, empty for ``None``.

    >>> decibels(37.46), decibels(300.0), decibels(None)
    ('37.5 dB', 'identical', '')
    """
    if ratio is None:
        return ""
    return "identical" if ratio >= IDENTICAL_DB else f"{ratio:.{digits}f} dB"
