"""Which run a results folder is of: its files name it, and a folder whose files name several is refused."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeAlias

from vitquant.errors import ArtifactError

MANIFEST, PROGRAM, SUMMARY, POINTS = "manifest.json", "program.json", "summary.json", "points.csv"
KEY = "run"
MAX_BYTES = 2**23
"""Of a file that is asked for its run; ours are far smaller, and whatever reads the rest has limits of its own."""

Reader: TypeAlias = Callable[[Path], Any]


def require_one_run(folder: str | Path) -> None:
    """Refuse a folder whose files are of several runs.

    A file that names none (it was written by an earlier version, or by somebody else) is compared with nothing, and a
    damaged one is left to its own reader to refuse.

    Raises:
        ArtifactError: they name different runs.
    """
    found = {name: run_named_by(Path(folder) / name) for name in READERS}
    named = {name: run for name, run in found.items() if run is not None}
    if len(set(named.values())) > 1:
        raise ArtifactError(
            "the files in this folder are of different runs",
            where=str(folder),
            got=", ".join(f"{name} of {run}" for name, run in named.items()),
            expected="the files of one run",
            fix="quantize again into this folder, or save the model and its program again",
        )


def run_named_by(path: Path) -> str | None:
    """The run that a file names; ``None`` if it names none, is missing, or cannot be read."""
    try:
        if not path.is_file() or path.stat().st_size > MAX_BYTES:
            return None
        run = READERS[path.name](path)
    except (OSError, ValueError, KeyError, TypeError, RecursionError, StopIteration, csv.Error):
        return None
    return run if isinstance(run, str) and run else None


def _key(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))[KEY]


def _program_key(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))["program"]["metadata"][KEY]


def _first_row(path: Path) -> Any:
    with path.open(encoding="utf-8", newline="") as file:
        return next(csv.DictReader(file))[KEY]


READERS: dict[str, Reader] = {MANIFEST: _key, PROGRAM: _program_key, SUMMARY: _key, POINTS: _first_row}
