"""Checks of the arguments of public functions. Each returns the value, or raises an error that names the argument."""

from __future__ import annotations

import errno
import operator
import os
from pathlib import Path
from typing import TypeVar

from vitquant.errors import ConfigError

T = TypeVar("T")

MOST = 2**31 - 1
"""Largest accepted count."""


def require_kind(value: object, kind: type[T], where: str) -> T:
    """The value, if it is of this class.

    Raises:
        ConfigError: it is not.
    """
    if not isinstance(value, kind):
        raise ConfigError("wrong type", where=where, got=type(value).__name__, expected=kind.__name__)
    return value


def require_whole(value: object, where: str, low: int, high: int) -> int:
    """An integer from ``low`` to ``high``; ``True`` and ``False`` are not accepted.

    Raises:
        ConfigError: it is not.
    """
    try:
        number = None if isinstance(value, bool) else operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        number = None
    if number is None or not low <= number <= high:
        got = shown(value) if number is None else number
        raise ConfigError("bad value", where=where, got=got, expected=f"an integer from {low} to {high}")
    return number


def require_count(value: object, where: str) -> int:
    """A count, such as a number of images or rounds: an integer of at least 1.

    Raises:
        ConfigError: it is not.
    """
    return require_whole(value, where, 1, MOST)


def require_path(value: object, where: str) -> Path:
    """The path of a file or folder. An empty path is an error: it would mean the current folder.

    Raises:
        ConfigError: it is not a path, is empty, is longer than the system allows, or contains the character NUL, which
            no file name can.
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
    """The ``repr`` of a simple value; for any other value, its type."""
    return repr(value) if value is None or isinstance(value, str | bytes | int | float) else type(value).__name__
