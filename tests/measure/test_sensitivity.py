"""The estimated isolated SQNRs against the exact ones."""

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

import vitquant
from support.gated_windows import GATED_WINDOWS, GatedWindows, Spec
from support.integer_models import CONFIGS, PREPROCESSING, SHIPPABLE, merged, pixels
from support.integer_models import quantized as tiny
from vitquant.architectures import families
from vitquant.architectures.families import register
from vitquant.architectures.model import QuantModel
from vitquant.config import BitType, QuantConfig, catalogue
from vitquant.errors import ConfigError
from vitquant.layers import QAct, QuantLinear, only, points_of
from vitquant.layers.graph import graph_of
from vitquant.layers.layer import Composite, entered, entrance
from vitquant.measure import ModelProfile
from vitquant.measure.profile import Profiler
from vitquant.measure.sensitivity import Sensitivity
from vitquant.numerics.quantized import real


def ranks(values: Sequence[float]) -> Tensor:
    return torch.tensor(values).argsort().argsort().double()


def rank_correlation(a: Sequence[float], b: Sequence[float]) -> float:
    """Spearman's."""
    return float(torch.corrcoef(torch.stack([ranks(a), ranks(b)]))[0, 1])


def isolated(report: ModelProfile) -> dict[str, float]:
    return {row.name: row.sqnr_isolated_db for row in report.points if row.sqnr_isolated_db is not None}


def estimates(report: ModelProfile) -> dict[str, float]:
    return {row.name: row.sqnr_isolated_db or 0 for row in report.points if row.estimated}


