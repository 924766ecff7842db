"""The search for the settings of all points within a budget: estimates, an integer program, and runs of what it chose.

Each round solves the integer program on the table of estimates, quantizes the model with the settings that it chose and
measures it on the held-out images. What was measured corrects the estimates of these settings, and the next round
begins. It ends when a choice comes back, when no round improves any more, or when the time is up.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vitquant.adapters.adapt import FloatModel
from vitquant.architectures.model import QuantModel
from vitquant.arguments import require_kind, require_path
from vitquant.compiler.deployability import verdicts
from vitquant.compiler.float_share import products
from vitquant.config import ModelConfig, QuantConfig, repair_section
from vitquant.config.candidates import Candidates
from vitquant.data import ImagesLike
from vitquant.errors import ArtifactError, ConfigError
from vitquant.files import json_text, write_folder
from vitquant.measure.candidates import pairs
from vitquant.measure.table import float_outputs, measure
from vitquant.numerics.sqnr import decibel
from vitquant.report.sensitivity import SensitivityTable, Setting
from vitquant.report.tuning import RECORD, TUNED, Trial, TuneRecord, reason, tuned_yaml
from vitquant.strict_files import parse_json, read_file
from vitquant.tuning.budget import Budget
from vitquant.tuning.choose import Problem, Product, scipy_parts
from vitquant.workflows.quantize import ConfigLike, as_config
from vitquant.workflows.sensitivity import calibrated, fingerprint, hold_out, read_pixels, sensitivity

BITS = Candidates(bits=(4, 5, 6, 8, 12, 16), weight_bits=(2, 3, 4, 5, 6, 7, 8), observers=("minmax", "omse"))
"""What is chosen from if widths are chosen."""
RANGES = Candidates(
    observers=("minmax", "percentile", "kl", "omse"),
    modes=("layer_wise", "channel_wise", "head_wise"),
    percentiles=(0.999, 0.9999, 0.99999),
    softmax=("row", "diffusion", "log2"),
)
"""What is chosen from if all points keep their widths."""
PIXEL_BITS = 8
UNIFORM = 2
"""Choices with equal weights that are measured first."""
PATIENCE = 3
"""Rounds without an improvement after which the search ends."""
PARETO = 8
"""Points of the curve of predicted SQNR over cost."""


@dataclass
class Search:
    """The state of one search."""

    model: FloatModel
    start: QuantModel
    pixels: Tensor
    table: SensitivityTable
    problem: Problem
    budget: Budget
    build: Callable[[Mapping[str, QuantConfig]], QuantModel]
    simulation_only: bool
    batch_size: int
    known: Mapping[str, float]
    """Measured relative energies by key, of an earlier search."""

    def __post_init__(self) -> None:
        self.errors = self.table.energies.copy()
        self.now = [rows[0] for rows in self.table.points.values()]
        self.unseen = self.pixels[hold_out(len(self.pixels))]
        self.signal = float(self.table.signal[self.table.held_out].sum())
        self.exact: list[Tensor] | None = None
        self.limits = dict(self.budget.limits)
        for name in ("weight_bits", "activation_bits"):  # what has no budget gets no more bits than it had
            covered = {name, "gbop"} | ({"mb"} if name == "weight_bits" else set())
            if name in self.problem.costs and covered.isdisjoint(self.limits):
                self.limits[name] = self.problem.cost(name, self.now)

    def predicted(self, rows: Sequence[int]) -> float:
        """Relative energy of the output's error, by the corrected estimates."""
        change = float(self.errors[list(rows)].sum() - self.table.energies[self.now].sum())
        return max(self.table.measured + change, 1e-4 * self.table.measured)

    def choose(self) -> list[int] | None:
        """The best choice by the corrected estimates."""
        problem = replace(self.problem, errors=self.errors)
        if self.budget.least_db is None:
            return problem.solve(self.limits)
        limits = self.limits
        most = 10 ** (-self.budget.least_db / 10) - self.table.measured + float(self.table.energies[self.now].sum())
        smallest = problem.solve(limits, minimize="mb", most_error=most) if most > 0 else None
        return smallest or problem.solve(limits)

    def uniform(self) -> list[list[int]]:
        """Choices with the same width and observer for all weights, the best by the estimates first.

        A search that starts with them ends with nothing worse.
        """
        kinds = {row: kind_of(s) for row, s in enumerate(self.table.settings) if s.point.endswith(".weight")}
        found = []
        for kind in sorted(set(kinds.values()) if self.budget.limits else ()):
            errors = self.errors.copy()
            errors[[row for row, own in kinds.items() if own != kind]] = math.inf
            rows = replace(self.problem, errors=errors).solve(self.limits)
            if rows is not None:
                found.append(rows)
        return sorted(found, key=self.predicted)[:UNIFORM]

    def configs(self, rows: Sequence[int]) -> dict[str, QuantConfig]:
        """The settings that a choice changes."""
        chosen = (self.table.settings[row] for row in rows)
        return {s.point: s.config for s in chosen if not s.current}

    def forbid(self, rows: Sequence[int], model: QuantModel) -> bool:
        """Forbid the settings of a choice that integers cannot execute together; whether there were any."""
        if self.simulation_only:
            return False
        before = {v.point for v in verdicts(self.start) if not v.ships}
        refused = [v.point for v in verdicts(model) if not v.ships and v.point not in before]
        by_point = {self.table.settings[row].point: row for row in rows}
        found = [by_point[p] for p in refused if p in by_point and not self.table.settings[by_point[p]].current]
        self.errors[found] = math.inf
        return bool(found)

    def measured(self, model: QuantModel, key: str) -> float:
        """Relative energy of the output's error, measured on the held-out images."""
        if key in self.known:
            return self.known[key]
        if self.exact is None:
            self.exact = float_outputs(self.start, self.unseen, batch_size=self.batch_size)
        return measure(model, self.unseen, self.exact, batch_size=self.batch_size) / self.signal

    def correct(self, rows: Sequence[int], measured: float) -> None:
        """Make the estimates of the changed settings add up to what was measured."""
        changed = [row for row in rows if not self.table.settings[row].current]
        total = float(self.errors[changed].sum())
        wanted = total + measured - self.predicted(rows)
        if changed and total > 0:
            self.errors[changed] *= min(max(wanted / total, 0.25), 4.0)

    def trial(self, rows: Sequence[int], key: str, predicted: float, measured: float) -> Trial:
        """The record of a run."""
        costs = {name: self.problem.cost(name, rows) for name in self.problem.costs}
        fits = all(costs[name] <= limit * (1 + 1e-6) for name, limit in self.budget.limits.items())
        if self.budget.least_db is not None:
            fits = fits and decibel(1, measured) >= self.budget.least_db
        return Trial(key, costs, decibel(1, predicted), decibel(1, measured), fits)

    def better(self, one: Trial, other: Trial) -> bool:
        """Whether the first is the better one."""
        if one.fits != other.fits:
            return one.fits
        if one.fits and self.budget.least_db is not None:
            return (one.costs["mb"], -one.measured_db) < (other.costs["mb"], -other.measured_db)
        return one.measured_db > other.measured_db


