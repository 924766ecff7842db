"""``vitquant demo`` as a process of its own: once to the end, once interrupted."""

import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import vitquant

pytestmark = pytest.mark.job

COMMAND = [sys.executable, "-m", "vitquant.cli.main", "demo"]


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, subprocess.CompletedProcess[str]]:
    out = tmp_path_factory.mktemp("demo") / "out"
    argv = [*COMMAND, "--out", str(out), "--profile-images", "2"]
    return out, subprocess.run(argv, check=True, capture_output=True, text=True)


def test_the_demo_keeps_its_promise(demo: tuple[Path, subprocess.CompletedProcess[str]]) -> None:
    out, done = demo
    summary: dict[str, Any] = json.loads((out / "summary.json").read_text())
    assert summary["images"] == 2000
    assert summary["fp32"]["top1"] >= 90
    assert summary["quantized"]["top1"] >= summary["fp32"]["top1"] - 0.5
    assert summary["sqnr_db"] > 30
    assert summary["integer"]["first_divergence"] is None
    assert summary["integer"]["points_compared"] == 74
    assert summary["integer"]["to_simulated_db"] == 300
    assert "│ SQNR against simulated │         │           │ identical │" in done.stdout
    assert summary["integer"]["top1"] == summary["quantized"]["top1"]
    assert "equals the simulation at all 74 points, to the last code" in done.stdout
    assert f"{summary['fp32']['top1']:.2f} %" in done.stdout
    worst = min((point["sqnr_isolated_db"] or 300, name) for name, point in summary["points"].items())[1]
    assert worst in done.stdout
    assert len(done.stderr.splitlines()) == 2  # the model and its preprocessing, no progress bars


def test_the_saved_demo_model_classifies(demo: tuple[Path, subprocess.CompletedProcess[str]]) -> None:
    _, _, images, labels = vitquant.load_fashion_images()
    qmodel = vitquant.load(demo[0])
    with torch.no_grad():
        classes = qmodel(qmodel.preprocessing.normalize(images[:400, None])).argmax(1)
    assert float((classes == labels[:400]).double().mean()) > 0.88


def default_interrupt() -> None:
    """Shells start background jobs deaf to Ctrl-C, and processes inherit it."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


def test_an_interrupted_demo_leaves_nothing(tmp_path: Path) -> None:
    argv = [*COMMAND, "--out", str(tmp_path / "out")]
    with subprocess.Popen(argv, stderr=subprocess.PIPE, text=True, preexec_fn=default_interrupt) as process:
        assert process.stderr is not None
        while "preprocessing" not in process.stderr.readline():  # the long work begins
            assert process.poll() is None
        process.send_signal(signal.SIGINT)
        assert process.stderr.read() == (
            "error: interrupted; nothing was written. Run the same command to start again.\n"
        )
    assert process.returncode == 130
    assert not (tmp_path / "out").exists()
