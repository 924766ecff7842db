"""The profile against whole forwards, one for each point."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

import vitquant
from vitquant.architectures.float_vit import VisionTransformer, ViTSpec
from vitquant.layers import only, points_of
from vitquant.measure import ModelProfile
from vitquant.numerics.affine import fake_quantize
from vitquant.numerics.quantized import real


def db(reference: Tensor, value: Tensor) -> float:
    noise = (reference.double() - value.double()).square().sum()
    return 10 * math.log10(reference.double().square().sum() / noise) if noise else 300


@pytest.fixture(scope="module")
def report(quantized: Any) -> ModelProfile:
    return vitquant.profile(quantized.model, quantized.pixels, batch_size=4, exact=True)


@pytest.mark.job
@torch.no_grad()
def test_isolated_is_a_whole_forward_with_one_point_on(quantized: Any, report: ModelProfile) -> None:
    exact = quantized.original.vit(quantized.images)
    points = quantized.model.point_modules()
    measured = {row.name: row.sqnr_isolated_db for row in report.points if row.active}
    assert len(measured) > 100
    for name, sqnr in measured.items():
        with only([points[name]], quantized.model):
            assert sqnr == pytest.approx(db(exact, quantized.model(quantized.images)), abs=1e-3), name


@torch.no_grad()
def test_cumulative_compares_the_tensors_of_both_chains(quantized: Any, report: ModelProfile) -> None:
    model = quantized.model
    points = [point for point in model.point_modules().values() if point.active]
    seen: dict[bool, dict[str, Tensor]] = {False: {}, True: {}}
    for rounding in seen:
        with only(points if rounding else [], model):
            for point in points:
                point.hook = lambda p, _, after, rounding=rounding: seen[rounding].update({p.name: real(after)})
            model(quantized.images)
    for point in points:
        point.hook = None
    rows = {row.name: row.sqnr_cumulative_db for row in report.points}
    for name, exact in seen[False].items():
        assert rows[name] == pytest.approx(db(exact, seen[True][name]), abs=1e-3), name


def test_the_end_of_the_chain_is_the_evaluation(quantized: Any, report: ModelProfile) -> None:
    found = vitquant.evaluate(quantized.model, quantized.pixels)
    rows = {row.name: row.sqnr_cumulative_db for row in report.points}
    assert report.images == found.images == 4
    assert report.sqnr_db == pytest.approx(found.sqnr_db, abs=1e-3)
    assert rows["head.output"] == pytest.approx(found.sqnr_db, abs=1e-3)
    assert rows["final_norm"] == pytest.approx(found.sqnr_final_norm_db, abs=1e-3)


def test_batches_change_nothing_but_rounding(quantized: Any, report: ModelProfile) -> None:
    uneven = vitquant.profile(quantized.model, quantized.pixels, batch_size=3, exact=True)
    assert uneven.images == 4
    assert uneven.sqnr_db == pytest.approx(report.sqnr_db, abs=0.5)
    for a, b in zip(uneven.points, report.points, strict=True):
        if a.active:
            assert a.sqnr_isolated_db == pytest.approx(b.sqnr_isolated_db, abs=0.5), a.name
            assert a.sqnr_cumulative_db == pytest.approx(b.sqnr_cumulative_db, abs=0.5), a.name
        if a.metrics and b.metrics:
            assert sum(a.metrics.histogram) == (2 if a.name.endswith("weight") else 1) * sum(b.metrics.histogram)


def test_rows_are_the_points_of_the_model(quantized: Any, report: ModelProfile) -> None:
    infos = quantized.model.points()
    assert [(r.name, r.config, r.active, r.shape) for r in report.points] == [
        (i.name, i.config, i.active, i.shape) for i in infos
    ]
    for row in report.points:
        assert (row.sqnr_isolated_db is None) == (row.sqnr_cumulative_db is None) == (not row.active)


def test_metrics_stand_where_the_profiler_is_enabled(report: ModelProfile) -> None:
    assert {row.name for row in report.points if row.metrics} == {
        row.name for row in report.points if row.active and row.config and row.config.enable_profiler
    }
    assert sum(row.metrics is not None for row in report.points) == 9


@torch.no_grad()
@pytest.mark.parametrize("name", ["blocks.1.attn_q_out", "blocks.1.mlp_fc1.output"])
def test_metrics_are_those_of_the_float_tensor(quantized: Any, report: ModelProfile, name: str) -> None:
    """Everything before the point is float, so its tensor is the one that the float model has."""
    captured: list[Tensor] = []
    layer, part = {"blocks.1.attn_q_out": ("attn.qkv", 0), "blocks.1.mlp_fc1.output": ("mlp.fc1", None)}[name]
    module = quantized.original.vit.blocks[1].get_submodule(layer)
    hook = module.register_forward_hook(lambda _, __, y: captured.append(y if part is None else y.chunk(3, -1)[part]))
    quantized.original.vit(quantized.images)
    hook.remove()
    before = captured[0]
    after = fake_quantize(before, quantized.model.point_modules()[name].require_params())
    metrics = {row.name: row.metrics for row in report.points}[name]
    assert metrics is not None
    assert metrics.sqnr_db == pytest.approx(db(before, after), abs=1e-3)
    assert metrics.mse == pytest.approx(float((before - after).square().mean()), rel=1e-4)
    assert metrics.cosine == pytest.approx(
        float(torch.cosine_similarity(before.double().flatten(), after.double().flatten(), 0))
    )
    assert (metrics.low, metrics.high) == pytest.approx((float(before.min()), float(before.max())), rel=1e-5)
    assert sum(metrics.histogram) == before.numel()
    assert metrics.kl_divergence > 0
    assert 0 < metrics.seconds < 10


def test_metrics_of_weights_are_those_of_the_folded_weights(quantized: Any, report: ModelProfile) -> None:
    block, name = quantized.original.vit.blocks[1], "blocks.1.attn_qkv.weight"
    grid = quantized.model.point_modules()["blocks.1.norm1"].require_params()
    folded = (block.attn.qkv.weight * grid.scale).detach()
    step = folded.abs().amax(1, keepdim=True) / 127
    metrics = {row.name: row.metrics for row in report.points}[name]
    assert metrics is not None
    assert metrics.sqnr_db == pytest.approx(db(folded, (folded / step).round() * step), abs=0.01)
    assert metrics.clipped == 0
    assert metrics.seconds > 0


def test_the_model_is_left_as_it_was(quantized: Any) -> None:
    model = quantized.model
    points = points_of(model)
    before = model(quantized.images)
    try:
        for mode in (vitquant.Mode.FP32, vitquant.Mode.QUANTIZED):
            model.set_mode(mode)
            vitquant.profile(model, quantized.pixels[:1])
            vitquant.evaluate(model, quantized.pixels[:1])
            with pytest.raises(vitquant.VitquantError):
                vitquant.profile(model, [quantized.images[:1], torch.zeros(1, 1, 5, 5)])
            assert {point.mode for point in points} == {mode}
            assert all(point.hook is None for point in points)
            assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    finally:
        model.set_mode(vitquant.Mode.QUANTIZED)
    assert torch.equal(model(quantized.images), before)


@torch.no_grad()
@pytest.mark.parametrize(
    "changes",
    [
        {"num_classes": 0, "layer_scale": True, "reg_tokens": 2, "pos_covers_prefix": False},
        {"pool": "avg"},
        {"dist_token": True},
    ],
    ids=["headless", "average pool", "distilled"],
)
def test_other_architectures(changes: dict[str, Any]) -> None:
    small: dict[str, Any] = {"img_size": (8, 8), "patch_size": (4, 4), "embed_dim": 16, "depth": 1, "num_heads": 2}
    torch.manual_seed(0)
    vit = VisionTransformer(ViTSpec(**(small | {"mlp_hidden": 24, "num_classes": 5} | changes))).eval()
    pixels = torch.randint(0, 256, (3, 3, 8, 8), dtype=torch.uint8)
    model = vitquant.quantize(vit, "vit_int8.yaml", calibration=pixels)
    images = model.preprocessing.normalize(pixels)
    report = vitquant.profile(model, pixels, exact=True)
    features = model.forward_features if model.head is None else model
    with only([], model):
        exact = features(images)
    for name, point in model.point_modules().items():
        row = next(row for row in report.points if row.name == name)
        if point.active:
            with only([point], model):
                assert row.sqnr_isolated_db == pytest.approx(db(exact, features(images)), abs=0.01), name
    assert report.sqnr_db == pytest.approx(db(exact, features(images)), abs=0.01)
    evaluated = vitquant.evaluate(model, pixels)
    output = evaluated.sqnr_final_norm_db if model.head is None else evaluated.sqnr_db
    assert report.sqnr_db == pytest.approx(output, abs=0.01)


def test_worst_points(report: ModelProfile) -> None:
    worst = report.worst(7)
    values = [row.sqnr_isolated_db or 0 for row in worst]
    others = [row.sqnr_isolated_db for row in report.points if row.active and row not in worst]
    assert len(worst) == 7
    assert values == sorted(values)
    assert max(values) <= min(value for value in others if value is not None)
