"""The run that a results folder belongs to: its files name the run, and files of different runs are an error."""

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
"""Largest file whose run is read. Files of vitquant are far smaller; readers of the content have their own limits."""

Reader: TypeAlias = Callable[[Path], Any]


def require_one_run(folder: str | Path) -> None:
    """Check that the files of a folder belong to one run.

    A file that names no run (written by an earlier version, or by another program) is not compared. A damaged file is
    reported by its own reader.

    Raises:
        ArtifactError: the files name different runs.
    """
    found = {name: run_named_by(Path(folder) / name) for name in READERS}
    named = {name: run for name, run in found.items() if run is not None}
    if len(set(named.values())) > 1:
        raise ArtifactError(
            "the files in this folder are from different runs",
            where=str(folder),
            got=", ".join(f"{name} from run {run}" for name, run in named.items()),
            expected="files of one run",
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
