"""GPTQ: against the paper's column loop, between nearest and the optimum, and in all forms of the model."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import Tensor, nn

import vitquant
from support.integer_models import ARCHITECTURES, CONFIGS, SHIPPABLE, disagreements, merged, pixels, quantized
from vitquant.artifact.storage import state
from vitquant.calibration.repair import LayerInputs, gptq, make_steps, repair_images
from vitquant.calibration.repair.gptq import FACTORS, Gptq, column_multipliers, factorize, moments, round_columns, solve
from vitquant.config import GptqSettings, QuantConfig
from vitquant.config.quant_config import BitType
from vitquant.errors import ConfigError
from vitquant.layers import Mode, QuantLinear, set_mode
from vitquant.numerics.affine import QuantParams, dequantize, quantize

pytestmark = pytest.mark.filterwarnings("ignore::vitquant.calibration.repair.run.RepairWarning")

Array = npt.NDArray[np.float64]

STEPS = ["gptq"]


SPREAD = torch.linspace(-1, 1, 18).reshape(3, 6)


def params_of(scale: object, qmin: int, qmax: int, zero: float = 0.0) -> QuantParams:
    scale = torch.as_tensor(scale, dtype=torch.float32)
    return QuantParams(scale, torch.full_like(scale, zero), qmin, qmax)


def random_moments(width: int, generator: torch.Generator, rows: int = 40) -> Tensor:
    """Second moments of correlated inputs, float64."""
    mixed = torch.randn(rows, width, generator=generator) @ torch.randn(width, width, generator=generator)
    return mixed.double().t() @ mixed.double() / rows


def linear(weight: Tensor, config: QuantConfig, head_dim: int | None = None) -> QuantLinear:
    module = nn.Linear(weight.shape[1], len(weight)).to(weight.dtype)
    module.weight.data = weight.clone()
    return QuantLinear(module, None, config, "fc", head_dim=head_dim)


def config(bits: int = 4, mode: Any = "channel_wise", **changes: Any) -> QuantConfig:
    signed = changes.pop("signed", True)
    return QuantConfig(calibration_mode=mode, bit_type=BitType(bits=bits, signed=signed), **changes)


def output_error(weight: Tensor, rounded: Tensor, second: Tensor) -> Tensor:
    left = weight.double() - rounded.double()
    return (left @ second * left).sum(1)


def test_by_hand() -> None:
    """Two inputs that are always equal: what is missing in the first weight goes into the second."""
    weight = torch.tensor([[0.4, 0.4], [0.4, -0.3]], dtype=torch.float64)
    factor, _ = factorize(torch.ones(2, 2, dtype=torch.float64), damping=1e-6)
    codes, errors = round_columns(weight, factor, params_of(1.0, -1, 1))
    assert codes.tolist() == [[0, 1], [0, 0]]
    torch.testing.assert_close(errors, torch.tensor([0.04, 0.01], dtype=torch.float64), rtol=1e-3, atol=1e-4)


def column_loop(weight: Array, second: Array, scale: Array, zero: float, qmin: int, qmax: int) -> Array:
    """The method as the paper derives it: after each column, the inverse of what is left is computed afresh."""
    weight, codes = weight.copy(), np.zeros_like(weight)
    for column in range(weight.shape[1]):
        inverse = np.linalg.inv(second[column:, column:])
        codes[:, column] = np.clip(np.round(weight[:, column] / scale) + zero, qmin, qmax)
        error = (weight[:, column] - (codes[:, column] - zero) * scale) / inverse[0, 0]
        weight[:, column:] -= np.outer(error, inverse[0])
    return codes


@pytest.mark.parametrize("width", [1, 2, 3, 7, 12])
@pytest.mark.parametrize(("qmin", "qmax", "zero"), [(-7, 7, 0.0), (-1, 1, 0.0), (0, 15, 6.0), (-127, 127, 0.0)])
def test_it_is_the_column_loop(width: int, qmin: int, qmax: int, zero: float) -> None:
    generator = torch.Generator().manual_seed(width)
    for _ in range(5):
        weight = torch.randn(6, width, generator=generator, dtype=torch.float64)
        factor, damped = factorize(random_moments(width, generator), damping=0.01)
        scale = weight.abs().amax(1, keepdim=True) / qmax
        codes, errors = round_columns(weight, factor, params := params_of(scale, qmin, qmax, zero))
        expected = column_loop(weight.numpy(), damped.numpy(), params.scale.double()[:, 0].numpy(), zero, qmin, qmax)
        assert np.array_equal(codes.numpy(), expected)
        torch.testing.assert_close(errors, output_error(weight, dequantize(codes, params), damped))


def test_the_factor_is_that_of_the_inverse() -> None:
    second = random_moments(9, torch.Generator().manual_seed(0))
    factor, damped = factorize(second, damping=0.01)
    torch.testing.assert_close(damped, second + 0.01 * second.diagonal().mean() * torch.eye(9, dtype=torch.float64))
    torch.testing.assert_close(factor.t() @ factor, torch.linalg.inv(damped))
    assert torch.equal(factor, factor.triu())


@pytest.mark.parametrize("method", ["uniform", "power_of_two"])
@pytest.mark.parametrize("bits", [2, 3])
def test_between_the_optimum_and_rounding_to_nearest(bits: int, method: str) -> None:
    generator = torch.Generator().manual_seed(bits)
    gained = 0
    for _ in range(20):
        weight, second = torch.randn(4, 3, generator=generator), random_moments(3, generator)
        layer = linear(weight, config(bits, quantization_method=method))
        params = layer.weight.require_params()
        found = solve(layer, weight.double(), second, damping=0.01)
        _, damped = factorize(second, damping=0.01)
        error = output_error(weight, dequantize(found.codes, found.params), damped)
        torch.testing.assert_close(found.errors, error)
        nearest = output_error(weight, dequantize(quantize(weight.double(), params), params), damped)
        assert (error <= nearest * (1 + 1e-9)).all()
        gained += int((error < 0.9 * nearest).sum())
        levels = range(params.qmin, params.qmax + 1)
        every = torch.tensor(list(itertools.product(levels, repeat=3)), dtype=torch.float64)[:, None, :]
        left = weight.double() - every * found.params.scale
        optimum = torch.einsum("kri,ij,krj->kr", left, damped, left).amin(0)
        assert (error >= optimum * (1 - 1e-9) - 1e-12).all()
    assert gained > 10


def test_multiples_by_hand() -> None:
    """Two inputs that are always equal, with steps of 3 and 1: 4 rounds to 3, and the second weight takes the rest."""
    weight = torch.tensor([[4.0, 0.2]], dtype=torch.float64)
    factor, _ = factorize(torch.ones(2, 2, dtype=torch.float64), damping=1e-6)
    steps = torch.tensor([[3.0, 1.0]], dtype=torch.float64)
    codes, errors = round_columns(weight, factor, params_of([[1.0]], -112, 112), steps)
    assert codes.tolist() == [[3, 1]]
    assert float(errors) == pytest.approx(0.04, rel=1e-3)


@pytest.mark.parametrize(("bits", "group"), [(2, 2), (3, 2), (4, 3), (4, 1)])
def test_groups_follow_their_columns(bits: int, group: int) -> None:
    """The columns are rounded in another order; groups are neighbours in the layer's own. Never worse than nearest."""
    generator = torch.Generator().manual_seed(bits)
    gained = 0
    for _ in range(20):
        weight, second = torch.randn(4, 5, generator=generator), random_moments(5, generator)
        layer = linear(weight, config(bits, weight_groups=group))
        found = solve(layer, weight.double(), second, damping=0.01)
        assert not (second.diagonal().diff() <= 0).all(), "the order differs"
        layer.require_groups(found.codes.to(torch.int8))
        _, damped = factorize(second, damping=0.01)
        error = output_error(weight, found.codes * found.params.scale, damped)
        torch.testing.assert_close(found.errors, error)
        nearest = output_error(weight, layer.weight_codes * layer.weight.require_params().scale.double(), damped)
        assert (error <= nearest * (1 + 1e-9)).all()
        gained += int((error < 0.9 * nearest).sum())
    assert gained > 10


