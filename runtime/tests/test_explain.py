"""The explanation of a program: its steps, phases, memory, and what is left out."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import vitquant_runtime
from block_programs import Sizes, block_program
from saved_programs import forced, load
from support.random_programs import PLAIN
from vitquant.program import ops
from vitquant.program.program import IntegerProgram, Output
from vitquant.program.storage import save_program
from vitquant.program.values import Value


def small_program() -> IntegerProgram:
    """One head of attention on four patches; a layer that nothing reads; logits from the first token."""
    values = {
        name: Value(name, shape, low, high, *PLAIN)
        for name, shape, low, high in [
            ("image", (1, 4, 8), 0, 255),
            ("patches", (4, 8), 0, 255),
            ("tokens", (4, 8), -128, 127),
            ("q", (4, 8), -128, 127),
            ("scores", (1, 4, 4), 0, 15),
            ("weights", (1, 4, 4), 0, 255),
            ("mixed", (4, 8), -128, 127),
            ("unread", (4, 8), -128, 127),
            ("sum", (4, 8), -32768, 32767),
            ("first", (1, 8), -32768, 32767),
            ("logits", (1, 3), -128, 127),
        ]
    }
    half = np.array([2**21], dtype=np.int32), np.array([22], dtype=np.uint8)

    def layer(out: str, x: str) -> ops.Linear:
        width = values[out].shape[1]
        return ops.Linear(values[out], x, np.ones((width, 8), np.int8), np.zeros(width, np.int32), *half)

    table = np.arange(16, 0, -1, dtype=np.int32)[None]
    operations = (
        ops.Patches(values["patches"], "image", 2, 4),
        layer("tokens", "patches"),
        layer("q", "tokens"),
        ops.Scores(values["scores"], "q", "tokens", 1, ops.no_table(), *half),
        ops.SoftmaxRow(values["weights"], "scores", table),
        ops.Mix(values["mixed"], "weights", "tokens", 1, False, 0, 0, *half),
        layer("unread", "mixed"),
        ops.Add(values["sum"], "tokens", "mixed", *half, *half),
        ops.Take(values["first"], "sum", 0),
        layer("logits", "first"),
    )
    return IntegerProgram(values["image"], operations, (Output("logits", "logits"),), {"model": "small"})


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("program")
    save_program(small_program(), folder)
    return folder


def test_a_small_program(folder: Path) -> None:
    with forced("portable"):
        assert (
            vitquant_runtime.explain(folder)
            == """\
model            small
image            uint8 [1, 4, 8]
output           logits [3]
instruction set  portable (the environment variable VITQUANT_ISA selects another)
operations       10 operations, executed as 7 steps in 7 phases

STEPS
A step executes one operation, or several joined by +, whose intermediate results are never stored.
The steps of a phase run at the same time, if there are threads for them; phases follow each other.
Code is the instruction set, or scalar where no faster code exists for these types.

phase  step  operations              reads              result   shape            code
   1      1  patches                 image              patches  [4, 8]           scalar
   2      2  linear                  patches            tokens   [4, 8]           scalar
   3      3  linear                  tokens             q        row 0 of [4, 8]  scalar
   4      4  scores+softmax_row+mix  q, tokens, tokens  mixed    row 0 of [4, 8]  scalar
   5      5  add                     tokens, mixed      sum      row 0 of [4, 8]  scalar
   6      6  take                    sum                first    [1, 8]           scalar
   7      7  linear                  first              logits   [1, 3]           scalar

MEMORY
All results lie in one arena of 192 bytes per image; each thread has 384 bytes of scratch memory.
Results that are not needed in the same phases may share their place.

offset  bytes  value    type   shape            phases
     0     64  patches  uint8  [4, 8]           1 to 2
    64     64  tokens   int8   [4, 8]           2 to 5
     0     64  q        int8   row 0 of [4, 8]  3 to 4
   128     64  mixed    int8   row 0 of [4, 8]  4 to 5
     0     64  sum      int16  row 0 of [4, 8]  5 to 6
    64     64  first    int16  [1, 8]           6 to 7
     0     64  logits   int8   [1, 3]           7 to end

LEFT OUT
Not computed, as no chosen output depends on it: unread
Computed for a single row, as nothing reads the others: q, mixed, sum
Never stored, as one step makes and uses it: 2 results
"""
        )


def test_plain_fuses_nothing(folder: Path) -> None:
    with forced("plain"):
        text = vitquant_runtime.explain(folder)
    assert "10 operations, executed as 9 steps in 9 phases" in text
    assert "+" not in text.split("STEPS")[1].split("\n\n")[1]
    assert "row 0 of" not in text
    assert text.endswith("LEFT OUT\nNot computed, as no chosen output depends on it: unread\n")


def test_panels_code_and_steps(tmp_path: Path) -> None:
    """Of a block with enough tokens for panels, on this machine's quickest instruction set."""
    save_program(block_program(0, Sizes(grid=(5, 13), channels=192, heads=3, hidden=384, depth=2)), tmp_path)
    runtime, text = load(tmp_path), vitquant_runtime.explain(tmp_path)
    assert f"instruction set  {runtime.isa} (" in text
    assert "In phases marked *, each step handles a panel of rows" in text
    rows = [line.split() for line in text.split("STEPS")[1].split("\n\n")[1].splitlines()[1:]]
    images = np.zeros((1, *runtime.image_shape), np.uint8)
    assert [row[2] for row in rows] == [label for label, _ in runtime.profile(images)]
    assert any(row[0].endswith("*") for row in rows)
    codes = {row[2]: row[-1] for row in rows}
    assert codes["patches"] == "scalar"
    assert codes["linear"] == ("scalar" if runtime.isa == "portable" else runtime.isa)


def command(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "vitquant_runtime", *arguments], capture_output=True, text=True, timeout=60
    )


def test_command(folder: Path) -> None:
    done = command("--explain", str(folder / "program.json"))
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == vitquant_runtime.explain(folder)


def test_command_on_what_is_no_program(tmp_path: Path) -> None:
    done = command("--explain", str(tmp_path / "nowhere"))
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.endswith("nowhere: there is no such file.\n")
    assert command().returncode == 2
    assert command("--version").stdout == vitquant_runtime.__version__ + "\n"
