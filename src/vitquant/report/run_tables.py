"""The tables of a run, as they are printed when it has finished."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from vitquant.report.points import worst_table
from vitquant.report.tables import COMPARED, Part, comparison_rows, computed_with, table
from vitquant.report.units import decibels, megabytes
from vitquant.results import agreement_sentence, float_phrase

if TYPE_CHECKING:
    from vitquant.report.record import RepairStepRecord, RunRecord


REPAIRED = ("step", "layers", "images", "SQNR before", "SQNR after")


def repair_row(step: RepairStepRecord) -> tuple[str, ...]:
    """One repair step."""
    images = "" if step.images is None else str(step.images)
    return step.step, str(len(step.changed)), images, decibels(step.sqnr_before_db), decibels(step.sqnr_after_db)


def run_tables(run: RunRecord) -> Iterator[Part]:
    """The comparison of the models, the worst points, the repair steps, and a few sentences."""
    rows, integer = list(comparison_rows(run.evaluation)), run.integer
    if integer is not None and run.float_bytes is not None:
        rows.append(("size", megabytes(run.float_bytes / 1e6), "", megabytes(integer.bytes / 1e6)))
    measured = "" if run.output == "logits" else f", output {run.output}"
    yield table(f"{run.model} on {run.images} images{measured}", COMPARED, rows)
    if run.points:
        yield worst_table(run)
    if run.repair:
        yield table("Repair steps, SQNR on their own images", REPAIRED, map(repair_row, run.repair))
    active = sum(point.active for point in run.points.values())
    kept = float_phrase(run.kept_float.points, run.kept_float.multiplications)
    yield f"{active} of {len(run.points)} points are quantized; {kept}."
    if integer is None:
        yield f"No integer program: {run.refusal}"
        return
    yield computed_with(integer.executor)
    yield agreement_sentence(integer.points_compared, integer.first_divergence)
    yield f"It uses integer arithmetic only, from pixels to {run.output}."
    if run.float_bytes:
        yield f"Its size is {integer.bytes / run.float_bytes:.1%} of the float model."
