"""Other settings of points: what the table says of them is what a model that has them loses."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import vitquant
from support.integer_models import CONFIGS, merged, pixels
from support.integer_models import quantized as tiny
from vitquant.architectures.model import QuantModel
from vitquant.config import QuantConfig
from vitquant.config.candidates import Candidates, changed, setting_label
from vitquant.errors import ArtifactError, ConfigError, DataError, LifecycleError
from vitquant.measure.table import estimate
from vitquant.report.sensitivity import SensitivityTable, Setting, decibel, load_sensitivity
from vitquant.workflows import sensitivity as workflow
from vitquant.workflows.quantize import calibrate
from vitquant.workflows.sensitivity import hold_out, sensitivity

IMAGES = pixels(12, seed=3)
HELD_OUT = hold_out(12)


def model(config: Any = None) -> QuantModel:
    return calibrate(tiny(config), IMAGES[~HELD_OUT])


def exact_isolated(found: QuantModel, point: str) -> float:
    rows = {row.name: row for row in vitquant.profile(found, IMAGES[HELD_OUT], exact=[point]).points}
    value = rows[point].sqnr_isolated_db
    assert value is not None
    assert not rows[point].estimated
    return value


CASES = [
    ("as shipped", "blocks.0.norm1", {"calibration_mode": "layer_wise", "bit_type": {"bits": 5}}),
    ("as shipped", "blocks.1.mlp_gelu", {"observer_type": "OmseObserver", "bit_type": {"bits": 4}}),
    ("as shipped", "blocks.0.attn_kv_out", {"observer_type": "KLObserver"}),
    ("as shipped", "blocks.1.attn_qkv.weight", {"bit_type": {"bits": 4}, "observer_type": "OmseObserver"}),
    ("as shipped", "blocks.1.mlp_fc2.weight", {"calibration_mode": "layer_wise"}),
    ("as shipped", "patch_embed.weight", {"bit_type": {"bits": 4}}),
    ("as shipped", "blocks.0.intSoft", {"softmax": "log2", "bit_type": {"bits": 4, "signed": False}}),
    ("as shipped", "blocks.0.residual1", {"bit_type": {"bits": 8}}),
    ("as shipped", "pos_embed", {"bit_type": {"bits": 8}}),
    ("paired", "blocks.0.attn_q_out", {"bit_type": {"bits": 4}}),
    ("paired", "blocks.1.attn_k_out", {"bit_type": {"bits": 4}, "observer_type": "OmseObserver"}),
    ("outputs too", "blocks.0.mlp_fc1.output", {"bit_type": {"bits": 4}}),
]


@pytest.mark.job
@pytest.mark.parametrize(("name", "point", "change"), CASES, ids=[f"{a}, {b}" for a, b, _ in CASES])
def test_a_candidate_is_what_a_model_with_these_settings_has(name: str, point: str, change: dict[str, Any]) -> None:
    """Its parameters are those that its own calibration gives: the exact SQNRs are equal but for float32's rounding."""
    before = model(CONFIGS[name])
    own = before.config[point]
    assert own is not None
    bits = change.get("bit_type", {}).get("bits", own.bit_type.bits)
    wanted = changed(
        own,
        bits=bits,
        softmax=change.get("softmax"),
        mode=change.get("calibration_mode"),
        observer=change.get("observer_type"),
    )
    observers = {"MinmaxObserver": "minmax", "OmseObserver": "omse", "KLObserver": "kl"}
    candidates = Candidates(
        bits=(bits,),
        observers=(observers[wanted.observer_type],),
        modes=(wanted.calibration_mode,),
        softmax=(wanted.softmax,) if "softmax" in change else (),
        points=(point,),
    )
    table = sensitivity(before, IMAGES, candidates=candidates, exact=True)
    assert [s.config for s in table.settings] == [own, wanted]
    other = model(merged(CONFIGS[name], {"overrides": {point: change}}))
    assert other.config[point] == wanted
    assert table.db(0) == pytest.approx(exact_isolated(before, point), abs=2e-3)
    assert table.db(1) == pytest.approx(exact_isolated(other, point), abs=2e-3)
    assert table.measured_db == pytest.approx(vitquant.profile(before, IMAGES[HELD_OUT]).sqnr_db, abs=1e-3)


