"""Reading untrusted files: regular files of limited size, and JSON that all readers interpret the same way."""

from __future__ import annotations

import json
import math
import os
import stat
from pathlib import Path
from typing import Any, NoReturn

from vitquant.errors import VitquantError

MAX_MANIFEST_BYTES = 2**22
"""Most bytes of a JSON file: a few hundred bytes per layer, thousands of blocks."""

MAX_DEPTH = 8
"""Deepest nesting of brackets; files of vitquant need six levels."""

MAX_DIGITS = 20
"""Most digits of an integer."""


def read_file(path: Path, limit: int, what: str, kind: type[VitquantError]) -> bytes:
    """A whole file, called ``what`` in messages, if it is a regular file (or a link to one) of at most ``limit`` bytes.

    Raises:
        VitquantError: of class ``kind``: missing, unreadable, too large, or a folder, pipe or device (the call does not
            wait for any of these).
    """
    try:
        require_regular(os.stat(path), path, limit, kind)
        with os.fdopen(os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0)), "rb") as file:
            status = os.fstat(file.fileno())
            require_regular(status, path, limit, kind)  # it may have been replaced
            data = file.read(status.st_size + 1)
    except OSError as error:
        raise kind(f"cannot read {what}: {error.strerror or error}", where=str(path)) from error
    except ValueError as error:  # such as a zero byte in the path
        raise kind(f"cannot read {what}: {error}", where=ascii(str(path))) from error
    if len(data) > status.st_size:
        raise kind("the file changed while it was being read", where=str(path))
    return data


def require_regular(status: os.stat_result, path: Path, limit: int, kind: type[VitquantError]) -> None:
    """Check that a file is a regular file and not too large.

    Raises:
        VitquantError: of class ``kind``.
    """
    if not stat.S_ISREG(status.st_mode):
        raise kind("not a file", where=str(path), expected="a regular file")
    if status.st_size > limit:
        got, expected = f"{status.st_size} bytes", f"at most {limit}"
        raise kind("the file is too large", where=str(path), got=got, expected=expected)


def parse_json(data: bytes, where: str, what: str, kind: type[VitquantError]) -> Any:
    """JSON without duplicate keys, NaN, infinity, overlong numbers or deep nesting.

    Raises:
        VitquantError: of class ``kind``.
    """

    def refuse(problem: str) -> NoReturn:
        raise kind(problem, where=where)

    def whole_number(digits: str) -> int:
        return int(digits) if len(digits) <= MAX_DIGITS else refuse("a number has too many digits")

    def fraction(digits: str) -> float:
        number = float(digits)
        return number if math.isfinite(number) else refuse("a number is too large")

    def no_number(name: str) -> float:
        refuse(f"{name} is not allowed")

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        return found if len(found) == len(pairs) else refuse("an object has a duplicate key")

    hooks: dict[str, Any] = {"parse_int": whole_number, "parse_float": fraction, "parse_constant": no_number}
    try:
        found = json.loads(data.decode(), object_pairs_hook=once, **hooks)
        if not check_json(found, MAX_DEPTH):
            raise kind(f"{what} is nested too deeply", where=where, expected=f"at most {MAX_DEPTH} levels")
    except (ValueError, RecursionError) as error:
        raise kind(f"{what} is not JSON: {str(error)[:200]}", where=where) from error
    return found


def check_json(found: Any, depth: int) -> bool:
    """Whether brackets are nested at most ``depth`` deep.

    Raises:
        UnicodeEncodeError: a string contains half of a surrogate pair.
    """
    if isinstance(found, str):
        found.encode()
    if isinstance(found, dict | list):
        if not depth:
            return False
        for part in found:
            if not check_json(part, depth - 1):
                return False
        for part in found.values() if isinstance(found, dict) else ():
            if not check_json(part, depth - 1):
                return False
    return True
