"""``--fail-under`` and ``--fail-under-top1``: an exit code for automatic checks."""

import json
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import vitquant
from support.documents import documented
from vitquant.cli.main import main
from vitquant.cli.quality import require_quality
from vitquant.program.storage import save_program
from vitquant.results import IDENTICAL_DB, Evaluation

pytestmark = pytest.mark.job


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What ``vitquant demo`` would write, calibrated on few images; beside it four images, two labelled wrongly."""
    out = tmp_path_factory.mktemp("saved") / "out"
    images = vitquant.load_fashion_images()[0]
    model = vitquant.quantize(vitquant.load_fashion(), "vit_int8.yaml", calibration=images[:16])
    vitquant.save(model, out)
    save_program(vitquant.compile(model), out)
    _, _, images, labels = vitquant.load_fashion_images()
    labels = torch.where(torch.arange(4) < 2, labels[:4], (labels[:4] + 1) % 10)
    np.savez(out.with_name("four.npz"), images=images[:4].numpy(), labels=labels.numpy())
    return out


@pytest.fixture
def evaluate(saved: Path, run: Callable[..., Any]) -> Callable[..., Any]:
    images = str(saved.with_name("four.npz"))
    return lambda *flags: run("evaluate", str(saved), "--model", "fashion_vit", "--eval", images, *flags)


def test_a_result_under_a_limit_is_printed_and_fails(evaluate: Callable[..., Any]) -> None:
    found = json.loads(evaluate("--json").out)["evaluation"]["integer"]
    outcome = evaluate("--fail-under", "300", "--json")
    assert outcome.code == 1
    assert json.loads(outcome.out)["evaluation"]["integer"] == found
    assert outcome.error == (
        "error: --fail-under: the SQNR of the integer program is below the limit. "
        f"Got {found['sqnr_db']:.6g} dB, expected at least 300 dB."
    )
    outcome = evaluate("--fail-under-top1", "60")
    assert (outcome.code, "top-1" in outcome.out) == (1, True)
    assert outcome.error == (
        "error: --fail-under-top1: the top-1 accuracy of the integer program is below the limit. "
        f"Got {found['top1']:.6g} %, expected at least 60 %."
    )


def test_a_result_at_its_limits_passes(evaluate: Callable[..., Any]) -> None:
    found = json.loads(evaluate("--json").out)["evaluation"]["integer"]
    assert evaluate("--fail-under", repr(found["sqnr_db"]), "--fail-under-top1", repr(found["top1"])).code == 0
    assert evaluate("--fail-under", "-10").code == 0


def test_quantize_keeps_its_results(quantize: Callable[..., Any], folder: Path) -> None:
    outcome = quantize(fail_under="299", config="linears_int8.yaml", out="new")
    assert outcome.code == 1
    assert "the SQNR of the simulated model is below the limit" in outcome.error
    assert json.loads((folder / "new" / "summary.json").read_text())["sqnr_db"] < 299


def test_an_identical_result_passes_every_limit() -> None:
    found = Evaluation(4, IDENTICAL_DB, IDENTICAL_DB, None, None, None)
    require_quality(found, Namespace(fail_under=1000.0, fail_under_top1=None))


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--fail-under", "nan"), "nan is not a finite number"),
        (("--fail-under", "inf"), "inf is not a finite number"),
        (("--fail-under", "25dB"), "invalid decibels value: '25dB'"),
        (("--fail-under-top1", "-1"), "-1 is not between 0 and 100"),
        (("--fail-under-top1", "100.5"), "100.5 is not between 0 and 100"),
        (("--fail-under-top1", "nan"), "nan is not between 0 and 100"),
    ],
)
def test_nonsense_is_refused(flags: tuple[str, str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    for command in (["demo"], ["evaluate", "out", "--model", "fashion_vit"]):
        with pytest.raises(SystemExit) as stop:
            main([*command, *flags])
        assert stop.value.code == 2
        assert message in capsys.readouterr().err


@pytest.mark.usefixtures("folder")
def test_accuracy_without_labels_is_refused_before_the_work(run: Callable[..., Any]) -> None:
    argv = ("evaluate", "nowhere", "--model", "fashion_vit", "--fail-under-top1", "50", "--eval")
    outcome = run(*argv, "photos")
    assert outcome.code == 2
    assert documented(outcome.error)
    outcome = run(*argv, "photos2", "--ignore-labels")
    assert (outcome.code, "--ignore-labels is set" in outcome.error) == (2, True)
    assert "nowhere" in run(*argv, "photos2").error, "where there are labels, the work begins"


def test_labels_can_be_left_out(evaluate: Callable[..., Any]) -> None:
    assert json.loads(evaluate("--json").out)["evaluation"]["fp32_top1"] is not None
    outcome = evaluate("--json", "--ignore-labels")
    assert outcome.code == 0, outcome.err
    found = json.loads(outcome.out)["evaluation"]
    assert (found["fp32_top1"], found["integer"]["top1"]) == (None, None)
