"""``vitquant show``: what ``vitquant quantize`` printed, again; and two runs compared."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import vitquant
from support.documents import TESTS, documented

OLD, NEW = (str(TESTS / "golden" / name) for name in ("run_before_record", "run_record"))


def test_a_run_is_shown_as_it_prints(run: Callable[..., Any]) -> None:
    outcome = run("show", NEW)
    assert (outcome.code, outcome.err) == (0, "")
    assert outcome.out == f"{vitquant.load_run(NEW)}\n"


def test_two_runs(run: Callable[..., Any]) -> None:
    outcome = run("show", NEW, "--against", OLD)
    assert outcome.code == 0
    assert outcome.out == f"{vitquant.load_run(NEW).compare(vitquant.load_run(OLD))}\n"


def test_json(run: Callable[..., Any]) -> None:
    assert run("show", NEW, "--json").out == (Path(NEW) / "summary.json").read_text()
    told = json.loads(run("show", NEW, "--against", OLD, "--json").out)
    assert told["points"]["final_norm"]["sqnr_isolated_db"] == [41.361, 41.361]


def test_a_folder_without_a_run(run: Callable[..., Any], folder: Path) -> None:
    """``folder`` is the current one, with a ``summary.json`` of another program in ``out``."""
    outcome = run("show", "photos")
    assert outcome.code == 2
    assert documented(outcome.error)
    outcome = run("show", "out")
    assert outcome.code == 2
    assert outcome.error.startswith("error: out/summary.json record")
    text = (Path(NEW) / "summary.json").read_text()
    Path("out/summary.json").write_text(text.replace('"sqnr_db": 35.431', '"sqnr_db": "37"', 1))
    assert documented(run("show", "out").error)
    assert run("show", NEW, "--against", "photos").code == 2


@pytest.mark.job
def test_the_tables_are_those_of_quantize(quantize: Callable[..., Any], run: Callable[..., Any], folder: Path) -> None:
    for config in ("vit_int8.yaml", "linears_int8.yaml"):
        printed = quantize(config=config, out=config, profile_images="1").out
        shown = run("show", config).out
        assert printed.startswith(shown)
        assert printed.removeprefix(shown).startswith("Finished in ")
