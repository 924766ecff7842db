"""The record as JSON and back: exact for every record, strict for everything else."""

import copy
import dataclasses
import json
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given

import vitquant
from support.file_mutations import places
from support.run_records import NORM, OUTPUT, WEIGHT, record, records
from vitquant.config import BiasCorrectionSettings
from vitquant.errors import ArtifactError
from vitquant.files import json_text
from vitquant.report.record import RepairStepRecord, RunRecord
from vitquant.results import IDENTICAL_DB


@given(records())
def test_the_round_trip_is_exact(run: RunRecord) -> None:
    told = run.to_dict()
    text = json_text(told)
    assert RunRecord.from_dict(json.loads(text), "summary") == run
    assert json_text(RunRecord.from_dict(told, "summary").to_dict()) == text


@given(records(), records())
def test_every_record_can_be_shown_and_compared(run: RunRecord, other: RunRecord) -> None:
    assert "points are quantized" in str(run)
    assert f"of {len(run.points.keys() & other.points.keys())} points changed" in str(run.compare(other))
    json_text(run.compare(other).to_dict())


def test_attributes_are_the_keys_of_the_summary() -> None:
    run = record()
    told = run.to_dict()
    assert (told["run"], told["vitquant"], told["model"]) == (run.run, run.version, run.model)
    assert told["fp32"] == {"top1": run.fp32.top1}
    assert told["integer"]["to_simulated_db"] == 300
    assert told["float"] == {"points": [], "multiplications": 0}
    assert told["points"]["head.weight"]["sqnr_isolated_db"] == run.points["head.weight"].isolated_db == 40.25
    assert told["points"]["head.output"] == {
        "active": False,
        "sqnr_isolated_db": None,
        "sqnr_cumulative_db": None,
        "shape": [1, 10],
        "metrics": None,
        "sqnr_isolated_estimated": False,
    }
    assert record(integer=None, refusal="no scale").to_dict()["integer"] == {"refused": "no scale"}


def test_points_sort_by_their_isolated_sqnr() -> None:
    """A point that stays in floating point costs nothing, so it comes last."""
    run = record()
    names = [point.name for point in sorted(run.points.values(), key=lambda p: p.isolated_db)]
    assert names == ["head.weight", "final_norm", "head.output"]
    assert [point.name for point in run.worst()] == ["head.weight", "final_norm"]
    assert run.points["head.output"].isolated_db == IDENTICAL_DB
    assert run.config["final_norm"] == run.points["final_norm"].config


def test_the_record_is_frozen_and_its_repr_is_short() -> None:
    run = record()
    with pytest.raises(dataclasses.FrozenInstanceError):
        run.sqnr_db = 1.0  # type: ignore[misc]
    assert repr(run) == "<RunRecord 0123456789abcdef of vit, 3 points>"


def test_a_record_compares_with_records_only() -> None:
    with pytest.raises(vitquant.VitquantError, match=r"before: wrong type. Got str, expected RunRecord"):
        record().compare("out")  # type: ignore[arg-type]


def refusal(**changes: Any) -> str:
    """The message for a summary with other values, or without the keys that are ``...``."""
    told = {key: value for key, value in (record().to_dict() | changes).items() if value is not ...}
    with pytest.raises(ArtifactError) as caught:
        RunRecord.from_dict(told, "summary")
    return str(caught.value)


FIX = "Fix: quantize again, or read the file with the vitquant that wrote it."


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"extra": 1}, "summary: unknown keys. Got 'extra'."),
        ({"refusal": "x"}, "summary: unknown keys. Got 'refusal'."),
        ({"seed": ..., "images": ...}, "summary: missing keys. Expected 'images', 'seed'."),
        ({"points": ..., "run": ...}, "summary: missing keys. Expected 'points', 'run'."),
        ({"points": []}, "summary.points: value not allowed. Got [], expected an object."),
        ({"integer": None}, "summary.integer: value not allowed. Got None, expected an object."),
        ({"sqnr_db": "37"}, "summary.sqnr_db: value not allowed. Got '37', expected a number."),
        ({"sqnr_db": None}, "summary.sqnr_db: value not allowed. Got None, expected a number."),
        ({"sqnr_db": True}, "summary.sqnr_db: value not allowed. Got True, expected a number."),
        ({"images": 1.0}, "summary.images: value not allowed. Got 1.0, expected a whole number."),
        ({"images": -1}, f"summary.images: value not allowed. Got -1, expected from 0 to {2**48}."),
        ({"model": 3}, "summary.model: value not allowed. Got 3, expected text."),
        ({"notes": "x"}, "summary.notes: value not allowed. Got 'x', expected a list."),
        ({"notes": ["x", 1]}, "summary.notes[1]: value not allowed. Got 1, expected text."),
        ({"fp32": {"top1": 101}}, "summary.fp32.top1: value not allowed. Got 101, expected from 0 to 100."),
        ({"fp32": []}, "summary.fp32: value not allowed. Got [], expected an object."),
        ({"seconds": {"total": None}}, "summary.seconds.total: value not allowed. Got None, expected a number."),
        ({"points": {"head.weight": {}}}, "summary.points.head.weight: missing keys. Expected 'active', "),
        ({"integer": {"refused": 1}}, "summary.integer.refused: value not allowed. Got 1, expected text."),
        ({"integer": {"refused": "x", "y": 1}}, "summary.integer: unknown keys. Got 'refused', 'y'."),
        ({"config": "head: {"}, "summary: the configuration is damaged: summary.config"),
    ],
    ids=str,
)
def test_what_no_summary_says_is_refused(changes: dict[str, Any], message: str) -> None:
    found = refusal(**changes)
    assert found.startswith(message), found
    assert found.endswith(FIX)


