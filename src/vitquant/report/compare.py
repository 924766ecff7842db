"""Two runs compared: their results, and what each point lost or gained."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from vitquant.report.points import isolated, type_name
from vitquant.report.tables import Part, as_text, table
from vitquant.report.units import decibels, difference, megabytes, percent
from vitquant.results import first_names

if TYPE_CHECKING:
    from rich.table import Table

    from vitquant.report.record import PointRecord, RunRecord

MIN_CHANGE_DB = 0.05
"""Smaller changes of an SQNR are not visible in a table."""

MOST_ROWS = 10
"""Most points in a table."""

FORMATS: dict[str, tuple[Callable[[Any], str], int]] = {"%": (percent, 2), "dB": (decibels, 1), "MB": (megabytes, 1)}
"""How values of a unit are written, and the digits of a change."""


@dataclass(frozen=True)
class MetricChange:
    """A result in both runs; ``None`` where it was not measured."""

    name: str
    unit: str
    before: float | None
    after: float | None

    @property
    def change(self) -> str:
        """The change as text; empty where a result is missing, or only one of them is identical to the float model."""
        return difference(self.before, self.after, self.unit, FORMATS[self.unit][1])

    def cells(self) -> tuple[str, ...]:
        """The row of a table."""
        text = FORMATS[self.unit][0]
        return self.name, text(self.before), text(self.after), self.change


@dataclass(frozen=True)
class PointChange:
    """A point in both runs."""

    before: PointRecord
    after: PointRecord

    @property
    def name(self) -> str:
        """The name of the point."""
        return self.after.name

    @property
    def isolated_db(self) -> float:
        """The change of the isolated SQNR, in dB."""
        return self.after.isolated_db - self.before.isolated_db

    @property
    def reconfigured(self) -> bool:
        """Whether the settings differ, where both are recorded."""
        before, after = self.before.config, self.after.config
        return before is not None and after is not None and before != after

    def cells(self) -> tuple[str, ...]:
        """The row of a table."""
        before, after = self.before, self.after
        types = dict.fromkeys(filter(None, (type_name(before), type_name(after))))
        alone, cumulative = (
            MetricChange(self.name, "dB", a if before.active else None, b if after.active else None)
            for a, b in ((before.isolated_db, after.isolated_db), (before.cumulative_db, after.cumulative_db))
        )
        return self.name, " → ".join(types), isolated(before), isolated(after), alone.change, cumulative.change


@dataclass(frozen=True)
class RunComparison:
    """What changed between two runs. ``print(comparison)`` gives tables."""

    before: RunRecord
    after: RunRecord

    def __str__(self) -> str:
        return as_text(comparison_tables(self))

    @property
    def metrics(self) -> tuple[MetricChange, ...]:
        """The results that one of the runs has."""
        old, new = (results(run) for run in (self.before, self.after))
        changes = (MetricChange(name, unit, old[name, unit], new[name, unit]) for name, unit in old)
        return tuple(change for change in changes if change.before is not None or change.after is not None)

    @property
    def points(self) -> tuple[PointChange, ...]:
        """The points that both runs have, the one that lost most isolated SQNR first."""
        old, new = self.before.points, self.after.points
        common = (PointChange(old[name], point) for name, point in new.items() if name in old)
        return tuple(sorted(common, key=lambda point: point.isolated_db))

    @property
    def worse(self) -> tuple[PointChange, ...]:
        """The points that lost isolated SQNR, the largest loss first."""
        return tuple(point for point in self.points if point.isolated_db <= -MIN_CHANGE_DB)

    @property
    def better(self) -> tuple[PointChange, ...]:
        """The points that gained isolated SQNR, the largest gain first."""
        return tuple(point for point in reversed(self.points) if point.isolated_db >= MIN_CHANGE_DB)

    def to_dict(self) -> dict[str, Any]:
        """The comparison as JSON."""
        return {
            "before": self.before.run,
            "after": self.after.run,
            "metrics": {m.name: {"unit": m.unit, "before": m.before, "after": m.after} for m in self.metrics},
            "points": {
                p.name: {
                    "reconfigured": p.reconfigured,
                    "sqnr_isolated_db": [r.isolated_db if r.active else None for r in (p.before, p.after)],
                    "sqnr_isolated_estimated": [r.estimated for r in (p.before, p.after)],
                    "sqnr_cumulative_db": [r.cumulative_db for r in (p.before, p.after)],
                }
                for p in self.points
            },
        }


def results(run: RunRecord) -> dict[tuple[str, str], float | None]:
    """The results of a run by name and unit."""
    integer = run.integer
    top1, sqnr, size = (None,) * 3 if integer is None else (integer.top1, integer.sqnr_db, integer.bytes / 1e6)
    return {
        ("top-1, float", "%"): run.fp32.top1,
        ("top-1, simulated", "%"): run.quantized.top1,
        ("top-1, integer", "%"): top1,
        ("same class as float", "%"): run.quantized.agreement,
        ("SQNR of the output", "dB"): run.sqnr_db,
        ("SQNR at the final norm", "dB"): run.sqnr_final_norm_db,
        ("SQNR of the integer output", "dB"): sqnr,
        ("size of the program", "MB"): size,
        ("multiplications in floating point", "%"): 100 * run.kept_float.multiplications or None,
    }


def comparison_tables(found: RunComparison) -> Iterator[Part]:
    """The results before and after, the points that are worse, those that are better, and what explains them."""
    old, new = found.before, found.after
    yield table(
        f"{new.model}: run {new.run} compared with run {old.run}",
        ("", "before", "after", "change"),
        (metric.cells() for metric in found.metrics),
    )
    for points, what in ((found.worse, "lower"), (found.better, "higher")):
        if points:
            yield points_table(points, what)
    rest = len(found.points) - len(found.worse) - len(found.better)
    yield f"The isolated SQNR of {rest} of {len(found.points)} points changed by less than {MIN_CHANGE_DB} dB."
    mixed = sum(point.before.estimated != point.after.estimated for point in found.points)
    if mixed:
        share = f"{mixed} of {len(found.points)} points"
        yield f"The isolated SQNR of {share} is an estimate (~) in one run only, and may differ for that reason."
    reconfigured = {point.name for point in found.points if point.reconfigured}
    if changed := [name for name in new.points if name in reconfigured]:
        yield f"The settings differ at {first_names(changed)}."
    if alone := [name for name in {**old.points, **new.points} if name not in old.points or name not in new.points]:
        yield f"Only one of the runs has {first_names(alone)}."
    if old.model != new.model:
        yield f"The models differ: {old.model} before, {new.model} after."
    if old.images != new.images:
        yield f"The numbers of evaluation images differ: {old.images} before, {new.images} after."


def points_table(points: tuple[PointChange, ...], what: str) -> Table:
    """The points with the largest changes."""
    shown = f"the {MOST_ROWS} of {len(points)} with the largest change" if len(points) > MOST_ROWS else len(points)
    return table(
        f"Points with a {what} isolated SQNR ({shown})",
        ("point", "type", "isolated before", "after", "change", "change of cumulative"),
        (point.cells() for point in points[:MOST_ROWS]),
        text_columns=2,
    )
