"""Results that are entirely the old ones or entirely the new ones, whatever happens while they are written."""

import errno
import itertools
import json
import os
import re
import shutil
import signal
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from support.documents import TESTS
from support.kill_writers import letters, run_files
from vitquant.errors import OutputError
from vitquant.files import recording, require_writable, write_atomically, write_folder
from vitquant.files.exchange import exchange, may_move


def hidden(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.name.startswith("."))


@pytest.fixture(params=["exchanged", "renamed"])
def out(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A folder with the files of run A and a file of the user; one that may be exchanged, and one that may not."""
    folder = tmp_path / "out"
    write_folder(folder, run_files("A"))
    (folder / "notes.txt").write_text("mine")
    if request.param == "renamed":
        (folder / "plots").mkdir()
        (folder / "plots" / "loss.txt").write_text("mine too")
    assert may_move(folder) == (request.param == "exchanged")
    return folder


def untouched(out: Path) -> bool:
    """Whether what the user put there is as it was."""
    plots = not (out / "plots").exists() or (out / "plots" / "loss.txt").read_text() == "mine too"
    return (out / "notes.txt").read_text() == "mine" and plots


def test_the_files_of_a_run_replace_those_of_another(out: Path) -> None:
    write_folder(out, run_files("B"))
    assert letters(out) == {"B"}
    assert untouched(out)
    assert hidden(out) == hidden(out.parent) == []


def test_files_that_are_to_go(out: Path) -> None:
    (out / "program.json").write_text("of run A")
    write_folder(out, run_files("B"), remove=["program.json", "never.there"])
    assert not (out / "program.json").exists()
    assert letters(out) == {"B"}


def test_a_new_folder_and_the_ones_above_it(tmp_path: Path) -> None:
    write_folder(tmp_path / "a" / "b" / "out", run_files("A"))
    assert letters(tmp_path / "a" / "b" / "out") == {"A"}


def test_a_link_to_a_folder_stays_a_link(tmp_path: Path) -> None:
    write_folder(tmp_path / "real", run_files("A"))
    (tmp_path / "link").symlink_to("real")
    write_folder(tmp_path / "link", run_files("B"))
    assert (tmp_path / "link").is_symlink()
    assert letters(tmp_path / "real") == {"B"}


def test_the_current_folder_stays_where_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_folder(tmp_path / "out", run_files("A"))
    monkeypatch.chdir(tmp_path / "out")
    number = Path.cwd().stat().st_ino
    write_folder(".", run_files("B"))
    assert letters(Path(".")) == {"B"}
    assert (tmp_path / "out").stat().st_ino == number


def test_permissions_are_those_of_the_umask(tmp_path: Path) -> None:
    for umask in (0o022, 0o077, 0o002):
        before = os.umask(umask)
        try:
            write_atomically(tmp_path / f"{umask}.txt", "text")
            write_folder(tmp_path / f"out{umask}", {"a": b"1", "b": b"2"})
        finally:
            os.umask(before)
        assert stat.S_IMODE((tmp_path / f"{umask}.txt").stat().st_mode) == 0o666 & ~umask
        assert stat.S_IMODE((tmp_path / f"out{umask}").stat().st_mode) == 0o777 & ~umask
        assert stat.S_IMODE((tmp_path / f"out{umask}" / "a").stat().st_mode) == 0o666 & ~umask


def test_the_folder_keeps_its_own_permissions(out: Path) -> None:
    out.chmod(0o750)
    write_folder(out, run_files("B"))
    assert stat.S_IMODE(out.stat().st_mode) == 0o750


def names_in(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


@pytest.mark.parametrize("kind", ["folder", "pipe", "device"])
def test_only_files_are_replaced(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "taken"
    if kind == "folder":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    else:
        path.symlink_to(os.devnull)
    with pytest.raises(OutputError, match=r"taken: not a file\. Got "):
        write_atomically(path, "2")
    with pytest.raises(OutputError, match=r"taken: not a file\. Got "):
        require_writable(path)
    with pytest.raises(OutputError, match=r"taken: not a file\. Got "):
        write_folder(tmp_path, {"first": "1", "taken": "2"})
    assert names_in(tmp_path) == {"taken"}, "none is written, and nothing is left over"
    assert not Path(os.devnull).is_file()


def test_a_link_stays_a_link(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    (tmp_path / "link").symlink_to("there/file")
    for text in ("new", "again"):
        write_atomically(tmp_path / "link", text)
        assert (tmp_path / "there" / "file").read_text() == text
    assert (tmp_path / "link").is_symlink()
    assert names_in(tmp_path / "there") == {"file"}


def test_a_name_may_be_as_long_as_the_system_lets_it(tmp_path: Path) -> None:
    write_atomically(tmp_path / ("a" * 255), "x")
    with pytest.raises(OutputError, match="name too long"):
        write_atomically(tmp_path / ("a" * 256), "x")
    assert names_in(tmp_path) == {"a" * 255}


# Faults. Each step that can fail is made to fail once, with the error that the system gives.

STEPS = ("open", "fsync", "mkdir", "link", "rename", "replace", "unlink", "listdir")


def failing_at(step: str, number: int, fault: Callable[[], Any], monkeypatch: pytest.MonkeyPatch) -> Callable[[], bool]:
    """Let the call of this number to ``os.<step>`` end in a fault; returns whether it came to that."""
    real, calls = getattr(os, step), itertools.count(1)
    reached = []

    def call(*args: Any, **settings: Any) -> Any:
        if next(calls) == number:
            reached.append(number)
            fault()
        return real(*args, **settings)

    monkeypatch.setattr(os, step, call)
    return lambda: bool(reached)


def each_call(step: str, fault: Callable[[], Any], write: Callable[[str], None]) -> Iterator[str]:
    """Write runs B, A, B, ... with a fault at the first call, at the second, ...; gives the letter of each run."""
    for letter, number in zip(itertools.cycle("BA"), range(1, 60), strict=False):
        with pytest.MonkeyPatch.context() as patch:
            reached = failing_at(step, number, fault, patch)
            write(letter)
        yield letter
        if not reached():
            return
    pytest.fail(f"os.{step} is called without end")


@pytest.mark.parametrize("code", [errno.EIO, errno.ENOSPC, errno.EACCES])
@pytest.mark.parametrize("step", STEPS)
def test_an_error_at_any_step_leaves_one_run(step: str, code: int, out: Path) -> None:
    current = "A"
    messages: list[str] = []

    def fault() -> None:
        raise OSError(code, os.strerror(code))

    def write(letter: str) -> None:
        nonlocal current
        try:
            write_folder(out, run_files(letter), remove=["program.json"])
            current = letter
        except OutputError as error:
            messages.append(str(error))

    for _ in each_call(step, fault, write):
        assert letters(out) == {current}
        assert untouched(out)
    assert all(message.startswith(str(out)) and os.strerror(code) in message for message in messages)
    write_folder(out, run_files("C"))
    assert letters(out) == {"C"}
    assert hidden(out) == hidden(out.parent) == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("step", STEPS)
def test_an_interrupt_at_any_step_leaves_one_run_and_the_record_is_true(step: str, number: int, out: Path) -> None:
    current = "A"

    def write(letter: str) -> None:
        nonlocal current
        with recording() as written, suppress(KeyboardInterrupt):
            write_folder(out, run_files(letter), remove=["program.json"])
        current = letter if written else current

    before = signal.signal(number, signal.default_int_handler)
    try:
        for _ in each_call(step, lambda: os.kill(os.getpid(), number), write):
            assert letters(out) == {current}
            assert untouched(out)
        assert signal.getsignal(number) is signal.default_int_handler, "handlers are put back"
    finally:
        signal.signal(number, before)
    write_folder(out, run_files("C"))
    assert letters(out) == {"C"}
    assert hidden(out) == hidden(out.parent) == []


def test_an_error_while_a_new_folder_is_made_leaves_none(tmp_path: Path) -> None:
    def fault() -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    for step in ("fsync", "rename", "open"):
        for number in range(1, 4):
            with pytest.MonkeyPatch.context() as patch:
                failing_at(step, number, fault, patch)
                with suppress(OutputError):
                    write_folder(tmp_path / "a" / "out", run_files("A"))
            assert list(tmp_path.iterdir()) == [] or letters(tmp_path / "a" / "out") == {"A"}
            shutil.rmtree(tmp_path / "a", ignore_errors=True)


@pytest.mark.parametrize("call", ["write_folder", "write_atomically"])
def test_a_full_disk_names_the_file(call: str, tmp_path: Path) -> None:
    """A real one: a file system in memory of 400 kB, with ever fewer pages left."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=400k", "tmpfs", disk], capture_output=True)
    if mounted.returncode:
        pytest.skip("file systems cannot be mounted here")
    try:
        write_folder(disk / "out", run_files("A"))
        refused = []
        for pages in range(20, 0, -1):
            (disk / "ballast").unlink(missing_ok=True)
            (disk / "ballast").write_bytes(b"x" * 4096 * (os.statvfs(disk).f_bavail - pages))
            try:
                if call == "write_folder":
                    write_folder(disk / "out", run_files("B"))
                    write_folder(disk / "out", run_files("A"))
                else:
                    write_atomically(disk / "out" / "summary.json", "A" * 500)
            except OutputError as error:
                refused.append(str(error))
            assert letters(disk / "out") == {"A"}
            assert hidden(disk) == hidden(disk / "out") == []
        named = [re.search(r"out/(\S+): cannot be written: No space left on device\.", text) for text in refused]
        assert call == "write_atomically" or {found and found[1] for found in named} >= {"model.safetensors"}
        with pytest.raises(OutputError, match=r"not enough disk space\. Got .* free, expected at least 10\.0 MB"):
            require_writable(disk / "out", folder=True, space=10_000_000)
    finally:
        subprocess.run(["umount", disk], check=True)


