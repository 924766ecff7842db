"""Float beside quantized, against both models run apart."""

from typing import Any

import pytest
import torch

import vitquant


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
