"""The one place where errors end: whatever a command raises is one line and an exit code."""

import argparse
import os
import re
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from support.documents import documented
from vitquant.arguments import require_path, require_whole
from vitquant.cli.main import main, share_cores
from vitquant.device import require_device
from vitquant.errors import ConfigError
from vitquant.files import require_writable


class Panic(BaseException):
    """What libraries in other languages raise: no ``Exception``."""


@dataclass
class Broken:
    """A command, ``broken``, that does what it is told."""

    work: Callable[[], object]

    def add_to(self, commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
        parser = commands.add_parser("broken")
        parser.add_argument("--debug", action="store_true")
        parser.set_defaults(run=lambda _: self.work())


def forever() -> object:
    return forever()


def raises(error: BaseException) -> Callable[[], object]:
    def work() -> object:
        raise error

    return work


UNEXPECTED = "This is a bug in vitquant. Fix: please report it, with the output of --debug."

FAULTS: dict[str, tuple[Callable[[], object], int, str]] = {
    "division": (lambda: 1 / 0, 70, f"unexpected ZeroDivisionError: division by zero. {UNEXPECTED}"),
    "recursion": (forever, 70, f"unexpected RecursionError: maximum recursion depth exceeded. {UNEXPECTED}"),
    "no text": (raises(SystemError()), 70, f"unexpected SystemError. {UNEXPECTED}"),
    "no exception": (raises(Panic("at src/lib.rs:3")), 70, f"unexpected Panic: at src/lib.rs:3. {UNEXPECTED}"),
    "escapes": (raises(KeyError("\x1b[2J\n")), 70, f"unexpected KeyError: '\\x1b[2J\\n'. {UNEXPECTED}"),
    "memory": (lambda: bytearray(2**62), 4, "out of memory. Fix: use a smaller batch"),
    "warning": (lambda: warnings.warn("old", stacklevel=1), 4, "UserWarning: old. This is a warning; -W error"),
    "file": (lambda: Path("no\nsuch").read_bytes(), 4, r"no\nsuch: No such file or directory."),
    "system": (raises(OSError(28, "No space left on device")), 4, "system: No space left on device."),
    "ours": (raises(ConfigError("wrong", where="a\rb")), 2, r"a\rb: wrong."),
    "Ctrl-C": (raises(KeyboardInterrupt()), 130, "interrupted"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_every_fault_is_one_line(
    fault: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    work, code, message = FAULTS[fault]
    assert main(["broken"], commands=[Broken(work)]) == code
    captured = capsys.readouterr()
    assert captured.err.startswith(f"error: {message}")
    assert captured.err.count("\n") == 1
    assert captured.err.rstrip("\n").isprintable()
    assert captured.out == ""


def test_debug_adds_the_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["broken", "--debug"], commands=[Broken(lambda: dict[str, int]()["\x1b"])]) == 70
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].startswith("Traceback")
    assert lines[-2] == r"KeyError: '\x1b'"
    assert lines[-1].startswith("error: unexpected KeyError")


def test_a_warning_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("default")
        work = lambda: warnings.warn("skipped: a\nb\x1b[2J\udcff", stacklevel=1)  # noqa: E731
        assert main(["broken"], commands=[Broken(work)]) == 0
    assert capsys.readouterr().err == "warning: skipped: a\\nb\\x1b[2J\\udcff\n"


def test_what_was_typed_is_quoted_printably(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["check", "vit_int8.yaml", "--no\x1b[31m\nsuch\udcff"])
    assert stop.value.code == 2
    assert r"unrecognized arguments: --no\x1b[31m\nsuch\udcff" in capsys.readouterr().err


STARTS = """
import signal, sys, time
from vitquant.cli.main import main, share_cores

class Slow:
    def add_to(self, commands):
        commands.add_parser("slow").set_defaults(run=self.run)

    def run(self, args):
        print("started", flush=True)
        try:
            while True:
                time.sleep(0.02)  # not signal.pause(), which misses a signal that comes just before it
        finally:  # what files are left whole by
            print("cleaning", flush=True)
            end = time.monotonic() + 0.3
            while time.monotonic() < end:
                pass
            print("cleaned", flush=True)

sys.argv[1:] = ["slow"]
sys.exit(main(commands=[Slow()]))
"""


@contextmanager
def slow(preamble: str = "") -> Iterator["subprocess.Popen[str]"]:
    """A command that waits, and takes a moment to clean up; started with this preamble."""
    defaults = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
    code = defaults + preamble + STARTS
    with subprocess.Popen([sys.executable, "-c", code], stdout=-1, stderr=-1, text=True) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "started\n"
            yield process
        finally:
            process.kill()  # whatever was asserted, nobody waits for it


@pytest.mark.job
@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP"])
def test_signals_unwind_the_command(name: str) -> None:
    number = getattr(signal, name)
    with slow() as process:
        time.sleep(0.1)
        process.send_signal(number)
        out, err = process.communicate(timeout=20)
    assert (process.returncode, out) == (128 + number, "cleaning\ncleaned\n")
    assert re.fullmatch(r"error: interrupted; .*\n", err)


@pytest.mark.job
def test_a_second_one_does_not_disturb_the_cleaning_up() -> None:
    with slow() as process:
        time.sleep(0.1)
        process.send_signal(signal.SIGINT)
        assert process.stdout is not None
        assert process.stdout.readline() == "cleaning\n"
        process.send_signal(signal.SIGINT)
        process.send_signal(signal.SIGTERM)
        out, err = process.communicate(timeout=20)
    assert (process.returncode, out) == (130, "cleaned\n")
    assert "Traceback" not in err


@pytest.mark.job
def test_an_ignored_signal_stays_ignored() -> None:
    """As shells start background jobs, and ``nohup`` any."""
    deaf = "signal.signal(signal.SIGINT, signal.SIG_IGN); signal.signal(signal.SIGHUP, signal.SIG_IGN)\n"
    with slow(deaf) as process:
        time.sleep(0.1)
        process.send_signal(signal.SIGINT)
        process.send_signal(signal.SIGHUP)
        time.sleep(0.2)
        assert process.poll() is None
        process.send_signal(signal.SIGTERM)
        assert process.communicate(timeout=20)[0].endswith("cleaned\n")
    assert process.returncode == 143


def test_handlers_are_given_back(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = [signal.getsignal(number) for number in numbers]
    monkeypatch.setattr(sys, "argv", ["vitquant", "broken"])
    assert main(commands=[Broken(lambda: os.kill(os.getpid(), signal.SIGTERM))]) == 143
    assert [signal.getsignal(number) for number in numbers] == before
    assert capsys.readouterr().err.startswith("error: interrupted")


def test_a_caller_in_python_keeps_its_signals() -> None:
    seen = []
    work = lambda: seen.append(signal.getsignal(signal.SIGTERM))  # noqa: E731
    assert main(["broken"], commands=[Broken(work)]) == 0
    assert seen == [signal.getsignal(signal.SIGTERM)]


def test_the_messages_are_documented(capsys: pytest.CaptureFixture[str]) -> None:
    steps: list[Callable[[], object]] = [
        lambda: require_device("gpu"),
        lambda: require_whole(300, "threads", 1, 256),
        lambda: require_writable(os.devnull),
        lambda: require_path("", "--out"),
        lambda: 1 / 0,
    ]
    for step in steps:
        assert main(["broken"], commands=[Broken(step)]) in (2, 4, 70)
        assert documented(capsys.readouterr().err.rstrip("\n"))


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, {"OMP_WAIT_POLICY": "passive"}),
        ({"GOMP_SPINCOUNT": "10000"}, {"GOMP_SPINCOUNT": "10000"}),
        ({"OMP_WAIT_POLICY": "active"}, {"OMP_WAIT_POLICY": "active"}),
        ({"KMP_BLOCKTIME": "1"}, {"KMP_BLOCKTIME": "1"}),
    ],
)
def test_openmp_threads_sleep_unless_the_user_says_how_they_wait(
    given: dict[str, str], expected: dict[str, str]
) -> None:
    environment = {"PATH": "/bin", **given}
    share_cores(environment)
    assert environment == {"PATH": "/bin", **expected}


def test_the_command_sets_it_before_torch_is_imported_and_python_code_does_not(monkeypatch: Any) -> None:
    monkeypatch.delenv("GOMP_SPINCOUNT", raising=False)
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    code = (
        "import os, sys; from vitquant.cli import main as m\n"
        "m.attempt = lambda argv, commands: print(os.environ.get('OMP_WAIT_POLICY'), 'torch' in sys.modules)\n"
        "m.main([]); m.main()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["None", "False", "passive", "False"]
