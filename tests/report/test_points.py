"""The points of a run as a CSV file and as a table."""

import csv
import io
from dataclasses import replace

import pytest

from support.run_records import METRICS, NORM, OUTPUT, WEIGHT, record
from vitquant.config import QuantConfig
from vitquant.report.points import COLUMNS, isolated, points_csv, type_name, worst_table
from vitquant.report.record import PointRecord


def test_csv() -> None:
    norm, weight, output = csv.DictReader(io.StringIO(points_csv([NORM, WEIGHT, OUTPUT], "the run")))
    assert tuple(norm) == COLUMNS
    assert {row["run"] for row in (norm, weight, output)} == {"the run"}
    assert (norm["name"], norm["active"], norm["bits"], norm["signed"]) == ("final_norm", "True", "8", "False")
    assert (norm["calibration_mode"], norm["observer_type"]) == ("head_wise", "MinmaxObserver")
    assert (float(norm["sqnr_isolated_db"]), float(norm["sqnr_cumulative_db"])) == (46, 31.6)
    assert (norm["shape"], norm["histogram"]) == ("", "")
    assert (weight["shape"], weight["histogram"], weight["mse"]) == ("10x96", "1 0 12 3", "1e-05")
    assert float(weight["kl_divergence"]) == METRICS.kl_divergence
    assert (output["active"], output["sqnr_isolated_db"], output["sqnr_cumulative_db"]) == ("False", "", "")


def test_estimates() -> None:
    estimate = replace(NORM, estimated=True)
    rows = csv.DictReader(io.StringIO(points_csv([estimate, WEIGHT, OUTPUT])))
    assert [row["sqnr_isolated_estimated"] for row in rows] == ["True", "False", ""]
    assert [isolated(point) for point in (estimate, WEIGHT, OUTPUT)] == ["~46.0 dB", "40.2 dB", ""]
    assert "│      ~46.0 dB │         31.6 dB │" in str(record(estimate, WEIGHT))


def test_worst_points() -> None:
    assert worst_table(record()).row_count == 2
    assert worst_table(record(), 1).row_count == 1


@pytest.mark.parametrize(
    ("point", "expected"),
    [
        (NORM, "uint8 per-group"),
        (WEIGHT, "int8 per-channel"),
        (PointRecord("blocks.0.intSoft", QuantConfig(calibration_mode="head_wise"), True, 1, 1), "int8 per-head"),
        (PointRecord("pos_embed", QuantConfig(), True, 1, 1), "int8 per-tensor"),
        (OUTPUT, "float"),
        (PointRecord("pos_embed", None, False, 300, None), "float"),
        (PointRecord("pos_embed", None, True, 1, 1), ""),  # of an earlier version
    ],
)
def test_types(point: PointRecord, expected: str) -> None:
    assert type_name(point) == expected
