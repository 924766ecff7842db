"""What other settings of each point would cost: the table of estimates, its files and its views. Needs no torch."""

from __future__ import annotations

import csv
import io
import math
import zipfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from vitquant.arguments import require_path
from vitquant.config import POINT_KINDS, PointKind, QuantConfig, section_of
from vitquant.config.candidates import setting_label
from vitquant.errors import ArtifactError, ConfigError
from vitquant.files import json_text
from vitquant.report.tables import Part, as_text, table
from vitquant.report.units import decibels, marked
from vitquant.strict_files import parse_json, read_file

TABLE, CSV, PRODUCTS = "sensitivity.json", "sensitivity.csv", "sensitivity.npz"
MAX_BYTES = 2**30
COLUMNS = ("point", "setting", "current", "sqnr_isolated_db", "estimated", "sqnr_after_db")
"""Of the CSV file."""
OVERFITTED = 2.0
"""How many times the loss on calibration images that on held-out images must be to be reported."""
FLOOR = 1e-30


@dataclass(frozen=True)
class Setting:
    """One row: a point with settings that it has or could have.

    ``current``: it has them. ``exact_db`` is the SQNR of the output with this point alone quantized, measured by
    running the model on the held-out images; ``None`` if only the estimate is known.
    """

    point: str
    config: QuantConfig
    current: bool
    exact_db: float | None = None

    @property
    def label(self) -> str:
        """The settings in a few words."""
        return setting_label(self.config, self.point)


