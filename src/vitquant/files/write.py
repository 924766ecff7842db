"""Atomic writing: files are written under temporary names, then renamed, or exchanged with their whole folder.

A folder of results is built under another name, flushed to disk, and exchanged with the existing folder in a single
step, so that it contains the files of one run at any time. If that is not possible (the folder is the current one, a
mount point, contains folders, or is on a file system without this operation), the files are renamed one by one. An
error rolls the renames back; after a kill the run ids of the files may differ, which readers detect.
"""

from __future__ import annotations

import errno
import hashlib
import os
import secrets
import shutil
from collections.abc import Collection, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from vitquant.errors import OutputError
from vitquant.files.exchange import exchange, may_move
from vitquant.files.interrupts import completed, uninterrupted
from vitquant.files.lock import locked

MARK = ".vitquant-"
"""Temporary names are ``.NAME.vitquant-...``; the next writer of NAME removes those left by a killed process."""


def write_atomically(path: str | Path, data: bytes | str) -> None:
    """Write one file, and the folders above it if they do not exist.

    Raises:
        OutputError: it cannot be written; an existing file is unchanged.
    """
    place = _real(path)
    with _naming(path), _parents(place), locked(place.parent):
        _sweep(place)
        _rename_each(place.parent, {place.name: data}, (), Path(path), {place.name: Path(path)})


def write_folder(folder: str | Path, files: Mapping[str, bytes | str], *, remove: Collection[str] = ()) -> None:
    """Write files that belong together into a folder, which is created if necessary.

    Args:
        folder: the destination. Other files in it are kept.
        files: name to content; if they must be renamed one by one, in this order.
        remove: names of files to remove if they exist.

    Raises:
        OutputError: they cannot be written; the folder is unchanged, or still does not exist.
    """
    place, shown = _real(folder), Path(folder)
    with _naming(folder), _parents(place), ExitStack() as locks:
        locks.enter_context(locked(place.parent))
        _sweep(place)
        if not os.path.lexists(place):
            _replace(place, files, remove, shown)
            return
        _require_folder(place, shown)
        locks.enter_context(locked(place))
        if not may_move(place) or not _replace(place, files, remove, shown):
            for name in files:
                _sweep(place / name)
            _rename_each(place, files, remove, shown, {name: shown / name for name in (*files, *remove)})


def require_writable(path: str | Path, *, folder: bool = False, space: int = 0) -> None:
    """Check before long work that a file or a folder can be written; nothing is left behind.

    Args:
        path: the file or the folder, existing or not.
        folder: whether ``path`` is a folder.
        space: bytes that will be needed.

    Raises:
        OutputError: it cannot be written, is of the other kind, or there is less space than needed.
    """
    target = _real(path)
    with _naming(path):
        place = next(p for p in (target, *target.parents) if os.path.lexists(p))
        if folder and place == target:
            _require_folder(target, Path(path))
        if not folder:
            _require_file(target, Path(path))
        place = place if place.is_dir() or place != target else place.parent
        with suppress(FileNotFoundError):
            os.lstat(target)  # a name may be longer than the file system allows
        probe = _aside(place / target.name)
        try:
            _write(probe, b"\0" * 4096, Path(path))
        finally:
            probe.unlink(missing_ok=True)
        free = shutil.disk_usage(place).free
    if free < space:
        raise OutputError(
            "not enough disk space",
            where=str(path),
            got=f"{free / 1e6:.1f} MB free",
            expected=f"at least {space / 1e6:.1f} MB",
        )


def _replace(place: Path, files: Mapping[str, bytes | str], remove: Collection[str], shown: Path) -> bool:
    """Build the new folder next to the old one, and exchange the two; ``False`` if that is not possible."""
    there = place.exists()
    staged = _aside(place)
    try:
        try:
            os.mkdir(staged)
        except PermissionError:
            if there:  # the folder itself may still be writable
                return False
            raise
        others = _adopt(place, staged, {*files, *remove}) if there else set()
        if others is None:
            return False
        for name, data in files.items():
            _write(staged / name, data, shown / name)
        _flush(staged)
        with uninterrupted():
            if not there:
                os.rename(staged, place)
            elif not exchange(staged, place):
                return False
            try:
                if there:
                    _rescue(staged, place, {*files, *remove, *others})
                _flush(place.parent)
            except OSError:
                # Whether the exchange is on disk is unknown, so it is undone: the folder must match the reported error.
                if there:
                    exchange(staged, place)
                else:
                    os.rename(place, staged)
                raise
            completed(shown)
    finally:
        shutil.rmtree(staged, ignore_errors=True)
    return True


def _adopt(place: Path, staged: Path, names: Collection[str]) -> set[str] | None:
    """Give the new folder the attributes and other files of the old one, as hard links.

    Returns the names of the other files, or ``None`` if that is not possible.
    """
    try:
        shutil.copystat(place, staged)
        old, new = place.stat(), staged.stat()
        if (old.st_uid, old.st_gid) != (new.st_uid, new.st_gid):
            os.chown(staged, old.st_uid, old.st_gid)
        others = {name for name in os.listdir(place) if name not in names and MARK not in name}
        for name in others:
            os.link(place / name, staged / name, follow_symlinks=False)
    except (OSError, NotImplementedError):
        return None
    return others