class TwoLayers(Composite):
    """A linear model: an error at a point reaches the output through matrices alone."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        config = QuantConfig(bit_type=BitType(bits=6))
        self.inside = QAct(config, None, "inside")
        self.first = QuantLinear(torch.nn.Linear(6, 8), None, config, "first")
        self.between = QAct(config, None, "between")
        self.second = QuantLinear(torch.nn.Linear(8, 4), config, config, "second")

    @entrance
    def forward(self, x: Tensor) -> Any:
        return self.second(self.between(self.first(self.inside(x))))

    def point_modules(self) -> dict[str, Any]:
        return {point.name: point for point in points_of(self)}


def two_layers() -> tuple[TwoLayers, Tensor]:
    model, x = TwoLayers(), torch.randn(5, 6, generator=torch.Generator().manual_seed(1))
    vitquant.layers.set_mode(model, vitquant.Mode.CALIBRATE)
    model(x)
    graph_of(model).finish()
    vitquant.layers.set_mode(model, vitquant.Mode.QUANTIZED)
    return model, x


class AllSigns(Sensitivity):
    """All vectors of signs rather than a sample: their mean is the expectation."""

    def draw(self, output: Tensor) -> list[Tensor]:
        signs = torch.cartesian_prod(*[torch.tensor([-1.0, 1.0])] * output.shape[-1])
        return [s.expand_as(output) for s in signs]


@pytest.mark.parametrize("short", [False, True], ids=["float32", "bfloat16"])
@pytest.mark.parametrize(("kind", "draws", "close"), [(AllSigns, 16, 1e-3), (Sensitivity, 4000, 0.09)])
def test_a_linear_model(kind: type[Sensitivity], draws: int, close: float, short: bool) -> None:
    """The error at a point times the matrices behind it is what running the model with that point quantized gives.

    The deviation of a sample is at most ``sqrt(2 / 4000)``, or 2.2 %, of the expectation.
    """
    model, x = two_layers()
    stages = graph_of(model).stages
    points = {name: point for name, point in model.point_modules().items() if point.active}
    assert list(points) == ["inside", "first.weight", "between", "second.weight", "second.output"]
    sensitivity = kind(model, stages, points, draws=draws)  # type: ignore[arg-type]
    sensitivity.short = torch.bfloat16 if short else None
    close = close + 4e-3 if short else close  # 8 bits of each weight, in a sum of few
    exact: dict[str, Tensor] = {}
    with torch.no_grad(), entered(model, x):
        inputs = [x]
        with only([], model):
            for stage in stages:
                inputs.append(real(stage.run(inputs[-1])))
        sensitivity.add(inputs)
        for name, point in points.items():
            y: Any = x
            with only([point], model):
                for stage in stages:
                    y = stage.run(y)
            exact[name] = real(y) - inputs[-1]

    (w1, b1), (w2, _) = model.first.effective(), model.second.effective()
    with only([points["inside"]], model):
        by_hand = {"inside": (model.inside(x) - x) @ w1.t() @ w2.t()}
    by_hand["first.weight"] = (x @ (model.first.weight_hat - w1).t() + model.first.bias_hat - b1) @ w2.t()
    for name, error in by_hand.items():
        torch.testing.assert_close(error, exact[name], rtol=1e-3, atol=1e-5)
    assert sensitivity.signal == pytest.approx(float(inputs[-1].square().sum()), rel=1e-5)
    for name, rows in sensitivity.products.items():
        noise = sum(float(r.square().sum()) for r in rows)
        assert noise == pytest.approx(float(exact[name].square().sum()), rel=close), name


@pytest.mark.job
@pytest.mark.parametrize("name", ["as shipped", "paired", "outputs too", "log2", "uniform", "I-BERT", "all layer_wise"])
def test_every_kind_of_point(name: str) -> None:
    model, images = tiny(CONFIGS[name]), pixels(8, seed=3)
    exact = isolated(vitquant.profile(model, images, exact=True))
    found = vitquant.profile(model, images, draws=16)
    estimated = isolated(found)
    assert estimated.keys() == exact.keys()
    assert rank_correlation(list(estimated.values()), list(exact.values())) > 0.98
    for point, value in estimates(found).items():
        assert value == pytest.approx(exact[point], abs=3), point


@pytest.mark.job
@pytest.mark.parametrize(
    "changes",
    [
        {"num_classes": 0},
        {"pool": "avg"},
        {"pool": "avg", "class_token": False, "num_classes": 0},
        {"dist_token": True},
    ],
    ids=["headless", "average pool", "headless, average pool", "distilled"],
)
def test_other_architectures(changes: dict[str, Any]) -> None:
    model, images = tiny(**changes), pixels(8, seed=3)
    exact, found = isolated(vitquant.profile(model, images, exact=True)), vitquant.profile(model, images, draws=64)
    for point, value in isolated(found).items():
        assert value == pytest.approx(exact[point], abs=2), point
    if "pool" in changes:  # the mean of its tokens is rounded again
        assert "blocks.1.residual2" not in estimates(found)


@pytest.mark.job
def test_the_shipped_model(quantized: Any) -> None:
    exact = isolated(vitquant.profile(quantized.model, quantized.pixels, exact="all"))
    found = vitquant.profile(quantized.model, quantized.pixels, draws=16)
    estimated = isolated(found)
    assert rank_correlation(list(estimated.values()), list(exact.values())) > 0.98
    worst = [row.name for row in found.worst(5)]
    assert set(worst) <= set(sorted(exact, key=exact.__getitem__)[:8])


@pytest.fixture
def windows() -> Iterator[QuantModel]:
    known: list[dict[str, Any]] = [families._FAMILIES, catalogue._LAYERS, catalogue._KINDS]
    before = [dict(d) for d in known]
    register(GATED_WINDOWS)
    torch.manual_seed(0)
    vit = GatedWindows(Spec())
    with torch.no_grad():
        for parameter in vit.blocks.parameters():
            parameter.mul_(2)
    original = vitquant.adapt(vit.eval(), preprocessing=PREPROCESSING)
    config = merged(SHIPPABLE, {"mlp_gate": {"output": {"output_quant_enable": True}}})
    yield vitquant.quantize(original, config, calibration=pixels(16))
    for d, old in zip(known, before, strict=True):
        d.clear()
        d.update(old)


def test_a_second_family(windows: QuantModel) -> None:
    images = pixels(8, seed=3)
    exact, found = isolated(vitquant.profile(windows, images, exact=True)), vitquant.profile(windows, images, draws=16)
    assert {"blocks.0.mlp_product", "blocks.1.mlp_gate.output"} <= estimates(found).keys()
    assert "blocks.1.residual2" not in estimates(found)
    estimated = isolated(found)
    assert rank_correlation(list(estimated.values()), list(exact.values())) > 0.98


def test_the_worst_points_and_those_asked_for_are_exact() -> None:
    model, images = tiny(), pixels(6, seed=3)
    exact = isolated(vitquant.profile(model, images, exact=True))
    found = vitquant.profile(model, images)
    measured = isolated(found).keys() - estimates(found).keys()
    assert measured >= {row.name for row in found.worst(5)}
    assert len(measured) < 10
    for name in measured:
        assert isolated(found)[name] == pytest.approx(exact[name], abs=1e-3)

    asked = vitquant.profile(model, images, exact=["blocks.0.*", "head.weight"])
    named = {name for name in exact if name.startswith("blocks.0.")} | {"head.weight"}
    assert not named & estimates(asked).keys()
    for name in named:
        assert isolated(asked)[name] == pytest.approx(exact[name], abs=1e-3)
    assert {row.name for row in asked.worst(1)} == {row.name for row in found.worst(1)}
    assert estimates(vitquant.profile(model, images, exact="all")) == {}
    assert not estimates(vitquant.profile(model, images, exact="blocks.1.*")).keys() & {"blocks.1.norm1"}


def test_metrics_and_cumulative_errors_are_those_of_the_exact_profile(quantized: Any) -> None:
    exact = vitquant.profile(quantized.model, quantized.pixels, exact=True)
    found = vitquant.profile(quantized.model, quantized.pixels)
    assert (found.sqnr_db, found.images, found.outliers) == (exact.sqnr_db, exact.images, exact.outliers)
    for a, b in zip(found.points, exact.points, strict=True):
        assert a.sqnr_cumulative_db == b.sqnr_cumulative_db, a.name
        assert (a.metrics is None) == (b.metrics is None), a.name
        if a.metrics and b.metrics:
            assert replace(a.metrics, seconds=0) == replace(b.metrics, seconds=0), a.name


def test_the_same_in_every_run_and_for_every_batch_size() -> None:
    model, images = tiny(), pixels(6, seed=3)
    first = vitquant.profile(model, images)
    torch.manual_seed(5)
    state = torch.get_rng_state()
    assert vitquant.profile(model, images) == first
    assert torch.equal(torch.get_rng_state(), state)
    for batch_size in (1, 4, 6):
        again = estimates(vitquant.profile(model, images, batch_size=batch_size))
        assert again == pytest.approx(estimates(first), abs=0.01)
    assert estimates(vitquant.profile(model, images, draws=9)) != pytest.approx(estimates(first), abs=0.01)


def test_images_that_can_be_iterated_once() -> None:
    model, images = tiny(), pixels(6, seed=3)
    assert vitquant.profile(model, (image for image in images)) == vitquant.profile(model, list(images))


def test_memory_holds_the_tensors_of_one_stage() -> None:
    """Autograd keeps the tensors of the stage that it is in: as many bytes in four blocks as in one."""
    largest = {}
    for depth in (1, 4):
        model, images = tiny(depth=depth), pixels(2, seed=3)
        profiler = Profiler(model)
        held: list[int] = []
        saved: dict[int, int] = {}

        def pack(tensor: Tensor, held: list[int] = held, saved: dict[int, int] = saved) -> "Kept":
            return Kept(tensor, held, saved)

        with torch.no_grad(), torch.autograd.graph.saved_tensors_hooks(pack, lambda kept: kept.tensor):
            profiler.add(model.preprocessing.normalize(images))
        assert not saved
        largest[depth] = max(held)
    assert largest[4] == largest[1] > 0


class Kept:
    """A tensor that a backward pass needs, counted while it is held."""

    def __init__(self, tensor: Tensor, held: list[int], saved: dict[int, int]) -> None:
        self.tensor, self.saved = tensor.detach(), saved
        saved[id(self)] = tensor.nbytes
        held.append(sum(saved.values()))

    def __del__(self) -> None:
        del self.saved[id(self)]


@pytest.mark.parametrize("exact", ["nowhere", ["blocks.9.*"], ["blocks.0.*", "(x)"], 3, None, [3], {"a": 1}])
def test_what_matches_no_point_is_refused(exact: Any) -> None:
    with pytest.raises(ConfigError):
        vitquant.profile(tiny(depth=1), pixels(1), exact=exact)


def test_the_flag_reaches_the_results(tmp_path: Any) -> None:
    from vitquant.workflows import job

    torch.manual_seed(0)
    vit = vitquant.load_fashion()
    images = vitquant.load_fashion_images()[0][:24, None]
    options: dict[str, Any] = {"calibration": images[:16], "evaluation": images[16:], "profile_images": 2}
    result = job.run(vit, "vit_int8.yaml", out=tmp_path / "out", **options)
    names = estimates(result.profile).keys()
    assert 90 < len(names) <= 95
    told = json.loads((tmp_path / "out" / "summary.json").read_text())["points"]
    assert {name for name, point in told.items() if point["sqnr_isolated_estimated"]} == names
    assert {name for name, point in vitquant.load_run(tmp_path / "out").points.items() if point.estimated} == names
    everything = job.run(vit, "vit_int8.yaml", out=tmp_path / "all", exact=True, **options)
    assert not any(point.estimated for point in everything.record.points.values())
    assert math.isclose(everything.record.sqnr_db, result.record.sqnr_db)
    assert f"{len(names)} of 120 points is an estimate (~) in one run only" in str(
        result.record.compare(everything.record)
    )


def test_a_first_stage_without_points_to_estimate() -> None:
    """Nothing is left to be told of the pixels."""
    model = vitquant.load_fashion()
    images = vitquant.load_fashion_images()[0]
    qmodel = vitquant.quantize(model, {"overrides": {"blocks.1.mlp_fc2.weight": {}}}, calibration=images[:8])
    found = {point.name: point for point in vitquant.profile(qmodel, images[8:12]).points if point.active}
    assert list(found) == ["blocks.1.mlp_fc2.weight"]