def tune(
    model: FloatModel,
    config: ConfigLike,
    images: ImagesLike,
    *,
    budget: str | Budget = "best",
    out: str | Path,
    candidates: Candidates | None = None,
    limit: int | None = None,
    max_minutes: float = 10.0,
    draws: int = 8,
    seed: int = 0,
    batch_size: int = 8,
    device: str | torch.device = "cpu",
    output: str | None = None,
    simulation_only: bool = False,
    resume: bool = False,
    cache: str | Path | None = None,
) -> TuneRecord:
    """Choose the settings of all points within a budget; write ``tuned.yaml`` and ``tune.json`` into ``out``.

    The files are written after every round, so an interrupted search leaves the best so far.

    Args:
        model: from :func:`vitquant.adapt`.
        config: the configuration that the search begins with; its points, repair steps and other fields are kept.
        images: calibration images; every fourth is held out, and decides.
        budget: ``best`` (observers, granularities, forms), limits such as ``W4.5,A8``, ``12MB`` or ``300Gbop``, or
            an SQNR such as ``27dB`` (the smallest model that has it).
        out: folder of the results.
        candidates: the settings to choose from; by default widths and observers, or with ``best`` what keeps the bits.
        limit: use at most so many images.
        max_minutes: no further round begins after so many minutes.
        draws: random vectors per image for the estimates.
        seed: of these vectors.
        batch_size: images in one forward.
        device: where to compute.
        output: name of the main output, such as ``tokens``.
        simulation_only: also choose settings that integers cannot execute.
        resume: use what an earlier search in ``out`` measured.
        cache: folder for tables of estimates; ``out/cache`` by default.

    Raises:
        ConfigError: no budget, or no choice keeps it.
        MissingDependencyError: SciPy is not installed.
    """
    began = time.monotonic()
    require_kind(model, FloatModel, "model")
    goal = budget if isinstance(budget, Budget) else Budget.parse(budget)
    out = require_path(out, "out")
    scipy_parts()
    known = earlier(out) if resume else {}
    pixels = read_pixels(images, model, limit)
    base = as_config(config)

    def build(changed: Mapping[str, QuantConfig]) -> QuantModel:
        settings = with_settings(start, changed)
        return calibrated(model, settings, pixels, batch_size=batch_size, device=device, output=output)

    start = calibrated(model, base, pixels, batch_size=batch_size, device=device, output=output)
    table = sensitivity(
        start,
        pixels,
        candidates=candidates or (RANGES if goal.keeps_bits else BITS),
        name=model.name,
        draws=draws,
        seed=seed,
        batch_size=batch_size,
        simulation_only=simulation_only,
        cache=out / "cache" if cache is None else cache,
    )
    problem = problem_of(start, table)
    search = Search(model, start, pixels, table, problem, goal, build, simulation_only, batch_size, known)
    pareto_cost = next(iter(goal.limits), "mb")
    record = TuneRecord(
        model=model.name,
        budget=goal.text,
        seed=seed,
        held_out=int(table.held_out.sum()),
        trials=(search.trial(search.now, fingerprint(start, pixels), table.measured, table.measured),),
        best=0,
        pareto_cost=pareto_cost,
        pareto=() if goal.keeps_bits else pareto(search, pareto_cost),
        overfitted=dict(table.overfitted()),
    )
    write(out, search, record, search.now)
    first = search.uniform()
    tried, idle, chosen = {tuple(search.now)}, 0, [search.now]
    while record.finished is None:
        if time.monotonic() - began > 60 * max_minutes:
            record = replace(record, finished=f"{max_minutes:g} minutes are over (--max-minutes)")
            break
        rows = first.pop(0) if first else search.choose()
        if rows is None:
            if not any(t.fits for t in record.trials):
                limits = ", ".join(f"{name} {value:g}" for name, value in goal.limits.items())
                raise ConfigError(
                    "no choice of settings keeps the budget",
                    where="budget",
                    got=limits or goal.text,
                    expected="settings with fewer bits",
                    fix="raise it, or compare settings with fewer bits (--bits 2,3,4,6,8)",
                )
            record = replace(record, finished="no other choice is left")
            break
        if tuple(rows) in tried and first:
            continue
        if tuple(rows) in tried:
            record = replace(record, finished="the corrected estimates lead to a choice that was measured before")
            break
        quantized = build(search.configs(rows))
        if search.forbid(rows, quantized):
            continue
        tried.add(tuple(rows))
        key = fingerprint(quantized, pixels)
        predicted, measured = search.predicted(rows), search.measured(quantized, key)
        trial = search.trial(rows, key, predicted, measured)
        if not first:
            search.correct(rows, measured)
        chosen.append(rows)
        improved = search.better(trial, record.trials[record.best])
        record = replace(
            record,
            trials=(*record.trials, trial),
            best=len(record.trials) if improved else record.best,
        )
        idle = 0 if improved or first else idle + (trial.fits or goal.least_db is None)
        if idle >= PATIENCE:
            record = replace(record, finished=f"{PATIENCE} rounds brought no improvement")
        write(out, search, record, chosen[record.best])
    write(out, search, record, chosen[record.best])
    return record


