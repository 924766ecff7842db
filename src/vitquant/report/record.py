"""The record of a run: everything that was measured. ``summary.json`` contains it, and all tables are views of it.

The names of the fields are the keys of ``summary.json``, unless a field says otherwise: ``run.integer.top1`` is
``integer.top1``. Needs no torch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, TypeAlias

from vitquant.arguments import require_kind
from vitquant.config import ModelConfig, QuantConfig, ResolvedConfig
from vitquant.config.repair import REPAIR_SETTINGS, repair_settings
from vitquant.config.resolve import Resolution
from vitquant.errors import ArtifactError, ConfigError
from vitquant.report.compare import RunComparison
from vitquant.report.json_fields import FIX, Bounds, decode, decode_value, encode, require_keys
from vitquant.report.run_tables import run_tables
from vitquant.report.tables import as_text
from vitquant.results import IDENTICAL_DB, Divergence, Evaluation, IntegerEvaluation, PointMetrics

Count: TypeAlias = Annotated[int, Bounds(0, 2**48)]
Percent: TypeAlias = Annotated[float, Bounds(0, 100)]
Share: TypeAlias = Annotated[float, Bounds(0, 1)]


@dataclass(frozen=True)
class PreprocessingRecord:
    """How images were converted to the model's input, as in :class:`vitquant.Preprocessing`."""

    img_size: tuple[Count, Count]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    interpolation: str
    crop_pct: float


@dataclass(frozen=True)
class FloatRecord:
    """The float model; ``top1`` in percent, ``None`` without labels."""

    top1: Percent | None


@dataclass(frozen=True)
class SimulatedRecord:
    """The simulated model; ``agreement`` is the share of images with the float model's class, in percent."""

    top1: Percent | None
    agreement: Percent | None


@dataclass(frozen=True)
class IntegerRecord:
    """The integer program: its accuracy, and how it compares with the simulation.

    ``points_compared`` is the number of points whose codes were compared, ``first_divergence`` the first that differs.
    ``bytes`` is the size of the program.
    """

    top1: Percent | None
    agreement: Percent | None
    sqnr_db: float
    to_simulated_db: float
    executor: str
    points_compared: Count
    first_divergence: Divergence | None
    bytes: Count


@dataclass(frozen=True)
class FloatShareRecord:
    """The points in floating point, and the share of the multiplications there, 0 to 1."""

    points: tuple[str, ...]
    multiplications: Share


@dataclass(frozen=True)
class RepairStepRecord:
    """One repair step: the SQNR of the output before and after it, and, if known, its settings and what it changed."""

    step: str
    sqnr_before_db: float
    sqnr_after_db: float
    settings: Mapping[str, Any] = field(default_factory=dict)
    images: Count | None = None
    changed: tuple[str, ...] = ()
    seconds: float | None = None


@dataclass(frozen=True)
class PointRecord:
    """One point.

    ``isolated_db`` is the SQNR of the output if only this point is quantized, so :data:`IDENTICAL_DB` for a point that
    stays in floating point (``null`` in JSON); ``estimated`` tells whether it is an estimate. ``cumulative_db`` is that
    of its own tensor if all points are quantized.
    ``config`` is ``None`` if no rule covers the point, and if the run was written by a vitquant before it was recorded.
    ``metrics`` are there if ``enable_profiler`` is set.
    """

    name: str
    config: QuantConfig | None
    active: bool
    isolated_db: float = field(metadata={"key": "sqnr_isolated_db"})
    cumulative_db: float | None = field(metadata={"key": "sqnr_cumulative_db"})
    shape: tuple[Count, ...] | None = None
    metrics: PointMetrics | None = None
    estimated: bool = field(default=False, metadata={"key": "sqnr_isolated_estimated"})


