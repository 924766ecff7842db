"""Writing files so that an interrupted run leaves the old ones whole."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping
from pathlib import Path


def write_atomically(path: Path, data: bytes | str) -> None:
    """Write beside ``path``, flush to disk, rename. Whoever looks sees the old file or the new one, never a part."""
    write_together({path: data})


def write_together(files: Mapping[Path, bytes | str]) -> None:
    """The same for files that belong together: none is renamed before all are written, in the order given."""
    staged: dict[Path, Path] = {}
    try:
        for path, data in files.items():
            handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
            staged[path] = Path(temporary)
            with os.fdopen(handle, "wb") as file:
                file.write(data.encode() if isinstance(data, str) else data)
                file.flush()
                os.fsync(file.fileno())
            os.chmod(temporary, 0o644)
        for path, ready in staged.items():
            os.replace(ready, path)
    except BaseException:
        for leftover in staged.values():
            leftover.unlink(missing_ok=True)
        raise
