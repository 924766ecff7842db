"""What a search for settings tried and found: ``tune.json``, ``tuned.yaml``, and the tables for the terminal."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import yaml

from vitquant.config import QuantConfig, repair_section
from vitquant.config.candidates import setting_label
from vitquant.config.emit import difference, dump, model_sections
from vitquant.config.model_config import ResolvedConfig
from vitquant.report.tables import Part, table
from vitquant.report.units import decibels

RECORD, TUNED = "tune.json", "tuned.yaml"


@dataclass(frozen=True)
class Trial:
    """A configuration that was run: its costs, and its SQNR on the held-out images, predicted and measured.

    ``key`` is a digest of everything that the figure depends on. ``fits``: it keeps the budget.
    """

    key: str
    costs: Mapping[str, float]
    predicted_db: float
    measured_db: float
    fits: bool


@dataclass(frozen=True)
class TuneRecord:
    """A search: the budget, what was tried in order (the start first), and the best trial, if one fits.

    ``pareto`` are pairs of a cost and the predicted SQNR that the best choice within it has; ``pareto_cost`` is its
    name. ``finished`` says why the search ended, or is ``None`` while it has not.
    """

    model: str
    budget: str
    seed: int
    held_out: int
    trials: tuple[Trial, ...]
    best: int
    pareto_cost: str
    pareto: tuple[tuple[float, float], ...]
    overfitted: Mapping[str, float] = field(default_factory=dict)
    finished: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """The content of ``tune.json``."""
        return {
            "model": self.model,
            "budget": self.budget,
            "seed": self.seed,
            "held_out_images": self.held_out,
            "best": self.best,
            "finished": self.finished,
            "trials": [
                {
                    "key": t.key,
                    "costs": {name: round(cost, 4) for name, cost in t.costs.items()},
                    "predicted_db": round(t.predicted_db, 3),
                    "measured_db": t.measured_db,
                    "fits": t.fits,
                }
                for t in self.trials
            ],
            "pareto_cost": self.pareto_cost,
            "pareto": [[round(cost, 4), round(db, 3)] for cost, db in self.pareto],
            "overfitted": {name: round(ratio, 2) for name, ratio in self.overfitted.items()},
        }


UNITS = {
    "weight_bits": "bits per weight",
    "activation_bits": "bits per activation",
    "mb": "weights, MB",
    "gbop": "bit operations, G",
}


def tune_parts(found: TuneRecord) -> Iterator[Part]:
    """The tables for the terminal."""
    names = [name for name in UNITS if name in found.trials[0].costs]
    yield table(
        f"{found.model}, budget {found.budget}, on {found.held_out} held-out images",
        ("", *(UNITS[name] for name in names), "predicted", "measured"),
        (trial_row(found, number, names) for number in range(len(found.trials))),
    )
    if found.pareto:
        yield table(
            f"What the estimates promise for other budgets ({UNITS[found.pareto_cost]})",
            (UNITS[found.pareto_cost], "predicted"),
            ((f"{cost:.2f}", f"~{decibels(db)}") for cost, db in found.pareto),
        )
    if found.overfitted:
        named = ", ".join(f"{name} ({ratio:.1f} times)" for name, ratio in list(found.overfitted.items())[:5])
        yield f"Points that lost much more on held-out images before the search: {named}."
    if found.finished:
        yield f"Ended: {found.finished}."


def trial_row(found: TuneRecord, number: int, names: Sequence[str]) -> tuple[str, ...]:
    """One configuration."""
    trial = found.trials[number]
    label = "start" if number == 0 else f"try {number}"
    if number == found.best:
        label += ", best"
    costs = [f"{trial.costs[name]:.2f}" for name in names]
    predicted = "" if number == 0 else f"~{decibels(trial.predicted_db, 2)}"
    return label, *costs, predicted, decibels(trial.measured_db, 2)


def tuned_yaml(start: ResolvedConfig, final: Mapping[str, QuantConfig], why: Mapping[str, str], head: str) -> str:
    """A configuration file: the sections of the start, and the changed points as overrides with the reason beside each.

    Args:
        start: the configuration that the search began with.
        final: the settings of the changed points.
        why: the reason for each of them.
        head: lines of comment for the top of the file.
    """
    sections = model_sections(start)
    before: Any = sections.pop("overrides", {})
    lines = [f"# {line}" for line in head.splitlines()]
    lines += ["# Sections without a comment are those that the search began with.", dump(sections).rstrip("\n")]
    overrides: dict[str, tuple[Any, str]] = {point: (fields, "as before") for point, fields in before.items()}
    for point, config in final.items():
        own = start[point]
        assert own is not None
        fields = merged(before.get(point, {}), difference(config, own))
        overrides[point] = fields, why[point]
    if overrides:
        lines.append("overrides:")
        order = [point for point in start if point in overrides]
        for point in order:
            fields, reason = overrides[point]
            text = yaml.safe_dump(fields, sort_keys=False, default_flow_style=True, width=10_000).strip()
            lines.append(f"  {point}: {text}  # {reason}")
    if start.repair:
        lines.append(dump(repair_section(start.repair)).rstrip("\n"))
    return "\n".join(lines) + "\n"


def merged(base: Mapping[str, Any], more: Mapping[str, Any]) -> dict[str, Any]:
    """Nested settings, of which the second go before the first."""
    made = dict(base)
    for key, value in more.items():
        made[key] = merged(made[key], value) if isinstance(value, Mapping) and key in made else value
    return made


def reason(point: str, before: QuantConfig, before_db: float, after_db: float) -> str:
    """Why a point has another setting."""
    return f"alone {decibels(before_db)} -> {decibels(after_db)}, was {setting_label(before, point)}"
