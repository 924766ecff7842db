"""Two runs compared, by hand."""

from dataclasses import replace

from support.run_records import NORM, OUTPUT, PER_CHANNEL, WEIGHT, record
from vitquant.config import BitType, QuantConfig
from vitquant.report.record import FloatRecord, IntegerRecord, PointRecord, SimulatedRecord
from vitquant.results import IDENTICAL_DB

FOUR_BITS = replace(WEIGHT, config=PER_CHANNEL.model_copy(update={"bit_type": BitType(bits=4)}), isolated_db=20.0)
ON = PointRecord("head.output", QuantConfig(), True, 60.0, 33.0, (1, 10))
BEFORE = record()
AFTER = record(
    *(replace(NORM, isolated_db=47.5, cumulative_db=30.0), FOUR_BITS, ON),
    run="after",
    quantized=SimulatedRecord(88.25, 97.0),
    sqnr_db=25.5,
    integer=IntegerRecord(88.25, 97.0, 25.5, IDENTICAL_DB, "reference executor", 74, None, 700_000),
)

TABLES = """\
vit: run after compared with run 0123456789abcdef
┏━━━━━━━━━━━━━━━━━━━━━━━━━━━━┳━━━━━━━━━┳━━━━━━━━━┳━━━━━━━━━━┓
┃                            ┃  before ┃   after ┃   change ┃
┡━━━━━━━━━━━━━━━━━━━━━━━━━━━━╇━━━━━━━━━╇━━━━━━━━━╇━━━━━━━━━━┩
│ top-1, float               │ 91.00 % │ 91.00 % │  +0.00 % │
│ top-1, simulated           │ 90.50 % │ 88.25 % │  -2.25 % │
│ top-1, integer             │ 90.50 % │ 88.25 % │  -2.25 % │
│ same class as float        │ 99.50 % │ 97.00 % │  -2.50 % │
│ SQNR of the output         │ 37.5 dB │ 25.5 dB │ -12.0 dB │
│ SQNR at the final norm     │ 31.6 dB │ 31.6 dB │  +0.0 dB │
│ SQNR of the integer output │ 37.5 dB │ 25.5 dB │ -12.0 dB │
│ size of the program        │  0.8 MB │  0.7 MB │  -0.1 MB │
└────────────────────────────┴─────────┴─────────┴──────────┘
Points with a lower isolated SQNR (2)
┏━━━━━━━━━━━━━┳━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━┳━━━━━━━━━━━━━━━━━┳━━━━━━━━━┳━━━━━━━━━━┳━━━━━━━━━━━━━━━━━━━━━━┓
┃ point       ┃ type                                ┃ isolated before ┃   after ┃   change ┃ change of cumulative ┃
┡━━━━━━━━━━━━━╇━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━╇━━━━━━━━━━━━━━━━━╇━━━━━━━━━╇━━━━━━━━━━╇━━━━━━━━━━━━━━━━━━━━━━┩
│ head.output │ float → int8 per-tensor             │                 │ 60.0 dB │          │                      │
│ head.weight │ int8 per-channel → int4 per-channel │         40.2 dB │ 20.0 dB │ -20.2 dB │              +0.0 dB │
└─────────────┴─────────────────────────────────────┴─────────────────┴─────────┴──────────┴──────────────────────┘
Points with a higher isolated SQNR (1)
┏━━━━━━━━━━━━┳━━━━━━━━━━━━━━━━━┳━━━━━━━━━━━━━━━━━┳━━━━━━━━━┳━━━━━━━━━┳━━━━━━━━━━━━━━━━━━━━━━┓
┃ point      ┃ type            ┃ isolated before ┃   after ┃  change ┃ change of cumulative ┃
┡━━━━━━━━━━━━╇━━━━━━━━━━━━━━━━━╇━━━━━━━━━━━━━━━━━╇━━━━━━━━━╇━━━━━━━━━╇━━━━━━━━━━━━━━━━━━━━━━┩
│ final_norm │ uint8 per-group │         46.0 dB │ 47.5 dB │ +1.5 dB │              -1.6 dB │
└────────────┴─────────────────┴─────────────────┴─────────┴─────────┴──────────────────────┘
The isolated SQNR of 0 of 3 points changed by less than 0.05 dB.
The settings differ at head.weight, head.output."""


