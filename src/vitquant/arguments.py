"""Checks of what a caller gave to a public function. Each returns the value, or refuses it by name."""

from __future__ import annotations

import errno
import operator
import os
from pathlib import Path
from typing import TypeVar

from vitquant.errors import ConfigError

T = TypeVar("T")

MOST = 2**31 - 1
"""The largest number of anything that can be counted here."""


def require_kind(value: object, kind: type[T], where: str) -> T:
    """The value, if it is of this class.

    Raises:
        ConfigError: it is not.
    """
    if not isinstance(value, kind):
        raise ConfigError("wrong type", where=where, got=type(value).__name__, expected=kind.__name__)
    return value


def require_whole(value: object, where: str, low: int, high: int) -> int:
    """A whole number from ``low`` to ``high``; ``True`` and ``False`` are none.

    Raises:
        ConfigError: it is not.
    """
    try:
        number = None if isinstance(value, bool) else operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        number = None
    if number is None or not low <= number <= high:
        got = shown(value) if number is None else number
        raise ConfigError("bad value", where=where, got=got, expected=f"a whole number from {low} to {high}")
    return number


def require_count(value: object, where: str) -> int:
    """A number of images, of rounds, of anything: a whole number, at least 1.

    Raises:
        ConfigError: it is not.
    """
    return require_whole(value, where, 1, MOST)


def require_path(value: object, where: str) -> Path:
    """The path of a file or folder. An empty one is refused: it would mean the current folder.

    Raises:
        ConfigError: it is no path, is empty, is longer than the system takes, or holds the character NUL, which no file
            name can.
    """
    if not isinstance(value, str | os.PathLike) or not isinstance(text := os.fspath(value), str):
        raise ConfigError("not a path", where=where, got=shown(value), expected="a str or a pathlib.Path")
    if not text or "\0" in text:
        raise ConfigError(
            "not a path", where=where, got=text or "an empty name", expected="the name of a file or folder"
        )
    path = Path(text)
    try:
        path.lstat()
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:
            raise ConfigError("the name is too long", where=where, got=text) from error
    return path


def shown(value: object) -> str:
    """A small value as Python writes it, of anything else the type."""
    return repr(value) if value is None or isinstance(value, str | bytes | int | float) else type(value).__name__