def write(out: Path, search: Search, record: TuneRecord, rows: Sequence[int]) -> None:
    """Write the best so far, and the record."""
    table, changed = search.table, search.configs(rows)
    by_point = {table.settings[row].point: row for row in rows}
    why = {}
    for point in changed:
        now = table.points[point][0]
        why[point] = reason(point, table.settings[now].config, table.db(now), table.db(by_point[point]))
    best, first = record.trials[record.best], record.trials[0]
    head = (
        f"{record.model}, budget {record.budget}: {best.measured_db:.2f} dB on {record.held_out} held-out images, "
        f"{first.measured_db:.2f} dB before; {best.costs['mb']:.2f} MB of weights, {first.costs['mb']:.2f} before.\n"
        "Beside each changed point: the estimated SQNR of the output with this point alone quantized, before and after."
    )
    text = tuned_yaml(search.start.config, changed, why, head)
    write_folder(out, {TUNED: text, RECORD: json_text(record.to_dict()) + "\n"})


def with_settings(start: QuantModel, changed: Mapping[str, QuantConfig]) -> ModelConfig:
    """The configuration of a model with other settings at some points, and its repair steps."""
    table: dict[str, Any] = {name: config for name, config in start.config.items() if config is not None}
    document: dict[str, Any] = {"overrides": table | dict(changed)}
    return ModelConfig.from_dict(document | repair_section(start.config.repair))


