"""Every path, name and number of every command, with every bad value of its kind.

Each cell is refused with one printable line and an exit code of its own, nothing that was there is touched, and nothing
waits.
"""

import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

import vitquant
from support.bad_values import (
    DEVICES,
    FOLDER_TARGETS,
    JUNK,
    NUMBERS,
    ODD_NAMES,
    PATHS,
    TARGETS,
    contents,
    deadline,
    make_zoo,
)
from support.documents import TESTS
from vitquant.cli.main import build_parser, main
from vitquant.program.storage import save_program

pytestmark = pytest.mark.job

NAMES = {
    "empty": "",
    "unknown": "vit_huge",
    "path": "../text.yaml",
} | ODD_NAMES
OPSETS = NUMBERS | {"too old": "17", "too new": "99"}
THREADS = NUMBERS | {"too many": "300"}
CONFIGS = PATHS | {key: name for key, name in JUNK.items() if "AML" in key or "yaml" in key}
ONNX_FILES = TARGETS | {"another suffix": "text.yaml", "beside a pipe": "beside/out.onnx"}
CHECKPOINTS = PATHS | {key: name for key, name in JUNK.items() if "npz" not in key}
IMAGES = PATHS | JUNK
SAVED = PATHS | JUNK


NO_NUMBERS = {"word": "x", "NaN": "nan", "infinite": "inf", "escape": "\x1b[31m"}
PIXELS = {
    "--mean": NO_NUMBERS,
    "--std": NO_NUMBERS | {"zero": "0", "negative": "-1"},
    "--crop-pct": NO_NUMBERS | {"zero": "0", "more than all": "1.5"},
    "--interpolation": {"unknown": "nearest", "empty": "", "markup": "[/]"},
}


CARET = re.compile(r"(?<=\n)  .*\n  *\^\n\Z")
"""The line of a file under a message about its syntax, and the caret under that."""


@dataclass(frozen=True)
class Door:
    """A command that would run as it stands, the place ``?`` in it, and the values that do not belong there."""

    command: str
    values: dict[str, str]

    def argv(self, value: str) -> list[str]:
        return [value if word == "?" else word for word in self.command.split()]


OUTPUTS = {"unknown": "nothere", "empty": "", "escape": "\x1b[31m", "a point": "blocks.0.norm1", "long": "x" * 10**4}
RUN, EVALUATE = "run saved photos", "evaluate saved --model fashion_vit --limit 2"
QUANTIZE = "quantize --model deit_tiny_patch16_224 --weights junk.pth --calib photos --eval photos --out out"
EXPORT = "export saved --onnx-qdq new.onnx"
FINISHED = TESTS / "golden" / "run_record"

