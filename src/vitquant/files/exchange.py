"""Two folders exchanged in one step, which neither a kill nor a power failure can cut in two."""

from __future__ import annotations

import ctypes
import os
import sys
from pathlib import Path

AT_FDCWD, RENAME_EXCHANGE = -100, 2
RENAME_SWAP = 2
MOST_ENTRIES = 256
"""A folder with more entries is not one of results only, and is left where it is."""


def exchange(first: Path, second: Path) -> bool:
    """Let two paths of one file system change places, atomically; ``False`` where the system or its files cannot.

    Linux has ``renameat2`` for it (since 3.15, not on every file system), macOS ``renamex_np``.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    a, b = os.fsencode(first), os.fsencode(second)
    if sys.platform == "linux" and hasattr(libc, "renameat2"):
        return bool(libc.renameat2(AT_FDCWD, a, AT_FDCWD, b, ctypes.c_uint(RENAME_EXCHANGE)) == 0)
    if sys.platform == "darwin" and hasattr(libc, "renamex_np"):
        return bool(libc.renamex_np(a, b, ctypes.c_uint(RENAME_SWAP)) == 0)
    return False


def may_move(folder: Path) -> bool:
    """Whether a folder can be replaced by another one without harm to what else is in it or stands in it.

    It must hold a moderate number of plain files and nothing else, be no mount point and not the folder of a user, and
    this process (and so the shell that started it) must not stand in it.
    """
    if os.path.ismount(folder) or folder == Path.home() or folder in (here := Path.cwd(), *here.parents):
        return False
    with os.scandir(folder) as entries:
        for count, entry in enumerate(entries, start=1):
            if count > MOST_ENTRIES or not entry.is_file(follow_symlinks=False):
                return False
    return True