@dataclass(frozen=True, eq=False)
class SensitivityTable:
    """What each setting of each point costs at the output, to first order.

    Args:
        model: its name.
        output: the output that is measured.
        settings: the rows; the current setting of a point comes first.
        products: per row, the inner products of the output's random vectors with the error that the setting makes,
            float32 ``[images, draws, rows]``. The squares of a row sum to the energy of the output's error; the
            products of several rows add up before they are squared.
        signal: energy of the float output, per image.
        noise: energy of its error with everything quantized as it is now, measured, per image.
        held_out: the images that the quantization parameters were not chosen on. The figures are those on these.
    """

    model: str
    output: str
    settings: tuple[Setting, ...]
    products: np.ndarray
    signal: np.ndarray
    noise: np.ndarray
    held_out: np.ndarray

    def __repr__(self) -> str:
        return f"<SensitivityTable of {self.model}, {len(self.settings)} settings of {len(self.points)} points>"

    def __str__(self) -> str:
        return as_text(sensitivity_parts(self))

    @cached_property
    def points(self) -> Mapping[str, tuple[int, ...]]:
        """The rows of each point, the current setting first."""
        found: dict[str, list[int]] = {}
        for index, setting in enumerate(self.settings):
            found.setdefault(setting.point, []).append(index)
        return {point: tuple(rows) for point, rows in found.items()}

    @cached_property
    def energies(self) -> np.ndarray:
        """Estimated energy of the output's error relative to the output's, per row.

        It is that on the held-out images; for weights, whose integers were not chosen by images, that on all images,
        which has a smaller random error. A figure that was measured takes the place of the estimate.
        """
        every = self.isolated(np.ones_like(self.held_out))
        weights = [POINT_KINDS[section_of(s.point)] is PointKind.WEIGHT for s in self.settings]
        found = np.where(weights, every, self.isolated(self.held_out))
        for index, setting in enumerate(self.settings):
            if setting.exact_db is not None:
                found[index] = 10 ** (-setting.exact_db / 10)
        return found

    def isolated(self, images: np.ndarray) -> np.ndarray:
        """Estimated relative energy of the output's error per row, on some of the images (a mask)."""
        total = float(self.signal[images].sum())
        energies: np.ndarray = np.square(self.products[images], dtype=np.float64).sum((0, 1))
        return energies / total

    @property
    def measured(self) -> float:
        """Relative energy of the output's error with everything quantized as it is, on the held-out images."""
        return float(self.noise[self.held_out].sum() / self.signal[self.held_out].sum())

    @property
    def measured_db(self) -> float:
        """The SQNR of the output with everything quantized as it is, on the held-out images."""
        return decibel(self.measured)

    @property
    def calibration_db(self) -> float | None:
        """The same on the calibration images."""
        seen = ~self.held_out
        return decibel(float(self.noise[seen].sum() / self.signal[seen].sum())) if seen.any() else None

    def db(self, row: int) -> float:
        """The SQNR of the output if the point of a row alone is quantized."""
        return decibel(float(self.energies[row]))

    def after_db(self, rows: Sequence[int]) -> float:
        """The predicted SQNR of the output with other settings at the points of these rows.

        It is predicted as a change of what was measured: the estimates of the new settings in place of the current.
        """
        now = [self.points[self.settings[row].point][0] for row in rows]
        change = float(self.energies[list(rows)].sum() - self.energies[now].sum())
        return decibel(max(self.measured + change, self.measured * 1e-3))

    def ranked(self) -> list[int]:
        """The rows that change a point, those after which the output is best first."""
        return sorted((i for i, s in enumerate(self.settings) if not s.current), key=lambda i: (-self.after_db([i]), i))

    def overfitted(self) -> list[tuple[str, float]]:
        """The points whose current setting loses much more on held-out images, and how many times, the worst first.

        Points whose loss is below a hundredth of the whole are left out.
        """
        if not (~self.held_out).any():
            return []
        seen, unseen = self.isolated(~self.held_out), self.isolated(self.held_out)
        found = []
        for point, rows in self.points.items():
            row = rows[0]
            ratio = float(unseen[row] / max(seen[row], FLOOR))
            if ratio >= OVERFITTED and unseen[row] >= self.measured / 100:
                found.append((point, ratio))
        return sorted(found, key=lambda item: -item[1])

    def with_exact(self, exact: Mapping[int, float]) -> SensitivityTable:
        """The table with measured SQNRs at some rows."""
        settings = tuple(replace(s, exact_db=exact[i]) if i in exact else s for i, s in enumerate(self.settings))
        return replace(self, settings=settings)

    def to_dict(self) -> dict[str, Any]:
        """The content of ``sensitivity.json``, but for the inner products."""
        rows = [
            {
                "point": s.point,
                "current": s.current,
                "settings": s.config.model_dump(),
                "sqnr_isolated_db": round(self.db(i), 3),
                "estimated": s.exact_db is None,
                "sqnr_after_db": round(self.after_db([i]), 3),
            }
            for i, s in enumerate(self.settings)
        ]
        return {
            "model": self.model,
            "output": self.output,
            "images": len(self.signal),
            "held_out": [int(i) for i in np.flatnonzero(self.held_out)],
            "sqnr_db": round(self.measured_db, 3),
            "sqnr_calibration_db": None if self.calibration_db is None else round(self.calibration_db, 3),
            "overfitted": {point: round(ratio, 2) for point, ratio in self.overfitted()},
            "rows": rows,
        }

    def files(self) -> dict[str, str | bytes]:
        """The files of the table."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(COLUMNS)
        for row in self.to_dict()["rows"]:
            label = setting_label(QuantConfig.model_validate(row["settings"]), row["point"])
            after = "" if row["current"] else row["sqnr_after_db"]
            writer.writerow((row["point"], label, row["current"], row["sqnr_isolated_db"], row["estimated"], after))
        arrays = io.BytesIO()
        np.savez_compressed(
            arrays, products=self.products, signal=self.signal, noise=self.noise, held_out=self.held_out
        )
        return {PRODUCTS: arrays.getvalue(), CSV: text.getvalue(), TABLE: json_text(self.to_dict()) + "\n"}


def load_sensitivity(folder: str | Path) -> SensitivityTable:
    """Read the table that ``vitquant sensitivity`` or ``sweep`` wrote.

    Raises:
        ArtifactError: there is none, or it is damaged.
    """
    path = require_path(folder, "folder")
    fix = "run `vitquant sensitivity` again"
    if not (path / TABLE).exists():
        expected = f"the file {TABLE}"
        raise ArtifactError("there is no sensitivity table here", where=str(path), expected=expected, fix=fix)
    text, stored = (read_file(path / name, MAX_BYTES, "the table", ArtifactError) for name in (TABLE, PRODUCTS))
    told = parse_json(text, str(path), "the table", ArtifactError)
    try:
        with np.load(io.BytesIO(stored), allow_pickle=False) as arrays:
            parts = {name: arrays[name] for name in ("products", "signal", "noise", "held_out")}
        settings = tuple(
            Setting(
                row["point"],
                QuantConfig.model_validate(row["settings"]),
                row["current"] is True,
                None if row["estimated"] is True else float(row["sqnr_isolated_db"]),
            )
            for row in told["rows"]
        )
        made = SensitivityTable(str(told["model"]), str(told["output"]), settings, **parts)
        images = len(made.signal)
        fits = made.products.ndim == 3 and made.products.shape[::2] == (images, len(settings))
        fits = fits and made.noise.shape == made.held_out.shape == (images,) and made.held_out.dtype == bool
        if not (fits and all(np.isfinite(a).all() for a in parts.values())):
            raise ValueError("its arrays do not fit its rows")
    except (ValueError, KeyError, TypeError, EOFError, OSError, zipfile.BadZipFile, zlib.error, ConfigError) as error:
        raise ArtifactError(f"the table is damaged: {error}", where=str(path), fix=fix) from error
    return made


def decibel(ratio: float) -> float:
    """Of an energy of noise relative to that of the signal."""
    return -10 * math.log10(max(ratio, FLOOR))


def sensitivity_parts(found: SensitivityTable, shown: int = 8) -> Iterator[Part]:
    """The tables for the terminal: what helps and what costs, a row per point; how far held-out images differ."""
    seen, unseen = int((~found.held_out).sum()), int(found.held_out.sum())
    yield (
        f"{found.model}: {len(found.points)} points, {len(found.settings) - len(found.points)} other settings; "
        f"{seen} images to calibrate, {unseen} held out to choose on."
    )
    order = found.ranked()
    best = {name: first_per_point(found, rows) for name, rows in by_width(found, order).items()}
    helping = {
        name: [row for row in rows if found.after_db([row]) - found.measured_db > 0.005] for name, rows in best.items()
    }
    for name in ("the same bits", "more bits"):
        if helping[name]:
            title = f"With {name}, {len(helping[name])} points gain"
            yield setting_table(title, found, helping[name][:shown])
    fewer = by_width(found, order)["fewer bits"]
    if fewer:
        narrowest = first_per_point(found, list(reversed(fewer)))
        yield setting_table("With fewer bits, these lose most", found, narrowest[:shown])
        yield setting_table("With fewer bits, these lose least", found, best["fewer bits"][:shown])
    yield from held_out_parts(found)


def by_width(found: SensitivityTable, order: Sequence[int]) -> dict[str, list[int]]:
    """The rows that have as many bits as the current setting of their point, more, and fewer."""
    parts: dict[str, list[int]] = {"the same bits": [], "more bits": [], "fewer bits": []}
    for row in order:
        setting = found.settings[row]
        now = found.settings[found.points[setting.point][0]].config.bit_type.bits
        change = setting.config.bit_type.bits - now
        parts["the same bits" if not change else "more bits" if change > 0 else "fewer bits"].append(row)
    return parts


def first_per_point(found: SensitivityTable, rows: Sequence[int]) -> list[int]:
    """The first row of each point."""
    first: dict[str, int] = {}
    for row in rows:
        first.setdefault(found.settings[row].point, row)
    return list(first.values())


def grid_parts(found: SensitivityTable) -> Iterator[Part]:
    """All settings of each point, the best first."""
    rows = [row for rows in found.points.values() for row in sorted(rows, key=lambda i: (float(found.energies[i]), i))]
    yield table(
        f"{found.model}, on {int(found.held_out.sum())} held-out images",
        ("point", "setting", "", "alone", "whole model"),
        (grid_row(found, row) for row in rows),
        text_columns=3,
    )
    yield from held_out_parts(found)


def grid_row(found: SensitivityTable, row: int) -> tuple[str, ...]:
    """One setting of a grid."""
    setting = found.settings[row]
    change = "" if setting.current else f"{found.after_db([row]) - found.measured_db:+.2f} dB"
    return setting.point, setting.label, "now" if setting.current else "", alone(found, row), change


def alone(found: SensitivityTable, row: int) -> str:
    """The SQNR with a point alone quantized, marked if it is an estimate."""
    return marked(decibels(found.db(row)), found.settings[row].exact_db is None)


def setting_table(title: str, found: SensitivityTable, rows: Sequence[int]) -> Part:
    """A table of settings and what they change."""
    return table(
        title,
        ("point", "now", "instead", "alone now", "instead", "whole model"),
        (setting_row(found, row) for row in rows),
        text_columns=3,
    )


def setting_row(found: SensitivityTable, row: int) -> tuple[str, ...]:
    """One setting beside the current one of its point."""
    setting = found.settings[row]
    now = found.points[setting.point][0]
    change = found.after_db([row]) - found.measured_db
    return (
        setting.point,
        found.settings[now].label,
        setting.label,
        alone(found, now),
        alone(found, row),
        f"{change:+.2f} dB",
    )


def held_out_parts(found: SensitivityTable) -> Iterator[Part]:
    """How far held-out images differ from those that were calibrated on."""
    if found.calibration_db is None:
        yield f"Everything quantized as it is: {decibels(found.measured_db)}, measured."
        return
    yield (
        f"Everything quantized as it is, measured: {decibels(found.measured_db)} on held-out images, "
        f"{decibels(found.calibration_db)} on calibration images."
    )
    points = found.overfitted()
    if points:
        named = ", ".join(f"{point} ({ratio:.1f} times)" for point, ratio in points[:5])
        more = f" and {len(points) - 5} more" if len(points) > 5 else ""
        yield f"Points that lose much more on held-out images; their ranges fit the others too closely: {named}{more}."
