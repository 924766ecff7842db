"""The files of a run, and the run in a folder."""

from __future__ import annotations

import os
from pathlib import Path

from vitquant.arguments import require_path
from vitquant.errors import ArtifactError
from vitquant.files import json_text
from vitquant.report.points import points_csv
from vitquant.report.record import RunRecord
from vitquant.runs import MAX_BYTES, POINTS, SUMMARY, require_one_run
from vitquant.strict_files import parse_json, read_file


def run_files(run: RunRecord) -> dict[str, str]:
    """The record as ``summary.json``, and the table of its points as ``points.csv``."""
    return {POINTS: points_csv(run.points.values(), run.run), SUMMARY: json_text(run.to_dict()) + "\n"}


def load_run(folder: str | Path) -> RunRecord:
    """Read the record of a finished run.

    Args:
        folder: what ``vitquant quantize`` or ``demo`` wrote; its ``summary.json`` alone is sufficient, as a folder or
            as a file.

    Raises:
        ArtifactError: there is no run, the files belong to different runs, or ``summary.json`` is not such a record.
    """
    path = require_path(folder, "folder")
    if os.path.isdir(path):
        require_one_run(path)
        path = path / SUMMARY
    if not os.path.lexists(path):
        raise ArtifactError(
            "there is no finished run here",
            where=str(folder),
            expected=f"the file {SUMMARY}",
            fix="give the output folder of `vitquant quantize` or `demo`",
        )
    told = parse_json(read_file(path, MAX_BYTES, "the summary", ArtifactError), str(path), "the summary", ArtifactError)
    return RunRecord.from_dict(told, f"{path} record")
