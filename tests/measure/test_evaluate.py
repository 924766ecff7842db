"""Float beside quantized, against both models run apart."""

import warnings
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor

import vitquant
from support.documents import FAILURES
from support.integer_models import pixels
from support.integer_models import quantized as tiny_quantized
from vitquant.data import ImageSource
from vitquant.errors import ConfigError, DataError
from vitquant.executors.reference import IntegerOutput, Reference
from vitquant.measure.evaluate import ChanceWarning, warn_of_chance
from vitquant.results import IDENTICAL_DB


@torch.no_grad()
def test_figures_are_those_of_both_models_run_apart(quantized: Any) -> None:
    model, images, labels = quantized.model, quantized.images, quantized.labels
    exact, rounded = quantized.original.vit(images).argmax(1), model(images).argmax(1)
    labels = torch.stack([exact[0], exact[1], (exact[2] + 1) % 10, (exact[3] + 1) % 10])  # two right, two wrong
    found = vitquant.evaluate(model, (quantized.pixels, labels), batch_size=3)
    assert found.images == 4
    assert found.fp32_top1 == 50
    assert found.quantized_top1 == 100 * float((rounded == labels).double().mean())
    assert found.agreement == 100 * float((rounded == exact).double().mean())


def test_batches_change_nothing(quantized: Any) -> None:
    one, four = (vitquant.evaluate(quantized.model, quantized.pixels, batch_size=size) for size in (1, 4))
    assert one.sqnr_db == pytest.approx(four.sqnr_db, abs=0.01)
    assert one.agreement == four.agreement


def test_without_labels_there_is_no_top1(quantized: Any) -> None:
    found = vitquant.evaluate(quantized.model, quantized.pixels, limit=2)
    assert (found.images, found.fp32_top1, found.quantized_top1) == (2, None, None)
    assert found.agreement is not None


def test_everything_float_loses_nothing(quantized: Any) -> None:
    model = vitquant.prepare(quantized.original, {"defaults": {}})
    found = vitquant.evaluate(model, (quantized.pixels, quantized.labels))
    assert found.sqnr_db == found.sqnr_final_norm_db == 300
    assert found.agreement == 100
    assert found.fp32_top1 == found.quantized_top1
    report = vitquant.profile(model, quantized.pixels)
    assert report.sqnr_db == 300
    assert report.worst() == []
    assert not any(row.active for row in report.points)


def class_folders(root: Path, names: list[str]) -> Path:
    for i, name in enumerate(names):
        (root / name).mkdir(parents=True)
        Image.effect_noise((28, 28), 60 + i).save(root / name / "1.png")
    return root


@pytest.mark.parametrize("count", [1, 3, 9, 11])
def test_class_folders_must_be_the_models_classes(quantized: Any, tmp_path: Path, count: int) -> None:
    folder = class_folders(tmp_path, [f"c{i:02}" for i in range(count)])
    with pytest.raises(
        DataError, match=rf"Got {count} class folders? \(c00.*expected 10.*ignore_labels=True"
    ) as caught:
        vitquant.evaluate(quantized.model, folder)
    assert caught.value.exit_code == 3
    found = vitquant.evaluate(quantized.model, folder, ignore_labels=True)
    assert (found.images, found.fp32_top1) == (count, None)
    source = vitquant.open_images(folder, quantized.model.preprocessing)
    assert vitquant.evaluate(quantized.model, source, ignore_labels=True).fp32_top1 is None


def test_ten_class_folders_are_ten_classes(quantized: Any, tmp_path: Path) -> None:
    folder = class_folders(tmp_path, [f"c{i}" for i in range(10)])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ChanceWarning)
        assert vitquant.evaluate(quantized.model, folder).fp32_top1 is not None


def test_labels_beyond_the_classes_can_be_ignored(quantized: Any) -> None:
    images = (quantized.pixels, [0, 1, 2, 10])
    with pytest.raises(DataError, match=r"batch 2: a label is not one of the model's classes. Got 2 to 10"):
        vitquant.evaluate(quantized.model, images, batch_size=2)
    assert vitquant.evaluate(quantized.model, images, ignore_labels=True).fp32_top1 is None


def test_wrong_labels_are_noticed(quantized: Any) -> None:
    _, _, images, labels = vitquant.load_fashion_images()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        vitquant.evaluate(quantized.model, (images[:16], labels[:16]), batch_size=16)
        vitquant.evaluate(quantized.model, (images[:9], (labels[:9] + 1) % 10), batch_size=9)  # too few to say
    with pytest.warns(ChanceWarning) as caught:
        found = vitquant.evaluate(quantized.model, (images[:16], (labels[:16] + 1) % 10), batch_size=16)
    assert found.fp32_top1 == 0
    assert [f"```text\nwarning: {warning.message}\n```" in FAILURES for warning in caught] == [True]


@pytest.mark.parametrize(
    ("hits", "count", "classes", "warned"),
    [
        (0, 10, 10, True),
        (1, 10, 10, True),
        (2, 10, 10, False),  # chance gives 1, with a deviation of 0.95
        (0, 9, 10, False),
        (0, 10, 1000, True),
        (1, 10, 1000, False),
        (6, 10, 2, True),
        (7, 10, 2, False),
        (10, 10, 1, False),
        (109, 1000, 10, True),  # 100, with a deviation of 9.5
        (110, 1000, 10, False),
    ],
)
def test_what_counts_as_chance(hits: int, count: int, classes: int, warned: bool) -> None:
    right = torch.arange(count) < hits
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        warn_of_chance([right[:3], None, right[3:]], classes)
    assert bool(caught) == warned


class Empty(ImageSource):
    """A source that promises images and has none."""

    def __init__(self, preprocessing: vitquant.Preprocessing) -> None:
        self.preprocessing = preprocessing

    @property
    def count(self) -> None:
        return None

    def batches(self, batch_size: int) -> Iterator[Any]:
        return iter(())


def test_no_images_give_no_figures(quantized: Any) -> None:
    with pytest.raises(DataError, match="evaluation got no images"):
        vitquant.evaluate(quantized.model, Empty(quantized.model.preprocessing))


@pytest.mark.parametrize("value", [0, 2.5, True])
@pytest.mark.parametrize("name", ["limit", "batch_size"])
def test_bad_numbers(quantized: Any, name: str, value: Any) -> None:
    for step in (vitquant.evaluate, vitquant.profile, vitquant.calibrate):
        with pytest.raises(ConfigError, match=rf"{name}: bad value. Got .*expected an integer from 1"):
            step(quantized.model, quantized.pixels, **{name: value})
    assert quantized.model.mode is vitquant.Mode.QUANTIZED


@pytest.mark.parametrize("spec", [{}, {"dist_token": True}], ids=str)
def test_logits_that_differ_are_not_identical(spec: dict[str, Any]) -> None:
    """Equal to the last code, but for float32 where the simulation has two heads; and one thousandth apart."""
    model = tiny_quantized(**spec)
    reference = Reference(vitquant.compile(model))

    def shifted(images: Tensor) -> IntegerOutput:
        logits = reference(images)
        codes = logits.codes.clone()
        codes[0, 0] += int(codes.abs().max()) // 1000
        return replace(logits, codes=codes)

    equal, unequal = (vitquant.evaluate(model, pixels(6), integers=run).integer for run in (reference, shifted))
    assert equal is not None
    assert unequal is not None
    assert equal.to_simulated_db == IDENTICAL_DB
    assert 60 < unequal.to_simulated_db < 100