@dataclass(frozen=True, kw_only=True, repr=False)
class RunRecord:
    """One run of ``vitquant quantize`` or :func:`vitquant.workflows.job.run`.

    ``print(run)`` gives the tables that the command printed. SQNRs are in dB, :data:`IDENTICAL_DB` for equal results.

    ``sqnr_db`` and ``sqnr_final_norm_db`` are those of the simulated model. ``integer`` is ``None`` if integers cannot
    execute the configuration; ``refusal`` says why. ``outliers`` are the points whose range a few values take up, with
    the ratio of the two ranges. ``float_bytes`` is the size of the float model's parameters, ``output`` the name of the
    output that was measured.
    """

    run: str
    version: str = field(metadata={"key": "vitquant"})
    model: str
    parity_db: float | None
    preprocessing: PreprocessingRecord
    notes: tuple[str, ...]
    seed: int
    images: Count
    fp32: FloatRecord
    quantized: SimulatedRecord
    sqnr_db: float
    sqnr_final_norm_db: float
    profile_images: Count
    outliers: Mapping[str, float]
    points: Mapping[str, PointRecord]
    seconds: Mapping[str, float]
    peak_rss_mb: float
    kept_float: FloatShareRecord = field(metadata={"key": "float"})
    integer: IntegerRecord | None
    refusal: str | None
    float_bytes: Count | None = None
    calibration_images: Count | None = None
    output: str = "logits"
    repair: tuple[RepairStepRecord, ...] = ()

    def __repr__(self) -> str:
        return f"<RunRecord {self.run} of {self.model}, {len(self.points)} points>"

    def __str__(self) -> str:
        return as_text(run_tables(self))

    @property
    def config(self) -> ResolvedConfig:
        """The settings of all points, and of the repair steps that a configuration can name."""
        named = (step for step in self.repair if step.step in REPAIR_SETTINGS)
        repair = tuple(repair_settings({step.step: step.settings}) for step in named)
        return ResolvedConfig({name: Resolution(point.config, "") for name, point in self.points.items()}, repair)

    @property
    def evaluation(self) -> Evaluation:
        """The accuracy of the three models."""
        found, integer = self.integer, None
        if found is not None:
            integer = IntegerEvaluation(found.sqnr_db, found.to_simulated_db, found.top1, found.agreement)
        return Evaluation(
            images=self.images,
            sqnr_db=self.sqnr_db,
            sqnr_final_norm_db=self.sqnr_final_norm_db,
            fp32_top1=self.fp32.top1,
            quantized_top1=self.quantized.top1,
            agreement=self.quantized.agreement,
            integer=integer,
        )

    def worst(self, count: int = 5) -> list[PointRecord]:
        """The quantized points with the lowest isolated SQNR."""
        return sorted((p for p in self.points.values() if p.active), key=lambda p: p.isolated_db)[:count]

    def compare(self, before: RunRecord) -> RunComparison:
        """What is better and what is worse than in an earlier run, overall and at each point."""
        return RunComparison(require_kind(before, RunRecord, "before"), self)

    def to_dict(self) -> dict[str, Any]:
        """The content of ``summary.json``."""
        told: dict[str, Any] = encode(self)
        refusal = told.pop("refusal")
        told["integer"] = told["integer"] or {"refused": refusal}
        told["config"] = self.config.to_yaml()
        for point in told["points"].values():
            del point["name"], point["config"]
            if not point["active"]:
                point["sqnr_isolated_db"] = None
        return told

    @classmethod
    def from_dict(cls, told: Any, where: str) -> RunRecord:
        """A record from the content of ``summary.json``, which anybody may have written.

        Raises:
            ArtifactError: a key is unknown or missing, or a value cannot be.
        """
        rest = dict(decode_value(Mapping[str, Any], told, where))
        require_keys(rest, ("run", "points", "integer"), where)
        given = decode_value(Mapping[str, Any], rest.pop("points"), f"{where}.points")
        configs = resolved(decode_value(str | None, rest.pop("config", None), f"{where}.config"), list(given), where)
        points = {
            name: point_from_dict(name, part, configs[name], f"{where}.points.{name}") for name, part in given.items()
        }
        found, refusal = rest.pop("integer"), None
        if isinstance(found, dict) and set(found) == {"refused"}:
            refusal, integer = decode_value(str | None, found["refused"], f"{where}.integer.refused"), None
        else:
            integer = decode(IntegerRecord, found, f"{where}.integer")
        record = decode(cls, rest, where, points=points, integer=integer, refusal=refusal)
        try:
            _ = record.config
        except ConfigError as error:
            problem = f"the settings of a repair step are damaged: {error}".removesuffix(".")
            raise ArtifactError(problem, where=f"{where}.repair", fix=FIX) from error
        return record


def point_from_dict(name: str, told: Any, config: QuantConfig | None, where: str) -> PointRecord:
    """One entry of ``points``."""
    if isinstance(told, dict) and told.get("active") is False:
        told = told | {"sqnr_isolated_db": IDENTICAL_DB}
    return decode(PointRecord, told, where, name=name, config=config)


def resolved(config: str | None, names: Sequence[str], where: str) -> Mapping[str, QuantConfig | None]:
    """The settings of the points from the text of the resolved configuration, if the file contains it.

    Raises:
        ArtifactError: it is not a configuration of these points.
    """
    if config is None:
        return dict.fromkeys(names)
    try:
        return ModelConfig.from_text(config, f"{where}.config").resolve(names)
    except ConfigError as error:
        raise ArtifactError(f"the configuration is damaged: {error}".removesuffix("."), where=where, fix=FIX) from error
