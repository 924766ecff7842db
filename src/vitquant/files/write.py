"""Files written beside their place and then put there: one by a rename, several by an exchange of their folder.

A folder of results is built as a whole under another name, flushed to disk, and exchanged with the one that was there
in a single step, so that it holds the files of one run at any time. Where that cannot be (the folder is the current
one, a mount point, holds folders, or is on a file system without such a step) the files are renamed one after the
other; an error on the way is taken back, and after a kill the files' run ids differ, which readers refuse.
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
"""What is under way is called ``.NAME.vitquant-...``; the next writer of the same name sweeps what a kill left."""


def write_atomically(path: str | Path, data: bytes | str) -> None:
    """Write one file, and the folders above it if they do not exist.

    Raises:
        OutputError: it cannot be written; a file that was there is as it was.
    """
    place = _real(path)
    with _naming(path), _parents(place), locked(place.parent):
        _sweep(place)
        _rename_each(place.parent, {place.name: data}, (), Path(path), {place.name: Path(path)})


def write_folder(folder: str | Path, files: Mapping[str, bytes | str], *, remove: Collection[str] = ()) -> None:
    """Write files that belong together into a folder, which is made if it does not exist.

    Args:
        folder: where to. What else is in it stays.
        files: name to content; where they must be renamed one by one, it happens in this order.
        remove: names of files that are to go, if they are there.

    Raises:
        OutputError: they cannot be written; the folder is as it was, or is still not there.
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
    """Find out before long work whether a file or a folder can be written; nothing stays behind.

    Args:
        path: of the file or the folder, there already or not.
        folder: which of the two it is to be.
        space: bytes that will be needed.

    Raises:
        OutputError: it cannot be written, it is the other of the two, or there is less space than needed.
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
            os.lstat(target)  # a name may be longer than the file system takes
        probe = _aside(place / target.name)
        try:
            _write(probe, b"\0" * 4096, Path(path))
        finally:
            probe.unlink(missing_ok=True)
        free = shutil.disk_usage(place).free
    if free < space:
        raise OutputError(
            "not enough space on the disk",
            where=str(path),
            got=f"{free / 1e6:.1f} MB free",
            expected=f"at least {space / 1e6:.1f} MB",
        )


def _replace(place: Path, files: Mapping[str, bytes | str], remove: Collection[str], shown: Path) -> bool:
    """Build the folder anew beside its place, and exchange the two; ``False`` where that cannot be done."""
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
                # Whether the step would last is unknown, so it is taken back: what is reported must be what is there.
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
    """Give the new folder the old one's attributes and other files, as hard links; ``None`` where that cannot be.

    Returns the names of the other files.
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
    """Bring over what somebody put into the old folder while the new one was being built."""
    for name in os.listdir(old):
        if name not in known and MARK not in name and not os.path.lexists(place / name):
            os.rename(old / name, place / name)


def _rename_each(
    place: Path, files: Mapping[str, bytes | str], remove: Collection[str], whole: Path, shown: Mapping[str, Path]
) -> None:
    """Write all files beside their places, and only then rename one after the other; an error is taken back.

    ``whole`` is what the record calls what was written, ``shown`` what errors call each file.
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
            with suppress(OSError):  # the next writer sweeps it
                leftover.unlink(missing_ok=True)


def _require_folder(path: Path, shown: Path) -> None:
    """Refuse to take something else for a folder."""
    if not path.is_dir():
        got = "a file" if path.is_file() else "a device, a pipe or a link that leads nowhere"
        raise OutputError("not a folder", where=str(shown), got=got, expected="a new name, or that of a folder")


def _require_file(path: Path, shown: Path) -> None:
    """Refuse to put a file in the place of a folder, a device or a pipe."""
    if path.exists() and not path.is_file():
        got = "a folder" if path.is_dir() else "a device or a pipe"
        raise OutputError("not a file", where=str(shown), got=got, expected="a new name, or that of a file")


def _keep(path: Path, kept: Path) -> None:
    """A second name for a file that is going to be replaced, where the file system has hard links."""
    try:
        os.link(path, kept, follow_symlinks=False)
    except (OSError, NotImplementedError):
        kept.unlink(missing_ok=True)


def _restore(path: Path, kept: Path, *, written: bool) -> None:
    """The inverse: the old file is back, or the new one is gone where there was none."""
    if kept.exists():
        os.replace(kept, path)
    elif written:
        path.unlink(missing_ok=True)


def _write(path: Path, data: bytes | str, shown: Path) -> None:
    """Write a new file and flush it to disk; its permissions are what the umask asks for. Errors name ``shown``."""
    try:
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
        with os.fdopen(handle, "wb") as file:
            file.write(data.encode() if isinstance(data, str) else data)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise OutputError(f"cannot be written: {error.strerror or error}", where=str(shown)) from error


def _flush(folder: Path) -> None:
    """Flush a folder, that is the names in it, to disk."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _sweep(path: Path) -> None:
    """Take away what a killed writer of the same file or folder left beside it. The caller holds the lock."""
    start = _start(path.name)
    for name in [name for name in os.listdir(path.parent) if name.startswith(start)]:
        leftover = path.parent / name
        if leftover.is_dir() and not leftover.is_symlink():
            shutil.rmtree(leftover, ignore_errors=True)
        else:
            leftover.unlink(missing_ok=True)


def _aside(path: Path) -> Path:
    """A name that is not taken, beside a file or folder that is going to be written."""
    return path.with_name(_start(path.name) + secrets.token_hex(4))


def _start(name: str) -> str:
    """How the names begin under which a file or folder is being written; no longer than file systems take."""
    short = name if len(os.fsencode(name)) <= 200 else hashlib.sha256(os.fsencode(name)).hexdigest()
    return f".{short}{MARK}"


@contextmanager
def _parents(folder: Path) -> Iterator[None]:
    """The folders above, made for the block, and taken away again if it fails."""
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
    """Operating system errors of the block as one that names what was to be written."""
    try:
        yield
    except OutputError:
        raise
    except OSError as error:
        raise OutputError(f"cannot be written: {error.strerror or error}", where=str(path)) from error


def _real(path: str | Path) -> Path:
    """The path without links, so that what is replaced is the file or folder, not a link to it."""
    return Path(os.path.realpath(path))
