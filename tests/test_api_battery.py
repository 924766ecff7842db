"""Every argument of every public function, with every bad value of its kind: refused by a ``VitquantError`` at once.

The command line has a battery of its own, ``tests/cli/test_battery.py``.
"""

import copy
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import pytest
import torch

import vitquant
from support.bad_values import (
    COUNTS,
    DEVICES,
    FOLDER_TARGETS,
    JUNK,
    PATHS,
    TARGETS,
    WRONG_TYPES,
    contents,
    deadline,
    make_zoo,
    tensors,
)
from support.documents import TESTS
from support.integer_models import PREPROCESSING, SHIPPABLE, pixels, tiny_spec
from vitquant.adapters.adapt import FloatModel
from vitquant.architectures.float_vit import VisionTransformer
from vitquant.errors import VitquantError
from vitquant.executors.choose import open_executor
from vitquant.measure.compare import compare
from vitquant.workflows import job
from vitquant.workflows.classify import classify
from vitquant.workflows.export import export_onnx_integer, export_onnx_qdq
from vitquant.workflows.latency import compare_latency

WORDS = WRONG_TYPES | {"empty": "", "unknown": "gpu", "escape": "\x1b[2J\n"}
PATH_TYPES = WRONG_TYPES | {"NUL": "a\0b"}
IN = PATHS | JUNK | PATH_TYPES
OUT_FILE, OUT_FOLDER = TARGETS | PATH_TYPES, FOLDER_TARGETS | PATH_TYPES
MODELS = WORDS | {"module": torch.nn.Linear(2, 2)}
CONFIGS = IN | {"unknown key": {"wieght": {}}, "wrong value": {"weight": {"bit_type": {"bits": "x"}}}}
STEPS = {key: value for key, value in WORDS.items() if value is not None and value != []} | {
    "unknown step": ["bias"],
    "unknown setting": [{"bias_correction": {"x": 1}}],
    "wrong value": [{"bias_correction": {"images": 0}}],
    "two in one": [{"bias_correction": {}, "other": {}}],
}
EXACT = {key: value for key, value in WORDS.items() if value != []} | {
    "no point": ["blocks.9.*"],
    "no pattern": ["blocks.(0)"],
    "a number inside": [1],
}
LABELLED = tensors((3, 16, 16)) | {key: IN[key] for key in IN if key not in ("list", "class")}
UNKNOWN_CLASSES = {key: value for key, value in LABELLED.items() if key != "labels beyond the classes"}
IMAGES = {key: value for key, value in LABELLED.items() if "labels" not in key}
"""For what reads no labels."""
PIXELS = {k: v for k, v in tensors((3, 16, 16)).items() if "labels" not in k} | WRONG_TYPES
PLACES = DEVICES | {key: value for key, value in WRONG_TYPES.items() if key != "number"} | {"number": 99}
LIMITS = {key: value for key, value in COUNTS.items() if key != "None"}
SEEDS = {key: value for key, value in COUNTS.items() if key not in ("number", "negative")}


def iterate(*args: Any, **kwargs: Any) -> list[Any]:
    return list(classify(*args, **kwargs))


def read_images(*args: Any, batch_size: Any = 2, **kwargs: Any) -> list[Any]:
    return list(vitquant.open_images(*args, **kwargs).batches(batch_size))


def call_reference(program: Any, images: Any) -> Any:
    return vitquant.Reference(program)(images)


def call_executor(program: Any, images: Any) -> Any:
    return open_executor(program)(images)


@dataclass(frozen=True)
class Door:
    """A function, arguments with which it works (names of :func:`good`), and bad values for each."""

    call: Callable[..., Any]
    works: tuple[str, ...]
    bad: Mapping[str, Mapping[str, Any]]
    name: str = ""


