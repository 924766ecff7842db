"""The tables of a run, as they are printed when it has finished."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from vitquant.report.points import worst_table
from vitquant.report.tables import COMPARED, Part, comparison_rows, computed_with, table
from vitquant.report.units import decibels, megabytes
from vitquant.results import agreement_sentence, float_phrase

if TYPE_CHECKING:
    from vitquant.report.record import RunRecord


def run_tables(run: RunRecord) -> Iterator[Part]:
    """The comparison of the models, the worst points, the repair steps, and a few sentences."""
    rows, integer = list(comparison_rows(run.evaluation)), run.integer
    if integer is not None and run.float_bytes is not None:
        rows.append(("size", megabytes(run.float_bytes / 1e6), "", megabytes(integer.bytes / 1e6)))
    yield table(f"{run.model} on {run.images} images", COMPARED, rows)
    if run.points:
        yield worst_table(run)
    if run.repair:
        steps = ((r.step, decibels(r.sqnr_before_db), decibels(r.sqnr_after_db)) for r in run.repair)
        yield table("Repair steps", ("step", "SQNR before", "SQNR after"), steps)
    active = sum(point.active for point in run.points.values())
    kept = float_phrase(run.kept_float.points, run.kept_float.multiplications)
    yield f"{active} of {len(run.points)} points are quantized; {kept}."
    if integer is None:
        yield f"No integer program: {run.refusal}"
        return
    yield computed_with(integer.executor)
    yield agreement_sentence(integer.points_compared, integer.first_divergence)
    yield "It uses integer arithmetic only, from pixels to logits."
    if run.float_bytes:
        yield f"Its size is {integer.bytes / run.float_bytes:.1%} of the float model."
