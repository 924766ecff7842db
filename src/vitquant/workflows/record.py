"""The record of a run, from what was measured."""

from __future__ import annotations

import resource
import sys
from collections.abc import Mapping
from dataclasses import asdict

from vitquant.adapters.adapt import FloatModel
from vitquant.architectures.model import QuantModel
from vitquant.artifact.storage import run_id
from vitquant.calibration.repair import RepairRecord
from vitquant.compiler.float_share import FloatShare
from vitquant.measure import ModelProfile, PointProfile
from vitquant.measure.compare import Comparison
from vitquant.program.program import IntegerProgram
from vitquant.report.record import (
    FloatRecord,
    FloatShareRecord,
    IntegerRecord,
    PointRecord,
    PreprocessingRecord,
    RepairStepRecord,
    RunRecord,
    SimulatedRecord,
)
from vitquant.results import IDENTICAL_DB, Evaluation
from vitquant.version import __version__


def run_record(
    original: FloatModel,
    model: QuantModel,
    *,
    evaluation: Evaluation,
    profile: ModelProfile,
    kept_float: FloatShare,
    integer: IntegerRecord | None,
    refusal: str | None,
    seed: int,
    calibration_images: int,
    seconds: Mapping[str, float],
    repair: tuple[RepairStepRecord, ...] = (),
) -> RunRecord:
    """The record of a run. SQNRs are rounded to thousandths of a dB."""
    return RunRecord(
        run=run_id(model),
        version=__version__,
        model=original.name,
        parity_db=None if original.parity_db is None else min(round(original.parity_db, 2), IDENTICAL_DB),
        preprocessing=PreprocessingRecord(**asdict(original.preprocessing)),
        notes=tuple(original.notes),
        output=next(iter(model.graph.outputs)),
        seed=seed,
        calibration_images=calibration_images,
        images=evaluation.images,
        fp32=FloatRecord(evaluation.fp32_top1),
        quantized=SimulatedRecord(evaluation.quantized_top1, evaluation.agreement),
        sqnr_db=round(evaluation.sqnr_db, 3),
        sqnr_final_norm_db=round(evaluation.sqnr_final_norm_db, 3),
        integer=integer,
        refusal=refusal,
        kept_float=FloatShareRecord(kept_float.points, round(kept_float.share, 6)),
        profile_images=profile.images,
        points={point.name: point_record(point) for point in profile.points},
        outliers={outlier.point: round(outlier.ratio, 1) for outlier in profile.outliers},
        float_bytes=float_bytes(original),
        seconds={name: round(value, 3) for name, value in seconds.items()},
        peak_rss_mb=round(peak_rss_mb(), 1),
        repair=repair,
    )


def point_record(point: PointProfile) -> PointRecord:
    """One point of a profile."""
    isolated, cumulative = point.sqnr_isolated_db, point.sqnr_cumulative_db
    return PointRecord(
        name=point.name,
        config=point.config,
        active=point.active,
        isolated_db=IDENTICAL_DB if isolated is None else round(isolated, 3),
        cumulative_db=None if cumulative is None else round(cumulative, 3),
        shape=point.shape,
        metrics=point.metrics,
        estimated=point.estimated,
    )


def repair_step_record(found: RepairRecord) -> RepairStepRecord:
    """What one repair step did."""
    return RepairStepRecord(
        step=found.step,
        sqnr_before_db=round(found.sqnr_before_db, 3),
        sqnr_after_db=round(found.sqnr_after_db, 3),
        settings=found.settings,
        images=found.images,
        changed=found.changed,
        seconds=round(found.seconds, 3),
    )


def integer_record(program: IntegerProgram, comparison: Comparison) -> IntegerRecord:
    """The integer program beside the other models."""
    found = comparison.evaluation.integer
    assert found is not None  # the program was run
    return IntegerRecord(
        top1=found.top1,
        agreement=found.agreement,
        sqnr_db=round(found.sqnr_db, 3),
        to_simulated_db=round(found.to_simulated_db, 3),
        executor=comparison.executor,
        points_compared=comparison.compared,
        first_divergence=comparison.divergences[0] if comparison.divergences else None,
        bytes=program.nbytes,
    )


def float_bytes(model: FloatModel) -> int:
    """Size of the float model's parameters."""
    return sum(p.numel() * p.element_size() for p in model.vit.parameters())


def peak_rss_mb() -> float:
    """Largest resident memory of this process so far, in MB (10^6 bytes)."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak * (1 if sys.platform == "darwin" else 1024) / 1e6
