"""The results folder of the main job: one run's, whole, whatever happens while it is written; and a true message."""

import itertools
import json
import os
import signal
import stat
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from vitquant.files import recording
from vitquant.runs import READERS, require_one_run, run_named_by

pytestmark = pytest.mark.job

MODEL = "deit_tiny_patch16_224"
FILES = {
    *("manifest.json", "model.safetensors", "program.json", "program.safetensors"),
    *("summary.json", "points.csv", "config.resolved.yaml"),
}


def contents(folder: Path) -> dict[str, bytes]:
    """Every file below a folder, hidden ones included."""
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def job(out: str, *options: str) -> subprocess.Popen[str]:
    """The command in a process of its own."""
    command = [sys.executable, "-m", "vitquant", "quantize", "--model", MODEL, "--weights", "deit.safetensors"]
    command += ["--img-size", "32", "--calib", "photos", "--eval", "photos2", "--profile-images", "1", "--out", out]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    pipe = subprocess.PIPE
    return subprocess.Popen([*command, *options], stdout=pipe, stderr=pipe, text=True, env=environment)


def test_three_jobs_at_once_leave_the_results_of_one(folder: Path) -> None:
    jobs = [job("out", "--calib-limit", str(count), "--ignore-labels") for count in (1, 2, 3)]
    outcomes = [(*process.communicate(), process.returncode) for process in jobs]
    assert [code for *_, code in outcomes] == [0, 0, 0], outcomes
    assert {path.name for path in (folder / "out").iterdir()} == FILES
    require_one_run("out")
    assert len({run_named_by(folder / "out" / name) for name in READERS}) == 1
    assert not [path for path in folder.iterdir() if path.name.startswith(".")]


@pytest.mark.parametrize("last", [False, True], ids=["while the files are written", "while they change places"])
def test_an_interrupted_job_says_what_is_there(
    last: bool, quantize: Callable[..., Any], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = contents(folder)
    real, folders = os.fsync, itertools.count(1)

    def interrupted(handle: int) -> None:
        """At the flush of the folder that is built, or of the one above, when the two have changed places."""
        if stat.S_ISDIR(os.fstat(handle).st_mode) and next(folders) == (2 if last else 1):
            os.kill(os.getpid(), signal.SIGINT)
        real(handle)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", interrupted)
        outcome = quantize("--ignore-labels", profile_images="1")
    assert outcome.code == 130
    after = contents(folder)
    if last:
        assert outcome.error == "error: interrupted; out is completely written."
        assert {path.name for path in Path("out").iterdir()} == FILES
        require_one_run("out")
    else:
        assert outcome.error == "error: interrupted; nothing was written. Run the same command to start again."
        assert after == before


def test_a_run_that_is_interrupted_at_any_step(folder: Path) -> None:
    """``SIGTERM`` and ``SIGINT`` at every flush, on files of two real runs; the record of what was written is true."""
    from vitquant.files import write_folder

    runs = {}
    for number in (1, 2):
        process = job(f"run{number}", "--calib-limit", str(number), "--ignore-labels")
        assert process.communicate()[1].count("error") == 0
        runs[number] = {path.name: path.read_bytes() for path in (folder / f"run{number}").iterdir()}
    write_folder("both", runs[1])
    current = 1
    for number, step in itertools.product((signal.SIGINT, signal.SIGTERM), range(1, 12)):
        new, calls, real = 3 - current, itertools.count(1), os.fsync

        def fsync(handle: int, *, at: int = step, sent: int = number, calls: Any = calls, real: Any = real) -> None:
            if next(calls) == at:
                os.kill(os.getpid(), sent)
            real(handle)

        before = signal.signal(number, signal.default_int_handler)
        try:
            with pytest.MonkeyPatch.context() as patch, recording() as written, suppress(KeyboardInterrupt):
                patch.setattr(os, "fsync", fsync)
                write_folder("both", runs[new])
        finally:
            signal.signal(number, before)
        current = new if written else current
        assert {path.name: path.read_bytes() for path in Path("both").iterdir()} == runs[current]
    assert json.loads(Path("both/summary.json").read_text())["run"] == run_named_by(Path("both/manifest.json"))


def test_a_file_where_a_folder_is_needed_is_found_before_the_work(refused: Callable[..., str], folder: Path) -> None:
    (folder / "file").write_text("mine")
    assert refused(4, out="file/below", weights="nowhere.safetensors").startswith("error: ")
    assert "cannot be written: Not a directory" in refused(4, out="file/below")


def test_the_other_commands_look_at_their_output_first(run: Callable[..., Any], folder: Path) -> None:
    (folder / "file").write_text("mine")
    (folder / "global.yaml").write_text("weight: {}\n")
    for command in (
        ("run", "nowhere", "photos", "--out", "file/below.npz"),
        ("config", "migrate", "global.yaml", "--out", "file/below.yaml"),
    ):
        outcome = run(*command)
        assert outcome.code == 4
        assert "below" in outcome.error
        assert "cannot be written: Not a directory" in outcome.error