# Kills.


@pytest.mark.job
def test_three_hundred_kills_leave_one_run(tmp_path: Path) -> None:
    out = tmp_path / "out"
    write_folder(out, run_files("A"))
    (out / "notes.txt").write_text("mine")
    script = TESTS / "support" / "kill_writers.py"
    found = json.loads(subprocess.run([sys.executable, script, out], capture_output=True, check=True).stdout)
    assert sum(found.values()) == 300
    assert {"B", "C"} <= set(found) <= {"A", "B", "C"}, "never two runs, and the kills came while there was one to cut"
    assert untouched(out)
    write_folder(out, run_files("A"))
    assert hidden(out) == hidden(tmp_path) == [], "what the killed ones left is swept"


# Several writers.


@pytest.mark.job
@pytest.mark.parametrize("writers", [2, 3])
def test_writers_at_once_take_turns(writers: int, out: Path) -> None:
    children = []
    for letter in "BCD"[:writers]:
        child = os.fork()
        if not child:
            code = 1
            try:
                for _ in range(20):
                    write_folder(out, run_files(letter))
                code = 0
            finally:
                os._exit(code)
        children.append(child)
    assert {os.waitpid(child, 0)[1] for child in children} == {0}
    assert len(letters(out)) == 1
    assert untouched(out)
    assert hidden(out) == hidden(out.parent) == []