def test_multipliers_count_errors_as_gptq_does() -> None:
    """Of the multipliers for one row and group, all tried, the least error of rounding to nearest in that measure."""
    generator = torch.Generator().manual_seed(0)
    weight, second = torch.randn(1, 6, generator=generator).double(), random_moments(6, generator)
    layer = linear(weight.float(), config(4, weight_groups=6))
    order = second.diagonal().argsort(descending=True, stable=True)
    factor, _ = factorize(second[order][:, order], damping=0.01)
    scale = layer.weight.require_params().scale.double()
    chosen = column_multipliers(layer, weight, scale, factor, order)
    left = []
    for multiplier in range(8, 17):
        step = scale * multiplier
        error = weight[:, order] - (weight[:, order] / step).round().clamp(-7, 7) * step
        left.append(float((error / factor.diagonal()).square().sum()))
    assert chosen.unique().tolist() == [8 + left.index(min(left))]


def test_moments_are_those_around_the_mean() -> None:
    torch.manual_seed(0)
    batches = [5 + torch.randn(count, 7, 4) @ torch.randn(4, 4) for count in (3, 1, 2)]
    scale = torch.tensor([0.5, 1.0, 2.0, 3.0], dtype=torch.float64)
    rows = torch.cat([batch.reshape(-1, 4) for batch in batches]).double() / scale
    found = moments(batches, scale, width=4)
    torch.testing.assert_close(found.mean, rows.mean(0), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(found.second, rows.t().cov(correction=0), rtol=1e-5, atol=1e-5)
    unscaled = moments(batches, None, width=4)
    torch.testing.assert_close(unscaled.mean, found.mean * scale, rtol=1e-6, atol=1e-6)


def run(layer: QuantLinear, x: Tensor) -> None:
    set_mode(layer, Mode.QUANTIZED)
    repair_images(layer, make_steps(STEPS), x)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_no_channel_is_wrong_on_average(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    layer, x = linear(torch.randn(5, 8, dtype=dtype), config()), torch.randn(20, 3, 8, dtype=dtype) + 2
    weight, bias = layer.effective()
    before = weight @ x.mean((0, 1)) + bias
    run(layer, x)
    assert layer(x).dtype == layer.weight_hat.dtype == dtype
    torch.testing.assert_close(layer(x).mean((0, 1)), before, rtol=1e-4, atol=1e-4)


def test_an_input_that_does_not_vary_is_rounded_to_nearest() -> None:
    torch.manual_seed(0)
    x = torch.randn(30, 6)
    x[:, 2], x[:, 4] = 3.0, 0.0
    layer = linear(torch.randn(5, 6), config(quantization_method="power_of_two"))
    nearest = layer.weight_codes
    run(layer, x)
    assert torch.equal(layer.weight_codes[:, [2, 4]], nearest[:, [2, 4]])
    assert not torch.equal(layer.weight_codes, nearest)


@pytest.mark.parametrize("x", [torch.zeros(4, 6), torch.ones(1, 6), SPREAD * 1e-30, SPREAD * 1e30])
def test_what_says_nothing_changes_nothing(x: Tensor) -> None:
    torch.manual_seed(0)
    layer = linear(torch.randn(5, 6), config())
    nearest = layer.weight_codes
    run(layer, x)
    assert torch.equal(layer.weight_codes, nearest)


@pytest.mark.parametrize("large", [1e-3, 1.0, 1e6])
def test_fewer_samples_than_inputs(large: float) -> None:
    torch.manual_seed(0)
    layer, x = linear(torch.randn(5, 60), config()), torch.randn(3, 60) * large
    exact = nn.functional.linear(x, layer.float_weight, layer.float_bias)
    set_mode(layer, Mode.QUANTIZED)
    error = (layer(x) - exact).abs().mean()
    run(layer, x)
    assert (layer(x) - exact).abs().mean() < 0.3 * error


def test_damping_grows_until_the_moments_are_positive_definite() -> None:
    second = torch.diag(torch.tensor([1.0, 1.0, -0.02], dtype=torch.float64))  # what rounding may leave of 0
    factor, damped = factorize(second, damping=0.01)
    assert float(damped[0, 0] - 1) == pytest.approx(0.1 * 1.98 / 3)
    torch.testing.assert_close(factor.t() @ factor, torch.linalg.inv(damped))


@pytest.mark.job
@pytest.mark.parametrize("signed", [True, False])
@pytest.mark.parametrize("mode", ["layer_wise", "head_wise", "channel_wise"])
@pytest.mark.parametrize(("bits", "group"), [(2, 0), (4, 0), (8, 0), (12, 0), (2, 5), (4, 5)])
def test_codes_and_scales_stay_what_the_configuration_asks_for(bits: int, group: int, mode: str, signed: bool) -> None:
    torch.manual_seed(bits)
    group = group if signed else 0
    layer = linear(torch.randn(6, 16), config(bits, mode, signed=signed, weight_groups=group), head_dim=3)
    before, codes = layer.weight.require_params(), layer.weight_codes
    run(layer, torch.randn(50, 16) @ torch.randn(16, 16))
    after = layer.weight.require_params()
    assert layer.weight_codes.dtype == codes.dtype
    assert before.qmin <= int(layer.weight_codes.min()) <= int(layer.weight_codes.max()) <= before.qmax
    assert (after.qmin, after.qmax) == (before.qmin, before.qmax)
    assert after.scale.shape == before.scale.shape
    assert torch.equal(after.zero_point, before.zero_point)
    allowed = before.scale.reshape(-1, 1) * torch.tensor(FACTORS)
    assert (after.scale.reshape(-1, 1) == allowed).any(1).all()
    if mode == "head_wise":
        assert all(len(set(rows.flatten().tolist())) == 1 for rows in after.scale.split(3))
    if bits == 2 and signed:
        assert not torch.equal(after.scale, before.scale)
    layer.require_groups(layer.weight_codes)


def test_power_of_two_scales_stay() -> None:
    torch.manual_seed(0)
    layer = linear(torch.randn(6, 16), config(quantization_method="power_of_two"))
    before = layer.weight.require_params().scale
    run(layer, torch.randn(50, 16))
    assert torch.equal(layer.weight.require_params().scale, before)


def test_a_layer_whose_sums_would_not_fit_stays_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    layer = linear(torch.randn(6, 16), config())
    before = layer.weight.require_params(), layer.weight_codes, layer.bias_hat, layer.revised
    answers = iter([True, False])
    monkeypatch.setattr(gptq, "fits", lambda _: next(answers))
    run(layer, torch.randn(50, 16))
    assert layer.weight.params is before[0]
    assert layer.weight_codes is before[1]
    assert layer.bias_hat is before[2]
    assert layer.revised == before[3]


@pytest.mark.job
@pytest.mark.parametrize("spec", [{}, {"layer_scale": True}], ids=str)
def test_the_output_is_better(spec: dict[str, Any]) -> None:
    model = quantized({"defaults": {"weight": {"bit_type": {"bits": 4}}}}, **spec)
    (record,) = vitquant.repair(model, pixels(64, seed=1), STEPS)
    assert set(record.changed) == {layer.layer_name for layer in model.linears()}
    assert record.settings == {"images": 64, "damping": 0.01}
    assert record.sqnr_after_db > record.sqnr_before_db + 2


@pytest.mark.job
@pytest.mark.parametrize("changes", CONFIGS.values(), ids=CONFIGS.keys())
@torch.no_grad()
def test_integers_are_those_of_the_simulation(changes: dict[str, Any]) -> None:
    model = quantized(changes)
    vitquant.repair(model, pixels(8), STEPS)
    assert disagreements(model, vitquant.compile(model), pixels(5, seed=1)) == {}


@pytest.mark.job
@pytest.mark.parametrize("spec", ARCHITECTURES, ids=str)
def test_every_architecture_still_agrees(spec: dict[str, Any]) -> None:
    model = quantized(CONFIGS["4 bits"], **spec)
    vitquant.repair(model, pixels(8), [*STEPS, "bias_correction"])
    assert disagreements(model, vitquant.compile(model), pixels(5, seed=2)) == {}


def test_one_image_and_one_token_per_image() -> None:
    model = quantized(CONFIGS["4 bits"])  # the head reads the class token alone
    vitquant.repair(model, pixels(1), STEPS)
    assert torch.isfinite(model(pixels(3))).all()
    assert disagreements(model, vitquant.compile(model), pixels(3, seed=2)) == {}


def test_float_layers_stay_as_they_are() -> None:
    floats = {"mlp_fc1": {"weight": {"output_quant_enable": False}, "output": {"output_quant_enable": False}}}
    (record,) = vitquant.repair(quantized(floats), pixels(8), STEPS)
    assert [name for name in record.changed if "fc1" in name] == []
    assert "blocks.0.mlp_fc2" in record.changed


def test_the_saved_model_is_the_rounded_one(tmp_path: Path) -> None:
    model, images = quantized(merged(SHIPPABLE, {"repair": STEPS})), pixels(4, seed=1)
    vitquant.save(model, tmp_path / "a")
    loaded = vitquant.load(tmp_path / "a")
    assert torch.equal(loaded(images), model(images))
    assert not torch.equal(quantized()(images), model(images))
    assert loaded.config.repair == model.config.repair == (GptqSettings(),)


def test_another_calibration_starts_from_the_float_weights() -> None:
    model = quantized()
    plain = {name: tensor.clone() for name, tensor in state(model)}
    vitquant.repair(model, pixels(16), STEPS)
    assert not all(torch.equal(tensor, plain[name]) for name, tensor in state(model))
    vitquant.calibrate(model, pixels(16))
    assert all(torch.equal(tensor, plain[name]) for name, tensor in state(model))


def test_an_interruption_leaves_the_model_as_it_was() -> None:
    class Interrupted(Gptq):
        def repair_layer(self, layer: LayerInputs) -> None:
            super().repair_layer(layer)
            if layer.linear.layer_name == "blocks.1.mlp_fc1":
                raise KeyboardInterrupt

    model = quantized()
    before = {name: tensor.clone() for name, tensor in state(model)}
    with pytest.raises(KeyboardInterrupt):
        vitquant.repair(model, pixels(4), [Interrupted(GptqSettings())])
    assert all(torch.equal(tensor, before[name]) for name, tensor in state(model))


def test_more_damping_is_closer_to_nearest() -> None:
    torch.manual_seed(0)
    weight, second = torch.randn(8, 20), random_moments(20, torch.Generator().manual_seed(0))
    layer = linear(weight, config(quantization_method="power_of_two"))
    moved = [
        float((dequantize(found.codes, found.params) - weight).square().mean())
        for found in (solve(layer, weight.double(), second, damping) for damping in (0.001, 1.0))
    ]
    assert moved[1] < moved[0]


@pytest.mark.parametrize("damping", [0, -0.01, 1.5, float("nan"), "much"])
def test_damping_has_a_range(damping: object) -> None:
    with pytest.raises(ConfigError, match=r"^step gptq\.damping: value not allowed"):
        make_steps([{"gptq": {"damping": damping}}])
