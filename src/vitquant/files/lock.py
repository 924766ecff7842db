"""A lock that allows one writer at a time."""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from vitquant.errors import OutputError

PATIENCE = 60.0
"""Seconds to wait for another writer. Writing takes well under one second unless a slow disk is flushed."""
NO_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS, errno.EINVAL)
"""Errors of file systems without locks; readers still compare the runs of the files."""


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Lock an existing folder within the block. The lock creates no file and ends with the process.

    Raises:
        OutputError: another process has held it for a minute.
        OSError: the folder cannot be opened.
    """
    try:
        from fcntl import LOCK_EX, LOCK_NB, flock
    except ImportError:  # this platform has no such locks
        yield
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        end = time.monotonic() + PATIENCE
        while True:
            try:
                flock(handle, LOCK_EX | LOCK_NB)
                break
            except BlockingIOError as error:
                if time.monotonic() > end:
                    raise OutputError(
                        "another process has been writing here for a minute", where=str(folder), fix="try again later"
                    ) from error
                time.sleep(0.01)
            except OSError as error:
                if error.errno not in NO_LOCKS:
                    raise
                break
        yield
    finally:
        os.close(handle)