# Found out beforehand.


def test_what_cannot_be_written_is_found_beforehand(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    (tmp_path / "folder").mkdir()
    require_writable(tmp_path / "folder", folder=True)
    require_writable(tmp_path / "new" / "deep", folder=True)
    require_writable(tmp_path / "file")
    require_writable(tmp_path / "folder" / "new.npz")
    for path, folder, message in (
        (tmp_path / "file", True, "file: not a folder. Got a file, expected a new name or an existing folder."),
        (tmp_path / "folder", False, "folder: not a file. Got a folder, expected a new name or an existing file."),
        (tmp_path / "file" / "below", True, "below: cannot be written: Not a directory."),
        (Path("/proc/vitquant"), True, "/proc/vitquant: cannot be written"),
        (tmp_path / ("x" * 300), True, "cannot be written: File name too long"),
    ):
        with pytest.raises(OutputError, match=re.escape(message)) as caught:
            require_writable(path, folder=folder)
        assert caught.value.exit_code == 4
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["file", "folder"]


def test_a_folder_that_may_not_be_written(tmp_path: Path) -> None:
    """In a process without the rights of root, who may write anywhere."""
    out = tmp_path / "out"
    out.mkdir()
    out.chmod(0o555)
    closed = itertools.takewhile(lambda folder: folder.stat().st_mode & 0o055 != 0o055, (tmp_path, *tmp_path.parents))
    for parent in closed:  # pytest keeps its folders to their owner
        parent.chmod(parent.stat().st_mode | 0o055)
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        try:
            if os.getuid() == 0:
                os.setuid(65534)
            steps: tuple[Callable[[], object], ...] = (
                lambda: require_writable(out, folder=True),
                lambda: write_folder(out, {"a": "x", "b": "y"}),
            )
            for step in steps:
                try:
                    step()
                except OutputError as error:
                    os.write(writing, f"{error}\n".encode())
        finally:
            os._exit(0)
    os.close(writing)
    os.waitpid(child, 0)
    with os.fdopen(reading) as told:
        messages = told.read().splitlines()
    assert messages == [
        f"{out}: cannot be written: Permission denied.",
        f"{out / 'a'}: cannot be written: Permission denied.",
    ]
    assert not list(out.iterdir())


def test_folders_that_are_not_exchanged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "out").mkdir()
    assert may_move(tmp_path / "out")
    monkeypatch.setenv("HOME", str(tmp_path / "out"))
    assert not may_move(tmp_path / "out"), "the folder of the user"
    assert not may_move(Path("/proc")), "a mount point"
    for name in range(300):
        (tmp_path / "out" / str(name)).touch()
    monkeypatch.setenv("HOME", "/")
    assert not may_move(tmp_path / "out"), "many files"


def test_the_exchange_of_folders(tmp_path: Path) -> None:
    for name in "ab":
        (tmp_path / name).mkdir()
        (tmp_path / name / name).touch()
    assert exchange(tmp_path / "a", tmp_path / "b")
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["b"]
    assert not exchange(tmp_path / "a", tmp_path / "nowhere")
