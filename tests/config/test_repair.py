"""The section ``repair``: read, refused with line and fix, and written back."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from vitquant.cli.main import main
from vitquant.config import (
    BiasCorrectionSettings,
    ModelConfig,
    QuantConfig,
    RepairSettings,
    ResolvedConfig,
    load_config_from_yaml,
    migrate,
    point_names,
    repair_settings,
)
from vitquant.errors import ConfigError

Write = Callable[[str], Path]

FORMS = {
    "global": "weight: {}\n",
    "per-layer": "attn_q_out: {}\n",
    "model": "defaults: {weight: {}}\noverrides: {blocks.0.attn_q_out: {}}\n",
}
STEPS = (BiasCorrectionSettings(), BiasCorrectionSettings(images=16))
TEXT = "repair:\n  - bias_correction\n  - bias_correction: {images: 16}\n"


@pytest.mark.parametrize("form", FORMS)
def test_all_formats_have_it(form: str, write: Write) -> None:
    config = ModelConfig.from_yaml(write(FORMS[form] + TEXT))
    assert config.document.form == form
    assert config.document.repair == STEPS
    assert config.resolve(point_names(1)).repair == STEPS
    assert config.resolve(point_names(1)) != ModelConfig.from_yaml(write(FORMS[form])).resolve(point_names(1))


@pytest.mark.parametrize("form", FORMS)
def test_it_comes_back(form: str, write: Write) -> None:
    path, points = write(FORMS[form] + TEXT), point_names(2)
    resolved = ModelConfig.from_yaml(path).resolve(points)
    loaded = load_config_from_yaml(path)
    assert loaded["repair"] == list(STEPS)
    assert ModelConfig.from_dict(loaded).resolve(points) == resolved
    text = resolved.to_yaml()
    assert text.endswith("repair:\n- bias_correction: {images: 64}\n- bias_correction: {images: 16}\n")
    assert ModelConfig.from_text(text, "a.yaml").resolve(points) == resolved
    if form == "global":
        assert ModelConfig.from_text(migrate(path), "a.yaml").resolve(points) == resolved


def test_without_it_there_are_no_steps(resolve: Callable[..., ResolvedConfig]) -> None:
    for text in ("weight: {}", "weight: {}\nrepair: []"):
        table = resolve(text)
        assert table.repair == ()
        assert "repair" not in table.to_yaml()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "  - bias_corection",
            "a.yaml:3 repair: unknown repair step `bias_corection`, did you mean `bias_correction`. "
            "Expected one of "
            "augmentation, canonical_form, centring, sorted_channels, migration, gptq, bias_correction. "
            "Fix: write bias_correction.",
        ),
        (
            "  - bias_correction\n  - adaround: {images: 3}",
            "a.yaml:4 repair: unknown repair step `adaround`. Expected one of "
            "augmentation, canonical_form, centring, sorted_channels, migration, gptq, bias_correction.",
        ),
        (
            "  - bias_correction:\n      images: 0",
            "a.yaml:4 repair.bias_correction.images: value not allowed. Got 0, expected an integer from 1 to 100000.",
        ),
        (
            "  - bias_correction: {images: 64.0}",
            "a.yaml:3 repair.bias_correction.images: value not allowed. Got 64.0, expected an integer from 1 to 100000."
            " Fix: write 64.",
        ),
        (
            "  - bias_correction: {imges: 4}",
            "a.yaml:3 repair.bias_correction.imges: unknown key `imges`, did you mean `images`. Expected one of images."
            " Fix: write images.",
        ),
        (
            "  - bias_correction:",
            "a.yaml:3 repair.bias_correction: not a mapping of settings. Got nothing (null), expected a mapping. "
            "Fix: remove the colon for the defaults.",
        ),
        (
            "  - {bias_correction: {}, other: {}}",
            "a.yaml:3 repair: not a repair step. Got bias_correction, other, expected the name of one step, or one "
            "name with its settings. Fix: write each step as an item of its own.",
        ),
        (
            "  - [bias_correction]",
            "a.yaml:3 repair: not a repair step. Got ['bias_correction'], expected the name of one step, or one name "
            "with its settings.",
        ),
        (
            "  bias_correction: {images: 4}",
            "a.yaml:2 repair: not a list of steps. Got a mapping. Fix: write a list, such as repair: "
            "[bias_correction].",
        ),
        (
            "  bias_correction",
            "a.yaml:2 repair: not a list of steps. Got 'bias_correction'. Fix: write a list, such as repair: "
            "[bias_correction].",
        ),
        (
            "",
            "a.yaml:2 repair: not a list of steps. Got nothing (null). Fix: write a list, such as repair: "
            "[bias_correction].",
        ),
    ],
)
def test_what_is_wrong_is_refused_with_its_line(text: str, message: str, refusal: Callable[[str], str]) -> None:
    assert refusal(f"weight: {{}}\nrepair:\n{text}\n") == message


def test_a_misspelt_section_is_named(refusal: Callable[[str], str]) -> None:
    assert refusal("weight: {}\nrepairs: [bias_correction]").startswith(
        "a.yaml:2 repairs: unknown layer or section `repairs`, did you mean `repair`."
    )


def test_in_python_a_step_is_a_name_a_mapping_or_settings() -> None:
    steps: list[object] = ["bias_correction", {"bias_correction": {"images": 16}}, BiasCorrectionSettings(images=2)]
    config = ModelConfig.from_dict({"weight": QuantConfig(), "repair": steps})
    assert config.document.repair == (*STEPS, BiasCorrectionSettings(images=2))
    assert tuple(map(repair_settings, steps)) == config.document.repair
    assert all(isinstance(step, RepairSettings) for step in config.document.repair)
    with pytest.raises(ConfigError, match=r"^bias_correction images: value not allowed\. Got 0, expected an integer"):
        BiasCorrectionSettings(images=0)


def test_a_list_that_contains_itself_is_refused() -> None:
    steps: list[object] = []
    steps.append(steps)
    with pytest.raises(ConfigError, match="nested too deeply"):
        ModelConfig.from_dict({"repair": steps})


def test_show_lists_the_steps(write: Write, capsys: pytest.CaptureFixture[str]) -> None:
    path = write(FORMS["global"] + TEXT)
    assert main(["config", "show", str(path), "--depth", "1"]) == 0
    assert "\nRepair steps, in order: bias_correction (images 64), bias_correction (images 16).\n" in (
        capsys.readouterr().out
    )
    assert main(["config", "show", str(path), "--depth", "1", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told.pop("repair") == [{"bias_correction": {"images": 64}}, {"bias_correction": {"images": 16}}]
    assert list(told) == list(point_names(1))