def test_the_tables() -> None:
    shown = str(AFTER.compare(BEFORE))
    assert [line.rstrip() for line in shown.splitlines()] == TABLES.splitlines()


def test_the_changes() -> None:
    found = AFTER.compare(BEFORE)
    assert [(p.name, p.isolated_db, p.reconfigured) for p in found.points] == [
        ("head.output", -240.0, True),
        ("head.weight", -20.25, True),
        ("final_norm", 1.5, False),
    ]
    assert [p.name for p in found.worse] == ["head.output", "head.weight"]
    assert [p.name for p in found.better] == ["final_norm"]
    told = found.to_dict()
    assert (told["before"], told["after"]) == ("0123456789abcdef", "after")
    assert told["metrics"]["SQNR of the output"] == {"unit": "dB", "before": 37.5, "after": 25.5}
    assert told["points"]["head.output"] == {
        "reconfigured": True,
        "sqnr_isolated_db": [None, 60.0],
        "sqnr_isolated_estimated": [False, False],
        "sqnr_cumulative_db": [None, 33.0],
    }


def test_a_run_equals_itself() -> None:
    found = BEFORE.compare(BEFORE)
    assert found.worse == found.better == ()
    shown = str(found)
    assert "Points with" not in shown
    assert shown.endswith("The isolated SQNR of 3 of 3 points changed by less than 0.05 dB.")


def test_identical_is_no_number() -> None:
    """From identical to 46 dB is no difference of 254 dB."""
    identical = record(replace(NORM, isolated_db=IDENTICAL_DB), WEIGHT, OUTPUT, sqnr_db=IDENTICAL_DB)
    for after, before, cells in (
        (BEFORE, identical, "│       identical │ 46.0 dB │        │"),
        (identical, BEFORE, "│         46.0 dB │ identical │        │"),
    ):
        shown = str(after.compare(before))
        assert cells in shown
        assert "254" not in shown
        assert "262" not in shown


def test_runs_of_different_models() -> None:
    other = record(NORM, model="deit", images=50, integer=None, refusal="none")
    shown = str(other.compare(BEFORE))
    assert "Only one of the runs has head.weight, head.output." in shown
    assert "The models differ: vit before, deit after." in shown
    assert "The numbers of evaluation images differ: 200 before, 50 after." in shown
    assert "│ top-1, integer             │ 90.50 % │         │         │" in shown
    bare = record(fp32=FloatRecord(None), quantized=SimulatedRecord(None, None), integer=None)
    assert "top-1" not in str(bare.compare(bare))


def test_many_points_are_cut_short() -> None:
    points = [PointRecord(f"blocks.{i}.norm1", None, True, 40.0, 30.0) for i in range(12)]
    worse = [replace(point, isolated_db=40.0 - i) for i, point in enumerate(points, start=1)]
    shown = str(record(*worse).compare(record(*points)))
    assert "Points with a lower isolated SQNR (the 10 of 12 with the largest change)" in shown
    assert "blocks.11.norm1" in shown
    assert "blocks.1.norm1" not in shown


def test_estimates_are_marked() -> None:
    guessed = record(replace(NORM, isolated_db=40.0, estimated=True), WEIGHT, OUTPUT)
    shown = str(guessed.compare(record(NORM, WEIGHT, OUTPUT)))
    assert "│         46.0 dB │ ~40.0 dB │ -6.0 dB │" in shown
    assert "The isolated SQNR of 1 of 3 points is an estimate (~) in one run only" in shown
    assert "estimate" not in str(guessed.compare(guessed))