def kind_of(setting: Setting) -> tuple[int, str]:
    """Width and observer of a setting."""
    return setting.config.bit_type.bits, setting.config.observer_type


def problem_of(model: QuantModel, table: SensitivityTable) -> Problem:
    """The integer program of a table: points, costs, matrix products, and Q and K with the same granularity."""
    points, rows = model.point_modules(), table.points
    weights = {linear.weight.name: linear.float_weight.numel() for linear in model.linears()}
    sizes = {p: weights.get(p, math.prod(points[p].shape or (0,))) for p in rows}
    bits = np.array([s.config.bit_type.bits for s in table.settings], dtype=float)
    size = np.array([sizes[s.point] for s in table.settings], dtype=float)
    is_weight = np.array([s.point in weights for s in table.settings])
    totals = [sum(n for p, n in sizes.items() if (p in weights) is kind) for kind in (True, False)]
    costs: dict[str, np.ndarray] = {"mb": np.where(is_weight, bits * size / 8e6, 0)}
    if totals[0]:
        costs["weight_bits"] = np.where(is_weight, bits * size / totals[0], 0)
    if totals[1]:
        costs["activation_bits"] = np.where(is_weight, 0, bits * size / totals[1])
    costs["gbop"] = np.zeros(len(bits))
    made = []
    for product in products(model):
        chosen = [p for p in product.operands if p in rows]
        if len(chosen) == 2:
            first, second = ({row: int(bits[row]) for row in rows[p]} for p in chosen)
            made.append(Product(product.multiplications, (first, second)))
        elif chosen:
            fixed = PIXEL_BITS
            for name in product.operands:
                config = points[name].config
                if name not in rows and config is not None:
                    fixed = config.bit_type.bits
            own = list(rows[chosen[0]])
            costs["gbop"][own] += product.multiplications * fixed * bits[own] / 1e9
    tied = []
    for name, (_, other) in pairs(model):
        if name in rows and other.name in rows and name < other.name:
            tied.append((per_channel(table, rows[name]), per_channel(table, rows[other.name])))
    return Problem(table.energies, list(rows.values()), costs, made, tied)


def per_channel(table: SensitivityTable, rows: Sequence[int]) -> list[int]:
    """The rows with a scale per channel."""
    return [row for row in rows if table.settings[row].config.calibration_mode == "channel_wise"]


def pareto(search: Search, name: str) -> tuple[tuple[float, float], ...]:
    """Cost and predicted SQNR of the best choices within a few limits of one cost."""
    low, high = search.problem.coefficients_range(name)
    others = {key: limit for key, limit in search.limits.items() if key not in (name, "weight_bits")}
    found = []
    for limit in np.linspace(low, min(high, search.problem.cost(name, search.now)), PARETO):
        rows = search.problem.solve({**others, name: float(limit)})
        if rows is not None:
            found.append((search.problem.cost(name, rows), decibel(1, search.predicted(rows))))
    return tuple(dict.fromkeys(found))


def earlier(out: Path) -> dict[str, float]:
    """What an earlier search measured, by key.

    Raises:
        ArtifactError: there is no search, or its record is damaged.
    """
    path = out / RECORD
    fix = "omit --resume to start a new search"
    if not path.exists():
        raise ArtifactError("there is no search to resume", where=str(out), expected=f"the file {RECORD}", fix=fix)
    told = parse_json(read_file(path, 2**26, "the record", ArtifactError), str(path), "the record", ArtifactError)
    try:
        return {str(t["key"]): 10 ** (-float(t["measured_db"]) / 10) for t in told["trials"]}
    except (KeyError, TypeError, ValueError) as error:
        raise ArtifactError("the record is damaged", where=str(path), fix=fix) from error
