"""Atomic exchange of two folders, safe against kills and power failures."""

from __future__ import annotations

import ctypes
import os
import sys
from pathlib import Path

AT_FDCWD, RENAME_EXCHANGE = -100, 2
RENAME_SWAP = 2
MOST_ENTRIES = 256
"""A folder with more entries contains more than results and is not exchanged."""


def exchange(first: Path, second: Path) -> bool:
    """Exchange two paths of one file system atomically; ``False`` if the operating or file system does not support it.

    Uses ``renameat2`` on Linux (since 3.15, not on every file system) and ``renamex_np`` on macOS.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    a, b = os.fsencode(first), os.fsencode(second)
    if sys.platform == "linux" and hasattr(libc, "renameat2"):
        return bool(libc.renameat2(AT_FDCWD, a, AT_FDCWD, b, ctypes.c_uint(RENAME_EXCHANGE)) == 0)
    if sys.platform == "darwin" and hasattr(libc, "renamex_np"):
        return bool(libc.renamex_np(a, b, ctypes.c_uint(RENAME_SWAP)) == 0)
    return False


def may_move(folder: Path) -> bool:
    """Whether a folder can be replaced by another one safely.

    It must contain a moderate number of plain files and nothing else. It must not be a mount point, a home folder, or
    the current folder of this process (and so of the shell that started it) or a parent of it.
    """
    if os.path.ismount(folder) or folder == Path.home() or folder in (here := Path.cwd(), *here.parents):
        return False
    with os.scandir(folder) as entries:
        for count, entry in enumerate(entries, start=1):
            if count > MOST_ENTRIES or not entry.is_file(follow_symlinks=False):
                return False
    return True
