"""A profile as files and as a table."""

from __future__ import annotations

import csv
import io
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from vitquant.measure.profile import ModelProfile, PointProfile

if TYPE_CHECKING:
    from rich.table import Table

METRICS = (
    "sqnr_db",
    "mse",
    "cosine",
    "low",
    "high",
    "outlier_ratio",
    "clipped",
    "kl_divergence",
    "seconds",
    "histogram",
)
COLUMNS = (
    "name",
    "active",
    "bits",
    "signed",
    "calibration_mode",
    "observer_type",
    "shape",
    "sqnr_isolated_db",
    "sqnr_cumulative_db",
    *METRICS,
    "run",
)


def points_csv(profile: ModelProfile, run: str | None = None) -> str:
    """One line a point, the run that it is of in the last column.

    The columns from ``sqnr_db`` to ``histogram`` are filled where ``enable_profiler`` is set.
    """
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(row(point) | {"run": run} for point in profile.points)
    return text.getvalue()


def row(point: PointProfile) -> dict[str, Any]:
    """A point's values by column; what does not apply is left out."""
    values: dict[str, Any] = {"name": point.name, "active": point.active}
    if point.config is not None:
        values |= point.config.bit_type.model_dump()
        values |= {"calibration_mode": point.config.calibration_mode, "observer_type": point.config.observer_type}
    if point.shape is not None:
        values["shape"] = "x".join(str(n) for n in point.shape)
    if point.sqnr_isolated_db is not None and point.sqnr_cumulative_db is not None:
        values["sqnr_isolated_db"] = f"{point.sqnr_isolated_db:.2f}"
        values["sqnr_cumulative_db"] = f"{point.sqnr_cumulative_db:.2f}"
    if point.metrics is not None:
        metrics = asdict(point.metrics)
        histogram = " ".join(str(n) for n in metrics.pop("histogram"))
        values |= {name: f"{value:.6g}" for name, value in metrics.items()} | {"histogram": histogram}
    return values


def worst_table(profile: ModelProfile, count: int = 5) -> Table:
    """The points that cost the output most, as a table for the terminal."""
    from rich.table import Table

    table = Table(title=f"The {count} points that lose most (of {len(profile.points)})", title_justify="left")
    table.add_column("point")
    table.add_column("codes")
    table.add_column("alone: output SQNR", justify="right")
    table.add_column("in the chain: own SQNR", justify="right")
    for point in profile.worst(count):
        table.add_row(
            point.name,
            codes(point),
            f"{point.sqnr_isolated_db:.1f} dB",
            f"{point.sqnr_cumulative_db:.1f} dB",
        )
    return table


def codes(point: PointProfile) -> str:
    """Kind of a point's codes, such as ``int8 channel_wise``."""
    if point.config is None:
        return "float"
    bits = point.config.bit_type
    return f"{'int' if bits.signed else 'uint'}{bits.bits} {point.config.calibration_mode}"