@pytest.mark.job
@pytest.mark.parametrize("name", ["as shipped", "paired", "outputs too"])
def test_estimates_are_near_the_exact_figures(name: str) -> None:
    found = model(CONFIGS[name])
    candidates = Candidates(bits=(6, 8, 10), observers=("minmax", "omse"), modes=("layer_wise", "channel_wise"))
    exact = sensitivity(found, IMAGES, candidates=candidates, draws=1, exact=True)
    estimated = sensitivity(found, IMAGES, candidates=candidates, draws=64)
    assert exact.settings[0].exact_db is not None
    assert estimated.settings[0].exact_db is None
    assert len({s.point for s in exact.settings}) > 20
    small = [row for row in range(len(exact.settings)) if exact.db(row) > 20]  # larger errors are not of first order
    assert len(small) > 0.9 * len(exact.settings)
    for row in small:
        setting = exact.settings[row]
        found_db = decibel(float(estimated.isolated(estimated.held_out)[row]))
        assert found_db == pytest.approx(exact.db(row), abs=3), (setting.point, setting.label)


def test_the_model_stays_as_it_is_and_the_table_is_the_same_for_every_batch_size() -> None:
    found = model()
    before, config = found(found.preprocessing.normalize(IMAGES[:2])), found.config.to_yaml()
    points = Candidates(bits=(4,), points=("blocks.0.*",))
    tables = [sensitivity(found, IMAGES, candidates=points, draws=2, batch_size=size) for size in (1, 5, 12)]
    for table in tables[1:]:
        np.testing.assert_allclose(table.products, tables[0].products, rtol=1e-3, atol=1e-4)
    assert torch.equal(found(found.preprocessing.normalize(IMAGES[:2])), before)
    assert found.config.to_yaml() == config


def test_what_is_refused() -> None:
    found = model()
    with pytest.raises(ConfigError, match="no quantized point matches"):
        sensitivity(found, IMAGES, candidates=Candidates(bits=(4,), points=("nowhere",)))
    with pytest.raises(ConfigError, match="nothing to compare"):
        sensitivity(found, IMAGES, candidates=Candidates(softmax=("row",), points=("head.weight",)))
    with pytest.raises(DataError, match="too few images"):
        sensitivity(found, IMAGES[:1], candidates=Candidates(bits=(4,)))
    blank = vitquant.prepare(vitquant.load_fashion(), "vit_int8.yaml")
    with pytest.raises(LifecycleError):
        sensitivity(blank, IMAGES, candidates=Candidates(bits=(4,)))
    spoiled: list[dict[str, Any]] = [{"bits": (17,)}, {"observers": ("mean",)}, {"modes": ("row",)}]
    for wrong in [*spoiled, {"softmax": ("x",)}, {"points": ("(",)}, {"percentiles": (0.5,)}]:
        with pytest.raises(ConfigError):
            Candidates(**wrong)


def test_settings_that_integers_cannot_execute_are_left_out_unless_asked_for() -> None:
    found, modes = model(), Candidates(modes=("channel_wise",), points=("blocks.0.residual1", "blocks.0.attn_v_out"))
    assert not [s for s in sensitivity(found, IMAGES, candidates=modes, draws=1).settings if s.point.endswith("1")][1:]
    every = sensitivity(found, IMAGES, candidates=modes, draws=1, simulation_only=True)
    assert [s.config.calibration_mode for s in every.settings if s.point.endswith("1")] == [
        "layer_wise",
        "channel_wise",
    ]


def test_which_settings_are_compared() -> None:
    own = QuantConfig()
    grid = Candidates(bits=(4, 8), observers=("percentile", "kl"), percentiles=(0.9, 0.99))
    labels = [setting_label(c, "norm1") for c in grid.of("norm1", own)]
    assert labels == [
        f"int{bits} per-tensor {observer}"
        for bits in (4, 8)
        for observer in ("percentile 0.9", "percentile 0.99", "kl")
    ]
    forms = Candidates(bits=(4, 8), observers=("minmax", "kl"), softmax=("row", "uniform"))
    row = changed(own, softmax="row")
    assert [setting_label(c, "intSoft") for c in forms.of("intSoft", row)] == [
        "uint4 row",
        *(f"uint{bits} per-tensor {observer}" for bits in (4,) for observer in ("minmax", "kl")),
        *(f"uint8 per-tensor {observer}" for observer in ("minmax", "kl")),
    ]
    assert row not in forms.of("intSoft", row)
    assert Candidates().of("norm1", own) == []


