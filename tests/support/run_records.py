"""Records of runs: one made by hand, and a strategy for any."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from hypothesis import strategies as st

from vitquant.config import BitType, QuantConfig, is_per_head, point_names
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
from vitquant.results import IDENTICAL_DB, Divergence, PointMetrics

METRICS = PointMetrics(42.7, 1e-05, 0.999973, -4.125, 3.25, 1.5, 0.0, 0.00614063, (1, 0, 12, 3), 4.7e-06)
PER_CHANNEL = QuantConfig(calibration_mode="channel_wise")
WEIGHT = PointRecord("head.weight", PER_CHANNEL, True, 40.25, 31.5, (10, 96), METRICS)
NORM = PointRecord(
    "final_norm", QuantConfig(calibration_mode="head_wise", bit_type=BitType(bits=8, signed=False)), True, 46.0, 31.6
)
OUTPUT = PointRecord("head.output", QuantConfig(output_quant_enable=False), False, IDENTICAL_DB, None, (1, 10))


def record(*points: PointRecord, **changes: Any) -> RunRecord:
    """A record of three points, with other values in some fields."""
    made = RunRecord(
        run="0123456789abcdef",
        version="0.1.0",
        model="vit",
        parity_db=118.5,
        preprocessing=PreprocessingRecord((28, 28), (0.286,), (0.353,), "bicubic", 1.0),
        notes=("a note",),
        seed=0,
        images=200,
        fp32=FloatRecord(91.0),
        quantized=SimulatedRecord(90.5, 99.5),
        sqnr_db=37.5,
        sqnr_final_norm_db=31.625,
        profile_images=16,
        outliers={"final_norm": 20.4},
        points={point.name: point for point in points or (NORM, WEIGHT, OUTPUT)},
        seconds={"calibrate": 1.5, "total": 26.25},
        peak_rss_mb=430.0,
        kept_float=FloatShareRecord((), 0.0),
        integer=IntegerRecord(90.5, 99.5, 37.5, IDENTICAL_DB, "reference executor", 74, None, 800_000),
        refusal=None,
        float_bytes=2_700_000,
        calibration_images=512,
    )
    return replace(made, **changes)


numbers = st.floats(-1e6, 1e6).map(lambda x: round(x, 3))
sqnrs = st.floats(-100, IDENTICAL_DB).map(lambda x: round(x, 3)) | st.just(IDENTICAL_DB)
percents = st.none() | st.floats(0, 100)
counts = st.integers(0, 2**40)
run_ids = st.text("0123456789abcdef", max_size=16)
words = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)


@st.composite
def configs(draw: st.DrawFn, name: str) -> QuantConfig:
    settings: dict[str, Any] = {
        "calibration_mode": draw(st.sampled_from(["layer_wise", "channel_wise", "head_wise"])),
        "bit_type": BitType(bits=draw(st.integers(2, 16)), signed=draw(st.booleans())),
        "observer_type": draw(st.sampled_from(["MinmaxObserver", "PercentileObserver", "KLObserver", "OmseObserver"])),
        "percentile_alpha": draw(st.floats(0.5, 1, exclude_min=True)),
        "enable_profiler": draw(st.booleans()),
        "output_quant_enable": draw(st.booleans()),
    }
    if settings["calibration_mode"] == "head_wise" and not is_per_head(name):
        settings["calibration_mode"] = "channel_wise"
    return QuantConfig(**settings)


metrics = st.builds(PointMetrics, sqnrs, *[numbers] * 7, st.lists(counts, max_size=4).map(tuple), numbers)


@st.composite
def point_records(draw: st.DrawFn, name: str) -> PointRecord:
    active = draw(st.booleans())
    return PointRecord(
        name=name,
        config=draw(st.none() | configs(name)),
        active=active,
        isolated_db=draw(sqnrs) if active else IDENTICAL_DB,
        cumulative_db=draw(sqnrs) if active else None,
        shape=draw(st.none() | st.lists(counts, max_size=3).map(tuple)),
        metrics=draw(st.none() | metrics),
        estimated=active and draw(st.booleans()),
    )


integers = st.builds(
    IntegerRecord,
    *(percents, percents, sqnrs, sqnrs, words, counts),
    st.none() | st.builds(Divergence, words, st.integers(0, 2**31), st.floats(0, 1)),
    counts,
)


repair_steps = st.builds(
    RepairStepRecord,
    *(words, sqnrs, sqnrs),
    settings=st.dictionaries(words, numbers | words | st.booleans() | st.lists(numbers, max_size=2), max_size=2),
    images=st.none() | counts,
    changed=st.lists(words, max_size=2).map(tuple),
    seconds=st.none() | numbers,
)


@st.composite
def records(draw: st.DrawFn) -> RunRecord:
    """Any record: with and without labels, program, points, metrics and configuration."""
    names = draw(st.lists(st.sampled_from(point_names(2)), max_size=6, unique=True))
    integer = draw(st.none() | integers)
    return RunRecord(
        run=draw(run_ids),
        version=draw(words),
        model=draw(words),
        parity_db=draw(st.none() | sqnrs),
        preprocessing=draw(
            st.builds(
                PreprocessingRecord,
                st.tuples(counts, counts),
                *[st.lists(numbers, max_size=3).map(tuple)] * 2,
                words,
                numbers,
            )
        ),
        notes=tuple(draw(st.lists(words, max_size=3))),
        seed=draw(st.integers(-(2**63), 2**63 - 1)),
        images=draw(counts),
        fp32=FloatRecord(draw(percents)),
        quantized=SimulatedRecord(draw(percents), draw(percents)),
        sqnr_db=draw(sqnrs),
        sqnr_final_norm_db=draw(sqnrs),
        profile_images=draw(counts),
        outliers=draw(st.dictionaries(words, numbers, max_size=3)),
        points={name: draw(point_records(name)) for name in names},
        seconds=draw(st.dictionaries(words, numbers, max_size=3)),
        peak_rss_mb=draw(numbers),
        kept_float=FloatShareRecord(tuple(draw(st.lists(words, max_size=7))), draw(st.floats(0, 1))),
        integer=integer,
        refusal=draw(st.none() | words) if integer is None else None,
        float_bytes=draw(st.none() | counts),
        calibration_images=draw(st.none() | counts),
        repair=tuple(draw(st.lists(repair_steps, max_size=2))),
    )
