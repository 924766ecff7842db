"""The points of a run as a CSV file and as a table."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from vitquant.report.tables import table
from vitquant.report.units import decibels, marked

if TYPE_CHECKING:
    from rich.table import Table

    from vitquant.report.record import PointRecord, RunRecord

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
    "sqnr_isolated_estimated",
    "sqnr_cumulative_db",
    *METRICS,
    "run",
)
GRANULARITY = {"layer_wise": "per-tensor", "channel_wise": "per-channel", "head_wise": "per-head"}
WITH_HEADS = (
    *("attn_qkv.weight", "attn_proj.weight", "attn_q_out", "attn_k_out", "attn_kv_out"),
    *("intSoft", "attn_v_input", "attn_v_out"),
)
"""Points whose channels belong to attention heads; ``head_wise`` is per-group at all others."""


def points_csv(points: Iterable[PointRecord], run: str | None = None) -> str:
    """One line per point, with the run id in the last column.

    The columns from ``sqnr_db`` to ``histogram`` are filled if ``enable_profiler`` is set.
    """
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(row(point) | {"run": run} for point in points)
    return text.getvalue()


def row(point: PointRecord) -> dict[str, Any]:
    """The values of a point by column; columns that do not apply are omitted."""
    values: dict[str, Any] = {"name": point.name, "active": point.active}
    if point.config is not None:
        values |= point.config.bit_type.model_dump()
        values |= {"calibration_mode": point.config.calibration_mode, "observer_type": point.config.observer_type}
    if point.shape is not None:
        values["shape"] = "x".join(str(n) for n in point.shape)
    if point.active:
        values |= {"sqnr_isolated_db": point.isolated_db, "sqnr_cumulative_db": point.cumulative_db}
        values["sqnr_isolated_estimated"] = point.estimated
    if point.metrics is not None:
        metrics = asdict(point.metrics)
        histogram = " ".join(str(n) for n in metrics.pop("histogram"))
        values |= {name: f"{value:.6g}" for name, value in metrics.items()} | {"histogram": histogram}
    return values


def worst_table(run: RunRecord, count: int = 5) -> Table:
    """The points with the lowest isolated SQNR, as a table for the terminal."""
    return table(
        f"The {count} points with the lowest isolated SQNR (of {len(run.points)})",
        ("point", "type", "isolated SQNR", "cumulative SQNR"),
        ((p.name, type_name(p), isolated(p), decibels(p.cumulative_db)) for p in run.worst(count)),
        text_columns=2,
    )


def isolated(point: PointRecord) -> str:
    """The isolated SQNR with its unit, ``~`` before an estimate; empty for a point in floating point."""
    return marked(decibels(point.isolated_db), point.estimated) if point.active else ""


def type_name(point: PointRecord) -> str:
    """Integer type and granularity of a point, such as ``int8 per-channel``; empty if they are unknown."""
    if point.config is None or not point.active:
        return "" if point.active else "float"
    bits, mode = point.config.bit_type, point.config.calibration_mode
    grouped = mode == "head_wise" and not point.name.endswith(WITH_HEADS)
    return f"{'int' if bits.signed else 'uint'}{bits.bits} {'per-group' if grouped else GRANULARITY[mode]}"