@pytest.mark.parametrize(("count", "expected"), [(1, []), (2, [1]), (4, [3]), (9, [3, 7])])
def test_every_fourth_image_is_held_out(count: int, expected: list[int]) -> None:
    assert hold_out(count).nonzero().flatten().tolist() == expected


def by_hand() -> SensitivityTable:
    """Two points, three settings, three images of signal 100 each, of which the last one is held out."""
    settings = (
        Setting("norm1", changed(QuantConfig(), bits=8), True),
        Setting("norm1", changed(QuantConfig(), bits=4), False),
        Setting("norm2", changed(QuantConfig(), bits=8), True),
    )
    products = np.array([[[1, 2, 1]], [[1, 2, 1]], [[2, 3, 1]]], dtype=np.float32)
    held_out = np.array([False, False, True])
    return SensitivityTable("m", "logits", settings, products, np.full(3, 100.0), np.array([2.0, 2, 10]), held_out)


def test_a_table_by_hand() -> None:
    table = by_hand()
    assert table.points == {"norm1": (0, 1), "norm2": (2,)}
    assert [table.db(i) for i in range(3)] == pytest.approx([decibel(e) for e in (0.04, 0.09, 0.01)])
    assert table.measured_db == pytest.approx(10)
    assert table.calibration_db == pytest.approx(decibel(0.02))
    assert table.after_db([1]) == pytest.approx(decibel(0.1 - 0.04 + 0.09))
    ((point, ratio),) = table.overfitted()
    assert point == "norm1"
    assert ratio == pytest.approx(4.0)
    exact = table.with_exact({1: 20.0})
    assert exact.db(1) == 20
    assert exact.after_db([1]) == pytest.approx(decibel(0.1 - 0.04 + 0.01))
    assert "norm1 (4.0 times)" in str(table)
    assert "10.0 dB on held-out images, 17.0 dB on calibration images" in str(table)


def test_the_files_of_a_table(tmp_path: Path) -> None:
    table = by_hand().with_exact({1: 20.0})
    for name, content in table.files().items():
        (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    again = load_sensitivity(tmp_path)
    assert again.settings == table.settings
    assert str(again) == str(table)
    assert (tmp_path / "sensitivity.csv").read_text().splitlines() == [
        "point,setting,current,sqnr_isolated_db,estimated,sqnr_after_db",
        "norm1,int8 per-tensor minmax,True,13.979,True,",
        "norm1,int4 per-tensor minmax,False,20.0,False,11.549",
        "norm2,int8 per-tensor minmax,True,20.0,True,",
    ]
    with pytest.raises(ArtifactError, match="no sensitivity table"):
        load_sensitivity(tmp_path / "nowhere")
    good = (tmp_path / "sensitivity.npz").read_bytes()
    for spoiled in (b"", good[:100], good.replace(b"products", b"prodacts")):
        (tmp_path / "sensitivity.npz").write_bytes(spoiled)
        with pytest.raises(ArtifactError):
            load_sensitivity(tmp_path)


def test_a_table_comes_from_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found, points = model(), Candidates(bits=(4,), points=("blocks.0.norm1",))
    first = sensitivity(found, IMAGES, candidates=points, draws=2, cache=tmp_path)
    calls: list[int] = []

    def counted(*args: Any, **options: Any) -> Any:
        calls.append(1)
        return estimate(*args, **options)

    monkeypatch.setattr(workflow, "estimate", counted)
    again = sensitivity(found, IMAGES, candidates=points, draws=2, cache=tmp_path)
    assert not calls
    assert str(again) == str(first)
    np.testing.assert_array_equal(again.products, first.products)
    sensitivity(found, IMAGES, candidates=points, draws=3, cache=tmp_path)
    sensitivity(found, IMAGES[:8], candidates=points, draws=2, cache=tmp_path)
    sensitivity(model(CONFIGS["paired"]), IMAGES, candidates=points, draws=2, cache=tmp_path)
    assert len(calls) == 3
    for folder in tmp_path.iterdir():
        if folder.is_dir():
            (folder / "sensitivity.npz").write_bytes(b"spoiled")
    sensitivity(found, IMAGES, candidates=points, draws=2, cache=tmp_path)
    assert len(calls) == 4