DOORS = (
    Door("check ?", CONFIGS),
    Door("check vit_int8.yaml --model ?", NAMES),
    Door("check vit_int8.yaml --depth ?", NUMBERS | {"huge": "1000000000"}),
    Door("config show ?", CONFIGS),
    Door("config show vit_int8.yaml --model ?", NAMES),
    Door("config show vit_int8.yaml --depth ?", NUMBERS | {"huge": "1000000000"}),
    Door("config migrate ?", CONFIGS),
    Door("config migrate global.yaml --out ?", TARGETS),
    Door("demo --config ?", CONFIGS),
    Door("demo --out ?", FOLDER_TARGETS),
    Door("demo --device ?", DEVICES),
    Door("demo --batch-size ?", NUMBERS),
    Door("demo --profile-images ?", NUMBERS),
    Door("demo --seed ?", {key: value for key, value in NUMBERS.items() if value not in ("0", "-1")}),
    Door(QUANTIZE.replace("deit_tiny_patch16_224", "?"), NAMES),
    Door(QUANTIZE.replace("junk.pth", "?"), CHECKPOINTS),
    Door(QUANTIZE + " --img-size ?", NUMBERS | {"huge": "1000000000"}),
    Door(QUANTIZE + " --config ?", CONFIGS),
    Door(QUANTIZE + " --device ?", DEVICES),
    Door(QUANTIZE + " --calib-limit ?", NUMBERS),
    Door(EVALUATE.replace("saved", "?"), SAVED),
    Door("evaluate saved --limit 2 --model ?", NAMES),
    Door(EVALUATE + " --weights ?", CHECKPOINTS),
    Door(EVALUATE + " --eval ?", IMAGES),
    Door(EVALUATE + " --device ?", DEVICES),
    Door(f"{EVALUATE} --weights junk.pth --weights-entry ?", {"unknown": "nothere", "escape": "\x1b[31m"}),
    Door(QUANTIZE + " --weights-entry ?", {"unknown": "nothere", "escape": "\x1b[31m"}),
    *(Door(f"{command} {option} ?", values) for command in (QUANTIZE, EVALUATE) for option, values in PIXELS.items()),
    Door(EVALUATE + " --batch-size ?", NUMBERS),
    Door("evaluate saved --model fashion_vit --limit ?", NUMBERS),
    Door("show ?", SAVED),
    Door(f"show {FINISHED} --against ?", SAVED),
    Door("run ? photos", SAVED),
    Door("run saved ?", IMAGES),
    *(Door(f"{command} --output ?", OUTPUTS) for command in (QUANTIZE, RUN, EXPORT)),
    Door("export saved --onnx-integer new.onnx --output ?", OUTPUTS),
    Door(RUN + " --out ?", TARGETS),
    Door(RUN + " --device ?", DEVICES),
    Door(RUN + " --top ?", NUMBERS),
    Door(RUN + " --limit ?", NUMBERS),
    Door(RUN + " --batch-size ?", NUMBERS),
    Door("bench ? --rounds 1", SAVED),
    Door("bench saved --rounds ?", NUMBERS),
    Door("bench saved --rounds 1 --batch ?", NUMBERS),
    Door("bench saved --rounds 1 --threads ?", THREADS),
    Door(EXPORT.replace("saved", "?"), SAVED),
    Door(EXPORT.replace("new.onnx", "?"), ONNX_FILES),
    Door("export saved --onnx-integer ?", ONNX_FILES),
    Door(EXPORT + " --images ?", IMAGES),
    Door(EXPORT + " --count ?", NUMBERS),
    Door(EXPORT + " --opset ?", OPSETS),
)
CELLS = [pytest.param(door, value, id=f"{door.command}, {key}") for door in DOORS for key, value in door.values.items()]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a saved model, pictures, and things of all sorts."""
    folder = tmp_path_factory.mktemp("battery")
    images = vitquant.load_fashion_images()[0]
    model = vitquant.quantize(vitquant.load_fashion(), "vit_int8.yaml", calibration=images[:8])
    vitquant.save(model, folder / "saved")
    save_program(vitquant.compile(model), folder / "saved")
    (folder / "photos").mkdir()
    for index in range(2):
        Image.fromarray(images[index].numpy()).save(folder / "photos" / f"{index}.png")
    (folder / "global.yaml").write_text("weight: {}\n")
    make_zoo(folder)
    (folder / "beside").mkdir()
    shutil.copy(folder / "junk.json", folder / "beside" / "verify.json")
    return folder


@pytest.mark.parametrize(("door", "value"), CELLS)
def test_a_bad_value_is_refused(
    door: Door, value: str, place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(place)
    before = contents(place)
    with deadline():
        try:
            code: Any = main(door.argv(value))
        except SystemExit as stop:  # wrong usage, as argparse words it
            code = stop.code
    captured = capsys.readouterr()
    assert code in (2, 3, 4), captured.err
    assert contents(place) == before
    *others, last = CARET.sub("", captured.err).splitlines()
    assert re.match(r"(vitquant[\w ]*: )?error: .+", last), captured.err
    assert not any("error: " in line for line in others), captured.err
    assert all(line.isprintable() for line in captured.err.splitlines()), captured.err


def options(parser: Any, path: str = "") -> dict[str, set[str]]:
    """Each command, and its options that take a value."""
    found: dict[str, set[str]] = {}
    for action in parser._actions:
        if hasattr(action, "choices") and isinstance(action.choices, dict):
            for name, part in action.choices.items():
                found |= options(part, f"{path} {name}".strip())
        elif action.option_strings and action.nargs != 0:
            found.setdefault(path, set()).add(action.option_strings[-1])
    return found


def test_no_option_is_forgotten() -> None:
    elsewhere = {"--fail-under", "--fail-under-top1", "--recipe"}  # test_quality.py, test_recipes.py
    compared = {
        "--bits",
        "--weight-bits",
        "--observer",
        "--mode",
        "--percentile",
        "--softmax",
        "--point",
    }  # test_sensitivity_command.py
    elsewhere |= compared | {"--draws", "--cache", "--budget", "--max-minutes"}
    chosen = {"--executor", "--target"}  # argparse refuses what is not in a short list
    shared = {
        "--calib",
        "--eval",
        "--out",
        "--batch-size",
        "--profile-images",
        "--seed",
        "--img-size",
    }  # of two commands
    found = options(build_parser())
    for command in ("sensitivity", "sweep", "tune"):  # the model and the images are those of quantize
        found[command] = found.get(command, set()) - found["quantize"]
    for command, names in found.items():
        doors = [door.command for door in DOORS if door.command.startswith(command.partition(" ")[0])]
        missing = {name for name in names if not any(f"{name} ?" in door for door in doors)}
        assert missing <= elsewhere | chosen | shared, command


def test_the_command_lines_are_good_but_for_the_value(
    place: Path, run: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Otherwise the cells would be refused for another reason."""
    monkeypatch.chdir(place)
    good = ["run saved photos", "evaluate saved --model fashion_vit --limit 2", "check vit_int8.yaml"]
    good += [
        f"show {FINISHED} --against {FINISHED}",
        "bench saved --rounds 1 --batch 1",
        f"config migrate global.yaml --out {tmp_path}/new.yaml",
    ]
    for command in good:
        assert run(*command.split()).code == 0, command
