"""Running out of memory: torch's many ways to say so, as one error that names the layer, the batch and the need."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from torch import Tensor

from vitquant.errors import OutOfMemoryError

MEMORY_ERRORS = (MemoryError, RuntimeError)
"""Classes that may mean it; :func:`is_out_of_memory` tells."""

PHRASES = ("out of memory", "can't allocate memory", "not enough memory", "unable to allocate")
REQUEST = re.compile(r"allocate ([\d.]+) ?(bytes|[KMGTP]i?B)", re.IGNORECASE)
UNITS = {"BYTES": 0, "K": 1, "M": 2, "G": 3, "T": 4, "P": 5}


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an allocation failed, on the CPU or on a device."""
    return isinstance(error, MemoryError) or any(phrase in str(error).lower() for phrase in PHRASES)


def out_of_memory(
    error: BaseException, where: str, tensor: Tensor | None = None, count: int | None = None
) -> OutOfMemoryError:
    """The error for the user. ``tensor`` is what entered the layer, the batch first; ``count`` is known without it."""
    count = len(tensor) if tensor is not None and tensor.ndim else count
    batch = "" if count is None else f" for a batch of {count}"
    smaller = "" if count is None else f" than {count}"
    fix = f"take a smaller batch{smaller}: --batch-size, or batch_size= in Python"
    if count == 1:
        fix = "take a smaller img_size, or a machine with more memory"
    return OutOfMemoryError("out of memory", where=where, got=f"{need(error, tensor)}{batch}", fix=fix)


def need(error: BaseException, tensor: Tensor | None) -> str:
    """What was asked for when memory ran out, as the message tells, else at least the size of the tensor."""
    told = REQUEST.search(str(error))
    if told is not None:
        unit = told[2].upper()
        size = float(told[1]) * 1024 ** UNITS.get(unit, UNITS.get(unit[0], 0))
        return f"a request for {readable(size)}"
    if tensor is None:
        return "a request of unknown size"
    return f"a request for about {readable(tensor.numel() * tensor.element_size())}"


def readable(size: float) -> str:
    """Bytes in the unit that suits them.

    >>> readable(3.2e9)
    '3.2 GB'
    """
    for unit in ("bytes", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:.3g} TB"


@contextmanager
def memory_named(where: str, tensor: Tensor | None = None, count: int | None = None) -> Iterator[None]:
    """Within the block, running out of memory is told as having happened at ``where``.

    Raises:
        OutOfMemoryError: it did.
    """
    try:
        yield
    except MEMORY_ERRORS as error:
        if not is_out_of_memory(error):
            raise
        raise out_of_memory(error, where, tensor, count) from error


T = TypeVar("T")


def each_named(batches: Iterable[T], where: str, count: int) -> Iterator[T]:
    """The batches, of at most ``count`` images each; running out of memory while one is made is told so.

    Raises:
        OutOfMemoryError: it did.
    """
    iterator = iter(batches)
    while True:
        with memory_named(where, count=count):
            batch = next(iterator, None)
        if batch is None:
            return
        yield batch
