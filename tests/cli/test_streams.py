"""Standard output and standard error connected to all kinds of things. Each command is a process of its own."""

import json
import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.job

SHOW = ("config", "show", "vit_int8.yaml", "--depth", "1")
ODD = b"res[red]x[bold]:smile:\x1b[31m\n\xff.yaml"
SHOWN = r"res[red]x[bold]:smile:\x1b[31m\n\udcff.yaml"


def shell(redirection: str, *argv: str | bytes, **environment: str) -> "subprocess.CompletedProcess[bytes]":
    """Run a command with a redirection, such as ``>/dev/full``."""
    command = ["sh", "-c", f'"$@" {redirection}', "sh", sys.executable, "-m", "vitquant", *argv]
    return subprocess.run(command, capture_output=True, check=False, env=os.environ | environment)


@pytest.fixture
def odd(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> bytes:
    """A configuration whose name has markup, a terminal escape, a line end, and a byte that is not UTF-8."""
    monkeypatch.chdir(tmp_path)
    try:
        Path(os.fsdecode(ODD)).write_text("weight: {}\n")
    except OSError:
        pytest.skip("this file system takes no such name")
    return ODD


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no full device")
@pytest.mark.parametrize("argv", [SHOW, (*SHOW, "--json"), ("--help",), ("--version",), ("config", "schema")])
@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_output_that_cannot_be_written_is_an_error(argv: tuple[str, ...], unbuffered: str) -> None:
    done = shell(">/dev/full", *argv, PYTHONUNBUFFERED=unbuffered)
    assert done.returncode == 4
    assert done.stderr in (
        b"error: standard output: No space left on device.\n",
        b"error: system: No space left on device.\n",
    )


@pytest.mark.parametrize("redirection", ["2>/dev/full", "2>&-"])
def test_the_exit_code_does_not_need_standard_error(redirection: str) -> None:
    assert shell(redirection, "check", "nothere.yaml").returncode == 2
    assert shell(redirection, "chekc").returncode == 2
    assert shell(redirection, *SHOW).returncode == 0


@pytest.mark.parametrize("redirection", [">&-", ">&- 2>&-", "<&- >&- 2>&-"])
def test_closed_streams_drop_what_they_get(redirection: str, tmp_path: Path) -> None:
    done = shell(redirection, *SHOW)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")
    (tmp_path / "global.yaml").write_text("weight: {}\n")
    out = tmp_path / "out.yaml"
    assert shell(redirection, "config", "migrate", str(tmp_path / "global.yaml"), "--out", str(out)).returncode == 0
    assert out.read_text().startswith("#"), "no message went into the file"


@pytest.mark.parametrize("argv", [("config", "show"), ("check",)])
@pytest.mark.parametrize(
    "environment",
    [{}, {"PYTHONIOENCODING": "ascii"}, {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}],
    ids=["utf-8", "ascii", "C"],
)
def test_names_are_shown_as_they_are(argv: tuple[str, ...], environment: dict[str, str], odd: bytes) -> None:
    done = shell("", *argv, odd, "--depth", "1", **environment)
    assert (done.returncode, done.stderr) == (0, b"")
    title, *table = done.stdout.decode().splitlines()
    assert title.strip() == SHOWN
    assert all(line.isprintable() for line in table)
    assert done.stdout.isascii() == bool(environment), "the lines of a table are ASCII where others cannot be written"


def test_names_in_messages_are_one_line(odd: bytes) -> None:
    Path(os.fsdecode(odd)).write_text("wieght: {}\n")
    done = shell("", "check", odd)
    assert done.returncode == 2
    assert done.stderr.decode().startswith(f"error: {SHOWN}:1 wieght: unknown layer")
    assert done.stderr.count(b"\n") == 1
    missing = shell("", "check", odd + b".no")
    assert missing.stderr.decode().startswith(f"error: {SHOWN}.no: no such file")


def test_json_is_nothing_but_json(odd: bytes) -> None:
    done = shell("", "config", "show", odd, "--depth", "1", "--json", PYTHONIOENCODING="ascii")
    assert "blocks.0.attn_qkv.weight" in json.loads(done.stdout)
    verdicts = json.loads(shell("", "check", odd, "--depth", "1", "--json").stdout)
    assert {verdict["point"] for verdict in verdicts} >= {"blocks.0.attn_qkv.weight"}


@pytest.mark.parametrize(
    "environment",
    [
        {"COLUMNS": "0"},
        {"COLUMNS": "1"},
        {"COLUMNS": "-5", "LINES": "0"},
        {"COLUMNS": "²", "LINES": "²"},
        {"COLUMNS": "wide"},
        {"TERM": "dumb"},
        {"TERM": ""},
    ],
    ids=str,
)
def test_a_terminal_of_any_size(environment: dict[str, str]) -> None:
    child, terminal = pty.fork()
    if child == 0:
        os.execvpe(sys.executable, [sys.executable, "-m", "vitquant", *SHOW], os.environ | environment)
    read = b""
    try:
        while block := os.read(terminal, 2**16):
            read += block
    except OSError:  # Linux's way to say that the other side is closed
        pass
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert b"intSoft" in read
