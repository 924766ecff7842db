"""Writing files so that an interrupted run leaves the old ones whole."""

from __future__ import annotations

import errno
import json
import math
import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from vitquant.errors import WriteError


def write_atomically(path: Path, data: bytes | str) -> None:
    """Write beside ``path``, flush to disk, rename. Whoever looks sees the old file or the new one, never a part.

    Raises:
        WriteError: the system does not let us, or something that is no file, such as ``/dev/null``, has the name.
    """
    with writing(path):
        write_together({path: data})


def write_together(files: Mapping[Path, bytes | str]) -> None:
    """The same for files that belong together: none is renamed before all are written, in the order given.

    Raises:
        WriteError: something that is no file, such as ``/dev/null``, has one of the names.
        OSError: the system does not let us; :func:`writing` words it for people.
    """
    staged: dict[Path, Path] = {}
    try:
        for path, data in files.items():
            real = replaceable(path)
            handle, temporary = tempfile.mkstemp(prefix=f".{real.name[:40]}.", dir=real.parent)
            staged[real] = Path(temporary)
            with os.fdopen(handle, "wb") as file:
                file.write(data.encode() if isinstance(data, str) else data)
                file.flush()
                os.fsync(file.fileno())
            os.chmod(temporary, 0o644)
        for real, ready in staged.items():
            os.replace(ready, real)
    except BaseException:
        for leftover in staged.values():
            leftover.unlink(missing_ok=True)
        raise


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """What the system refuses in this block, as an error that names the file.

    Raises:
        WriteError: a file or folder cannot be written.
    """
    try:
        yield
    except WriteError:
        raise
    except OSError as error:
        raise WriteError(error.strerror or str(error), where=str(path)) from error


def make_folder(folder: Path) -> None:
    """Make a folder and those above it, where they are not there.

    Raises:
        WriteError: they cannot be made.
    """
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)


def require_room(folder: Path) -> None:
    """See to it, before long work, that a folder is there or can be made, and that files can be put into it.

    Raises:
        WriteError: it cannot, or they cannot.
    """
    with writing(folder):
        folder.exists()  # a name that is too long, or links in a circle
        nearest = next(path for path in (folder, *folder.absolute().parents) if path.exists())
        if not nearest.is_dir():
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
        if not os.access(nearest, os.W_OK | os.X_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))


def replaceable(path: Path) -> Path:
    """Where a path leads, if a file may be put there: through links, and not onto devices, pipes or folders.

    Raises:
        WriteError: something that is no file has the name.
    """
    real = Path(os.path.realpath(path))
    if real.exists() and not real.is_file():
        got = "a folder" if real.is_dir() else "a device or a pipe"
        raise WriteError("not a file", where=str(path), got=got, expected="a new name, or that of a file")
    return real


def json_text(value: Any) -> str:
    """A value as indented JSON. NaN and the infinities, which JSON does not have, become ``null``."""
    return json.dumps(finite(value), indent=2, allow_nan=False)


def finite(value: Any) -> Any:
    """The same without NaN and infinities."""
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
