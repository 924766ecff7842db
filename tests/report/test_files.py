"""Runs in folders: read as they were written, and refused where there is none."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings

import vitquant
from support.documents import TESTS
from support.run_records import METRICS, record, records
from vitquant.errors import ArtifactError, ConfigError
from vitquant.report.files import load_run, run_files
from vitquant.report.record import RunRecord

OLD, NEW = TESTS / "golden" / "run_before_record", TESTS / "golden" / "run_record"


def written(run: RunRecord, folder: Path) -> Path:
    for name, text in run_files(run).items():
        (folder / name).write_text(text, encoding="utf-8")
    return folder


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(run=records())
def test_files_give_the_record_back(run: RunRecord, tmp_path: Path) -> None:
    assert load_run(written(run, tmp_path)) == run


def test_the_golden_run_is_read_and_written_alike() -> None:
    run = vitquant.load_run(NEW)
    assert run_files(run) == {name: (NEW / name).read_text() for name in ("points.csv", "summary.json")}
    assert run.integer is not None
    assert (run.model, run.images, run.calibration_images, len(run.points)) == ("tiny", 32, 64, 25)
    assert run.points["blocks.0.attn_q_out"].metrics is not None
    assert run.config["pos_embed"] == run.points["pos_embed"].config
    assert "│ SQNR against simulated │         │           │ identical │" in str(run)


def test_a_run_of_an_earlier_version_is_read() -> None:
    """Without the configuration: the types of the points are unknown."""
    run = vitquant.load_run(OLD)
    told = json.loads((OLD / "summary.json").read_text())
    assert run.to_dict() | told | {"points": None} == run.to_dict() | {"points": None}
    assert {name: point.isolated_db for name, point in run.points.items() if point.active} == {
        name: point["sqnr_isolated_db"] for name, point in told["points"].items() if point["active"]
    }
    assert (run.float_bytes, run.calibration_images, run.repair) == (None, None, ())
    assert "│ final_norm               │      │       41.4 dB │" in str(run)
    assert "20 of 25 points are quantized" in str(run)
    assert "25 points changed" in str(vitquant.load_run(NEW).compare(run))


def test_the_summary_alone_is_sufficient(tmp_path: Path) -> None:
    shutil.copy(NEW / "summary.json", tmp_path / "before.json")
    assert load_run(tmp_path / "before.json") == load_run(str(NEW)) == load_run(NEW / "summary.json")


def test_a_folder_without_a_run(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "nothing"):
        with pytest.raises(
            ArtifactError, match=r"there is no finished run here\. Expected the file summary\.json\. Fix: "
        ):
            load_run(path)
    with pytest.raises(ConfigError, match="folder: not a path"):
        load_run(3)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "the summary is not JSON"),
        ("[" * 10**5, "the summary is not JSON|nested too deeply"),
        ('{"a": NaN}', "NaN is not allowed"),
        ('{"a": 1e999}', "a number is too large"),
        ('{"run": "a", "run": "b"}', "an object has a duplicate key"),
        ('{"from": "another program"}', "record"),
        ("\udcff", "the summary is not JSON"),
        (" " * 2**24, "the file is too large"),
    ],
    ids=lambda text: text[:12],
)
def test_files_that_are_no_summary(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "summary.json").write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(ArtifactError, match=message):
        load_run(tmp_path)


def test_infinity_is_not_read(tmp_path: Path) -> None:
    written(record(), tmp_path)
    path = tmp_path / "summary.json"
    for word in ("Infinity", "-Infinity", "NaN"):
        path.write_text(path.read_text().replace('"sqnr_db": 37.5', f'"sqnr_db": {word}', 1))
        with pytest.raises(ArtifactError, match=f"{word} is not allowed"):
            load_run(tmp_path)
        written(record(), tmp_path)


def test_files_of_two_runs_are_refused(tmp_path: Path) -> None:
    written(record(), tmp_path)
    (tmp_path / "manifest.json").write_text('{"run": "another"}')
    with pytest.raises(ArtifactError, match="the files in this folder are from different runs"):
        load_run(tmp_path)


def test_identical_results_are_300_db_in_the_files(tmp_path: Path) -> None:
    written(record(sqnr_db=300.0, sqnr_final_norm_db=300.0), tmp_path)
    assert '"sqnr_db": 300.0' in (tmp_path / "summary.json").read_text()
    shown = str(load_run(tmp_path))
    assert shown.count("identical") == 3  # the program too
    assert "300" not in shown


def test_numbers_of_a_list_are_in_one_line(tmp_path: Path) -> None:
    text = (written(record(), tmp_path) / "summary.json").read_text()
    assert '"img_size": [28, 28]' in text
    assert f'"histogram": {list(METRICS.histogram)}' in text


def test_reading_and_showing_a_run_needs_no_torch() -> None:
    code = f"import sys, vitquant; print(vitquant.load_run({str(NEW)!r})); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False, capture_output=True).returncode == 0