SIZES = {"limit": LIMITS, "batch_size": COUNTS}
DOORS = (
    Door(
        vitquant.quantize,
        ("model=float_model", "config", "calibration=images"),
        {"model": MODELS, "config": CONFIGS, "calibration": IMAGES, "device": PLACES, **SIZES},
    ),
    Door(vitquant.prepare, ("model=float_model", "config"), {"model": MODELS, "config": CONFIGS, "device": PLACES}),
    Door(vitquant.calibrate, ("model=prepared", "images"), {"model": MODELS, "images": IMAGES, **SIZES}),
    Door(
        vitquant.repair,
        ("model=calibrated", "images", "steps"),
        {"model": MODELS, "images": IMAGES, "steps": STEPS, **SIZES},
    ),
    Door(vitquant.evaluate, ("model", "images"), {"model": MODELS, "images": LABELLED, **SIZES}),
    Door(
        vitquant.profile,
        ("model", "images"),
        {"model": MODELS, "images": IMAGES, "exact": EXACT, "draws": COUNTS, **SIZES},
    ),
    Door(vitquant.save, ("model", "folder=new"), {"model": MODELS, "folder": OUT_FOLDER}),
    Door(vitquant.load, ("folder=saved",), {"folder": IN}),
    Door(vitquant.compile, ("model",), {"model": MODELS}),
    Door(vitquant.save_program, ("program", "folder=new"), {"program": WORDS, "folder": OUT_FOLDER}),
    Door(vitquant.load_program, ("path=saved",), {"path": IN}),
    Door(vitquant.load_run, ("folder=run",), {"folder": IN}),
    Door(vitquant.adapt, ("model=vit",), {"model": MODELS}),
    Door(read_images, ("source=images", "preprocessing"), {"source": UNKNOWN_CLASSES, **SIZES}, name="open_images"),
    Door(vitquant.load_config_from_yaml, ("path=yaml",), {"path": IN}),
    Door(vitquant.ModelConfig.from_yaml, ("path=yaml",), {"path": IN}, name="ModelConfig.from_yaml"),
    Door(vitquant.Reference, ("program",), {"program": WORDS, "device": PLACES}),
    Door(call_reference, ("program", "images=pixels"), {"images": PIXELS}),
    Door(call_executor, ("program", "images=pixels"), {"images": PIXELS}),
    Door(
        open_executor,
        ("program",),
        {
            "program": WORDS,
            "kind": WORDS,
            "device": PLACES,
            "threads": {k: v for k, v in COUNTS.items() if k != "None"},
        },
    ),
    Door(iterate, ("program", "images"), {"program": WORDS, "images": IMAGES, **SIZES}, name="classify"),
    Door(
        compare,
        ("folder=saved", "original=float_model", "images"),
        {"folder": IN, "original": MODELS, "images": LABELLED, "device": PLACES, "kind": WORDS, **SIZES},
    ),
    Door(
        compare_latency,
        ("folder=saved", "rounds"),
        {"folder": IN, "batches": WORDS | {"zero": [0]}, "rounds": COUNTS, "threads": LIMITS | {"many": 300}},
    ),
    Door(
        export_onnx_integer,
        ("program", "path=graph", "images"),
        {
            "program": WORDS,
            "path": OUT_FILE,
            "images": {k: v for k, v in IMAGES.items() if k != "None"},
            "count": COUNTS,
        },
    ),
    Door(
        export_onnx_qdq,
        ("model", "path=graph", "images"),
        {"model": MODELS, "path": OUT_FILE, "target": WORDS, "opset": LIMITS | {"new": 99}, "count": COUNTS},
    ),
    Door(
        job.run,
        ("model=float_model", "config", "calibration=images", "evaluation=images", "out=new"),
        {
            "model": MODELS,
            "config": CONFIGS,
            "calibration": IMAGES,
            "evaluation": LABELLED,
            "out": OUT_FOLDER,
            "device": PLACES,
            "batch_size": COUNTS,
            "profile_images": COUNTS,
            "exact": EXACT,
            "seed": SEEDS,
            "calibration_limit": LIMITS,
        },
        name="job.run",
    ),
)


def title(door: Door) -> str:
    return door.name or door.call.__name__


CELLS = [
    pytest.param(door, argument, value, id=f"{title(door)}, {argument}: {key}")
    for door in DOORS
    for argument, values in door.bad.items()
    for key, value in values.items()
]


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Arguments that work."""
    folder = tmp_path_factory.mktemp("battery")
    torch.manual_seed(0)
    vit = VisionTransformer(tiny_spec(depth=1)).eval()
    float_model = FloatModel("tiny", vit, PREPROCESSING)
    images = pixels(4)
    model = vitquant.quantize(float_model, SHIPPABLE, calibration=images)
    program = vitquant.compile(model)
    vitquant.save(model, folder / "saved")
    vitquant.save_program(program, folder / "saved")
    make_zoo(folder)
    return {
        "here": folder,
        "vit": vit,
        "float_model": float_model,
        "model": model,
        "program": program,
        "images": images,
        "pixels": images,
        "config": SHIPPABLE,
        "preprocessing": PREPROCESSING,
        "rounds": 1,
        "steps": ["bias_correction"],
        "saved": str(folder / "saved"),
        "run": str(TESTS / "golden" / "run_record"),
        "new": "new",
        "graph": "new/graph.onnx",
        "yaml": "vit_int8.yaml",
    }


def arguments(door: Door, good: Mapping[str, Any]) -> dict[str, Any]:
    pairs = [(word.partition("=")[0], word.rpartition("=")[2]) for word in door.works]
    fresh: dict[str, Callable[[], Any]] = {
        "prepared": lambda: vitquant.prepare(good["float_model"], SHIPPABLE),
        "calibrated": lambda: copy.deepcopy(good["model"]),
    }
    return {name: fresh[key]() if key in fresh else good[key] for name, key in pairs}


@pytest.mark.job
@pytest.mark.parametrize(("door", "argument", "value"), CELLS)
def test_a_bad_value_is_refused(
    door: Door, argument: str, value: Any, good: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(good["here"])
    before = contents(good["here"])
    given = arguments(door, good) | {argument: value}
    with deadline(), pytest.raises(VitquantError) as caught:
        door.call(**given)
    assert caught.value.exit_code in (2, 3, 4)
    assert all(line.isprintable() for line in str(caught.value).split("\n"))
    assert contents(good["here"]) == before


@pytest.mark.filterwarnings("ignore::vitquant.data.SharedImagesWarning")
@pytest.mark.parametrize("door", DOORS, ids=title)
def test_the_arguments_are_good_but_for_the_value(
    door: Door, good: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise the cells would be refused for another reason."""
    monkeypatch.chdir(good["here"])
    try:
        assert door.call(**arguments(door, good)) is not Ellipsis
    finally:
        shutil.rmtree(good["here"] / "new", ignore_errors=True)