def test_preprocessing_has_two_sizes() -> None:
    told = record().to_dict()["preprocessing"]
    assert "expected a list of 2" in refusal(preprocessing=told | {"img_size": [28]})


@pytest.mark.parametrize("told", [None, 3, [], "x", {}])
def test_what_is_no_summary_is_refused(told: object) -> None:
    with pytest.raises(ArtifactError):
        RunRecord.from_dict(told, "summary")


def test_a_quantized_point_has_an_isolated_sqnr() -> None:
    told = record(WEIGHT).to_dict()
    told["points"]["head.weight"]["sqnr_isolated_db"] = None
    assert "summary.points.head.weight.sqnr_isolated_db: value not allowed" in refusal(points=told["points"])


@pytest.mark.parametrize("nonsense", [None, "x", -1, 1.5, True, [], {}, {"x": 1}], ids=repr)
def test_one_value_replaced_is_read_or_refused(nonsense: object) -> None:
    """At every place of the file."""
    good = record().to_dict()
    for *above, key in places(good):
        told = parent = copy.deepcopy(good)
        for step in above:
            parent = parent[step]
        parent[key] = copy.deepcopy(nonsense)
        with suppress(ArtifactError):
            str(RunRecord.from_dict(told, "summary"))


def test_every_key_is_needed_but_those_that_came_later() -> None:
    later = {"config", "float_bytes", "calibration_images", "output", "repair"}
    for key in record().to_dict():
        if key not in later:
            refusal(**{key: ...})
    told = {key: value for key, value in record().to_dict().items() if key not in later}
    run = RunRecord.from_dict(told, "summary")
    assert (run.float_bytes, run.calibration_images, run.output, run.repair) == (None, None, "logits", ())
    assert {point.config for point in run.points.values()} == {None}


def test_points_are_those_of_the_configuration() -> None:
    told = record(OUTPUT).to_dict()
    told["points"] = {"nothing": told["points"]["head.output"]}
    assert "the configuration is damaged" in refusal(points=told["points"])


def test_a_repair_step_is_its_name_and_two_figures() -> None:
    told = record().to_dict() | {"repair": [{"step": "x", "sqnr_before_db": 30, "sqnr_after_db": 31.5}]}
    assert RunRecord.from_dict(told, "summary").repair == (RepairStepRecord("x", 30.0, 31.5),)


def test_the_configuration_has_the_repair_steps_that_a_file_can_name() -> None:
    steps = RepairStepRecord("own", 30.0, 31.0), RepairStepRecord("bias_correction", 31.0, 32.0, {"images": 16})
    run = record(repair=steps)
    assert run.config.repair == (BiasCorrectionSettings(images=16),)
    assert run.to_dict()["config"].endswith("repair:\n- bias_correction: {images: 16}\n")
    told = run.to_dict()
    assert RunRecord.from_dict(told, "summary") == run
    told["repair"][1]["settings"] = {"images": 0}
    assert "summary.repair: the settings of a repair step are damaged: " in refusal(repair=told["repair"])


def test_estimates_in_the_summary() -> None:
    run = record(dataclasses.replace(NORM, estimated=True), WEIGHT)
    told = run.to_dict()
    assert RunRecord.from_dict(told, "summary") == run
    flags = {name: point.pop("sqnr_isolated_estimated") for name, point in told["points"].items()}
    assert flags == {"final_norm": True, "head.weight": False}
    earlier = RunRecord.from_dict(told, "summary")  # of a vitquant that measured all of them
    assert not any(point.estimated for point in earlier.points.values())
    told["points"]["final_norm"]["sqnr_isolated_estimated"] = 1
    assert "sqnr_isolated_estimated: value not allowed" in refusal(points=told["points"])