def _rescue(old: Path, place: Path, known: Collection[str]) -> None:
    """Move files that were added to the old folder while the new one was being built."""
    for name in os.listdir(old):
        if name not in known and MARK not in name and not os.path.lexists(place / name):
            os.rename(old / name, place / name)


def _rename_each(
    place: Path, files: Mapping[str, bytes | str], remove: Collection[str], whole: Path, shown: Mapping[str, Path]
) -> None:
    """Write all files under temporary names, then rename them one by one; an error rolls the renames back.

    ``whole`` is the name of the result in the record of written files, ``shown`` the name of each file in errors.
    """
    staged, kept = ({name: _aside(place / name) for name in (*files, *remove)} for _ in range(2))
    for name in staged:
        _require_file(place / name, shown[name])
    try:
        for name, data in files.items():
            _write(staged[name], data, shown[name])
        with uninterrupted():
            try:
                for name in (*remove, *files):
                    _keep(place / name, kept[name])
                for name in remove:
                    (place / name).unlink(missing_ok=True)
                for name in files:
                    os.replace(staged[name], place / name)
                _flush(place)
            except OSError:
                for name in (*files, *remove):
                    _restore(place / name, kept[name], written=not staged[name].exists() and name in files)
                raise
            completed(whole)
    finally:
        for leftover in (*staged.values(), *kept.values()):
            with suppress(OSError):  # the next writer removes it
                leftover.unlink(missing_ok=True)


def _require_folder(path: Path, shown: Path) -> None:
    """Check that an existing path is a folder."""
    if not path.is_dir():
        got = "a file" if path.is_file() else "a device, a pipe or a dangling link"
        raise OutputError("not a folder", where=str(shown), got=got, expected="a new name or an existing folder")


def _require_file(path: Path, shown: Path) -> None:
    """Check that an existing path is not a folder, a device or a pipe."""
    if path.exists() and not path.is_file():
        got = "a folder" if path.is_dir() else "a device or a pipe"
        raise OutputError("not a file", where=str(shown), got=got, expected="a new name or an existing file")


def _keep(path: Path, kept: Path) -> None:
    """A second name for a file that will be replaced, if the file system has hard links."""
    try:
        os.link(path, kept, follow_symlinks=False)
    except (OSError, NotImplementedError):
        kept.unlink(missing_ok=True)


def _restore(path: Path, kept: Path, *, written: bool) -> None:
    """Undo a replacement: restore the old file, or remove the new one if there was none."""
    if kept.exists():
        os.replace(kept, path)
    elif written:
        path.unlink(missing_ok=True)


def _write(path: Path, data: bytes | str, shown: Path) -> None:
    """Write a new file and flush it to disk; the umask sets its permissions. Errors name ``shown``."""
    try:
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
        with os.fdopen(handle, "wb") as file:
            file.write(data.encode() if isinstance(data, str) else data)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise OutputError(f"cannot be written: {error.strerror or error}", where=str(shown)) from error


def _flush(folder: Path) -> None:
    """Flush the directory entries of a folder to disk."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _sweep(path: Path) -> None:
    """Remove temporary files left by a killed writer of the same file or folder. The caller holds the lock."""
    start = _start(path.name)
    for name in [name for name in os.listdir(path.parent) if name.startswith(start)]:
        leftover = path.parent / name
        if leftover.is_dir() and not leftover.is_symlink():
            shutil.rmtree(leftover, ignore_errors=True)
        else:
            leftover.unlink(missing_ok=True)


def _aside(path: Path) -> Path:
    """An unused temporary name next to a file or folder that will be written."""
    return path.with_name(_start(path.name) + secrets.token_hex(4))


def _start(name: str) -> str:
    """The common prefix of the temporary names of a file or folder, within the length limit of file systems."""
    short = name if len(os.fsencode(name)) <= 200 else hashlib.sha256(os.fsencode(name)).hexdigest()
    return f".{short}{MARK}"


@contextmanager
def _parents(folder: Path) -> Iterator[None]:
    """Create missing parent folders for the block, and remove them if it fails."""
    missing = [p for p in folder.parents if not p.exists()]
    if folder.parent.exists() and not folder.parent.is_dir():
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
    folder.parent.mkdir(parents=True, exist_ok=True)
    try:
        yield
    except BaseException:
        for made in missing:
            if any(made.iterdir()):
                break
            made.rmdir()
        raise


@contextmanager
def _naming(path: str | Path) -> Iterator[None]:
    """Convert operating system errors of the block to an ``OutputError`` that names the path."""
    try:
        yield
    except OutputError:
        raise
    except OSError as error:
        raise OutputError(f"cannot be written: {error.strerror or error}", where=str(path)) from error


def _real(path: str | Path) -> Path:
    """The path with links resolved, so that the file or folder is replaced, not a link to it."""
    return Path(os.path.realpath(path))
