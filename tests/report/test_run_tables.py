"""The tables of a run: what is not there is left out, and what is equal reads so."""

from dataclasses import replace

from support.run_records import OUTPUT, record
from vitquant.report.record import FloatRecord, FloatShareRecord, RepairStepRecord, SimulatedRecord
from vitquant.results import Divergence

WHOLE = """\
vit on 200 images
┏━━━━━━━━━━━━━━━━━━━━━━━━┳━━━━━━━━━┳━━━━━━━━━━━┳━━━━━━━━━━━┓
┃                        ┃   float ┃ simulated ┃   integer ┃
┡━━━━━━━━━━━━━━━━━━━━━━━━╇━━━━━━━━━╇━━━━━━━━━━━╇━━━━━━━━━━━┩
│ top-1                  │ 91.00 % │   90.50 % │   90.50 % │
│ same class as float    │         │   99.50 % │   99.50 % │
│ SQNR of the output     │         │   37.5 dB │   37.5 dB │
│ SQNR at the final norm │         │   31.6 dB │           │
│ SQNR against simulated │         │           │ identical │
│ size                   │  2.7 MB │           │    0.8 MB │
└────────────────────────┴─────────┴───────────┴───────────┘
The 5 points with the lowest isolated SQNR (of 3)
┏━━━━━━━━━━━━━┳━━━━━━━━━━━━━━━━━━┳━━━━━━━━━━━━━━━┳━━━━━━━━━━━━━━━━━┓
┃ point       ┃ type             ┃ isolated SQNR ┃ cumulative SQNR ┃
┡━━━━━━━━━━━━━╇━━━━━━━━━━━━━━━━━━╇━━━━━━━━━━━━━━━╇━━━━━━━━━━━━━━━━━┩
│ head.weight │ int8 per-channel │       40.2 dB │         31.5 dB │
│ final_norm  │ uint8 per-group  │       46.0 dB │         31.6 dB │
└─────────────┴──────────────────┴───────────────┴─────────────────┘
2 of 3 points are quantized; no point stays in floating point.
Integer results computed with the reference executor.
The integer program equals the simulation at all 74 points, to the last code.
It uses integer arithmetic only, from pixels to logits.
Its size is 29.6% of the float model."""


def test_the_whole() -> None:
    assert [line.rstrip() for line in str(record()).splitlines()] == WHOLE.splitlines()


def test_without_labels() -> None:
    shown = str(record(fp32=FloatRecord(None), quantized=SimulatedRecord(None, 99.5)))
    assert "top-1" not in shown
    assert "same class as float" in shown


def test_without_a_program() -> None:
    shown = str(record(integer=None, refusal="pos_embed: it stays float"))
    assert "No integer program: pos_embed: it stays float" in shown
    assert "integer arithmetic only" not in shown
    assert "│ size" not in shown
    assert "SQNR against simulated" not in shown


def test_without_a_profile() -> None:
    shown = str(record(points={}, profile_images=0))
    assert "lowest isolated" not in shown
    assert "0 of 0 points are quantized" in shown


def test_nothing_quantized() -> None:
    shown = str(record(OUTPUT, sqnr_db=300.0, kept_float=FloatShareRecord(("head.output",), 0.5)))
    assert "│ SQNR of the output     │         │ identical │" in shown
    assert "0 of 1 points are quantized; 1 point stays in floating point, with 50.0%" in shown


def test_a_divergence() -> None:
    run = record()
    assert run.integer is not None
    integer = replace(run.integer, to_simulated_db=11.2, first_divergence=Divergence("pos_embed", 202, 0.9926))
    shown = str(record(integer=integer))
    assert "first differs from the simulation at pos_embed: 99.26% of the codes differ, by up to 202." in shown
    assert "11.2 dB" in shown


def test_repair_steps() -> None:
    shown = str(
        record(repair=(RepairStepRecord("bias_correction", 35.0, 36.25), RepairStepRecord("none", 300.0, 300.0)))
    )
    assert "│ bias_correction │      0 │        │     35.0 dB │    36.2 dB │" in shown
    assert "│ none            │      0 │        │   identical │  identical │" in shown


def test_names_are_escaped() -> None:
    assert "\x1b" not in str(record(model="\x1b[2J", refusal="\x1b[31m", integer=None))


def test_the_output_that_was_measured() -> None:
    assert "output" not in str(record()).splitlines()[0]
    shown = str(record(output="tokens"))
    assert shown.splitlines()[0].strip().endswith("images, output tokens")
    assert "from pixels to tokens." in shown
