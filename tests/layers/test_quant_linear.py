"""Quantized weights: by hand, folded, and as integers would compute them."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from vitquant.config import QuantConfig
from vitquant.config.quant_config import BitType
from vitquant.errors import LifecycleError, ModelError, NumericsError
from vitquant.layers import Mode, QuantLinear, set_mode
from vitquant.numerics.affine import QuantParams, dequantize, params_from_range, quantize
from vitquant.numerics.quantized import integer_type
from vitquant.numerics.tokens import patchify


def config(mode: str = "channel_wise", bits: int = 8, signed: bool = True, **fields: object) -> QuantConfig:
    return QuantConfig(calibration_mode=mode, bit_type=BitType(bits=bits, signed=signed), **fields)  # type: ignore[arg-type]


def linear(weight: list[list[float]], bias: list[float] | None = None) -> nn.Linear:
    module = nn.Linear(len(weight[0]), len(weight), bias=bias is not None)
    module.weight.data = torch.tensor(weight)
    if bias is not None:
        module.bias.data = torch.tensor(bias)
    return module


def random_linear(inputs: int, outputs: int, bias: bool = True) -> nn.Linear:
    generator = torch.Generator().manual_seed(inputs)
    module = nn.Linear(inputs, outputs, bias=bias)
    for parameter in module.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator)
    return module


HAND = [[1.2, -2.0], [0.5, 0.2]]


def test_weights_are_quantized_at_construction() -> None:
    layer = QuantLinear(input_module=linear(HAND), out_config=None, weight_config=config(bits=4), layer_name="attn_qkv")
    assert layer.weight_codes.tolist() == [[4, -7], [7, 3]]  # 1.2 * 7 / 2 = 4.2; 0.2 * 7 / 0.5 = 2.8
    assert layer.weight_codes.dtype == torch.int8
    torch.testing.assert_close(layer.weight_hat, torch.tensor([[8 / 7, -2], [0.5, 1.5 / 7]]))
    assert (layer.weight.name, layer.output.name, layer.layer_name) == (
        "attn_qkv.weight", "attn_qkv.output", "attn_qkv"
    )  # fmt: skip
    set_mode(layer, Mode.QUANTIZED)
    torch.testing.assert_close(layer(torch.eye(2)).T, layer.weight_hat)


def test_per_tensor_weights_by_hand() -> None:
    layer = QuantLinear(linear(HAND), None, config("layer_wise", 4), "head")
    assert layer.weight_codes.tolist() == [[4, -7], [2, 1]]
    assert layer.weight.require_params().is_scalar


def test_head_wise_rows_share_a_scale() -> None:
    layer = QuantLinear(random_linear(8, 12), None, config("head_wise"), "attn_qkv", head_dim=4)
    scale = layer.weight.require_params().scale
    assert scale.shape == (12, 1)
    peaks = layer.float_weight.reshape(3, -1).abs().amax(1)
    torch.testing.assert_close(scale.flatten(), (peaks / 127).repeat_interleave(4))


def test_groups_by_hand() -> None:
    """The row's scale is 4 / (16 * 7); the groups' multipliers are 16 and 4, those of the second row 16 and 8."""
    weight = [[4.0, -1.2, 1.0, 0.4], [0.0, 0.7, -0.05, 0.35]]
    layer = QuantLinear(linear(weight), None, config(bits=4, weight_groups=2), "attn_qkv")
    params = layer.weight.require_params()
    assert (params.qmin, params.qmax) == (-112, 112)
    torch.testing.assert_close(params.scale, torch.tensor([[4 / 112], [0.7 / 112]]))
    assert layer.weight_codes.dtype == torch.int8
    assert layer.weight_codes.tolist() == [[112, -32, 28, 12], [0, 112, -8, 56]]
    torch.testing.assert_close(layer.weight_hat, layer.weight_codes * params.scale)
    set_mode(layer, Mode.QUANTIZED)
    torch.testing.assert_close(layer(torch.eye(4)).T, layer.weight_hat)


@pytest.mark.parametrize("observer", ["MinmaxObserver", "OmseObserver"])
@pytest.mark.parametrize("method", ["uniform", "power_of_two"])
@pytest.mark.parametrize("group", [1, 5, 16, 4096])
@pytest.mark.parametrize("bits", [2, 3, 4])
@pytest.mark.parametrize("mode", ["layer_wise", "head_wise", "channel_wise"])
def test_grouped_weights_are_products(mode: str, bits: int, group: int, method: str, observer: str) -> None:
    settings = config(mode, bits, weight_groups=group, quantization_method=method, observer_type=observer)
    plain = config(mode, bits, quantization_method=method, observer_type=observer)
    layer, without = (QuantLinear(random_linear(24, 12), None, c, "attn_qkv", head_dim=4) for c in (settings, plain))
    limit = 2 ** (bits - 1) - 1
    for start in range(0, 24, group):
        for row in layer.weight_codes[:, start : start + group].tolist():
            assert any(all(x % m == 0 and abs(x) <= limit * m for x in row) for m in range(1, 17))
    params = layer.weight.require_params()
    assert params.scale.shape == without.weight.require_params().scale.shape
    if method == "power_of_two":
        assert (params.scale.log2() % 1 == 0).all()
    if observer == "MinmaxObserver":  # others may clip more of two bits than half
        errors = [(q.weight_hat - q.float_weight).square().mean() for q in (layer, without)]
        assert errors[0] <= errors[1] * 1.001


def test_grouped_weights_without_range_are_zero() -> None:
    weight = [[0.0, 0.0, 0.0], [1e-44, 0.0, 0.0], [1.0, 1e-30, 0.0]]
    layer = QuantLinear(linear(weight), None, config(bits=4, weight_groups=2), "head")
    assert layer.weight_codes.tolist() == [[0, 0, 0], [0, 0, 0], [112, 0, 0]]
    assert torch.equal(layer.weight_hat[:2], torch.zeros(2, 3))
    assert layer.weight.no_range == 2


def test_revised_codes_must_fit_their_groups() -> None:
    layer = QuantLinear(linear([[4.0, -1.2, 1.0]]), None, config(bits=4, weight_groups=2), "head")
    layer.revise(None, codes=torch.tensor([[42, -48, 5]]))  # 6 * 7 and 6 * -8
    with pytest.raises(ModelError, match=r"^head: codes that do not fit their groups: not products of 4 bits"):
        layer.revise(None, codes=torch.tensor([[43, -48, 5]]))
    assert layer.weight_codes.tolist() == [[42, -48, 5]]


def test_folding_by_hand() -> None:
    layer = QuantLinear(linear(HAND, [0.3, -0.2]), None, config(bits=4), "attn_qkv")
    layer.fold(QuantParams(torch.tensor([0.5, 2.0]), torch.tensor([1.0, 3.0]), 0, 15))
    # W * s = [[0.6, -4], [0.25, 0.4]], scales 4/7 and 0.4/7
    assert layer.weight_codes.tolist() == [[1, -7], [4, 7]]
    torch.testing.assert_close(layer.weight_hat, torch.tensor([[4 / 7 / 0.5, -4 / 2], [1.6 / 7 / 0.5, 0.4 / 2]]))
    # The zero points give 1 - 21 = -20 and 4 + 21 = 25 units; the bias 0.525 and -3.5 of them:
    # round(0.525 + 20) - 20 = 1 and round(-3.5 - 25) + 25, a tie that goes to the even -28 = -3, or -29 = -4
    assert layer.bias_hat[0].item() == pytest.approx(4 / 7)
    assert layer.bias_hat[1].item() == pytest.approx(-0.2, abs=0.2 / 7 + 1e-6)


def test_revising_by_hand() -> None:
    layer = QuantLinear(linear(HAND, [0.3, -0.2]), None, config(bits=4), "attn_qkv")
    params = QuantParams(torch.tensor([0.5, 2.0]), torch.tensor([1.0, 3.0]), 0, 15)
    layer.fold(params)
    codes, unit = layer.weight_codes.clone(), torch.tensor([4 / 7, 0.4 / 7])
    layer.revise(params, bias=torch.tensor([1.2, -0.3], dtype=torch.float64))  # 2.1 and -5.25 units
    assert torch.equal(layer.weight_codes, codes)
    torch.testing.assert_close(layer.bias_hat, torch.tensor([2.0, -5.0]) * unit)
    layer.revise(params, codes=torch.tensor([[2, -7], [4, 6]]))
    assert layer.weight_codes.tolist() == [[2, -7], [4, 6]]
    assert layer.weight_codes.dtype == torch.int8
    torch.testing.assert_close(layer.weight_hat, torch.tensor([[8 / 7 / 0.5, -4 / 2], [1.6 / 7 / 0.5, 2.4 / 7 / 2]]))
    torch.testing.assert_close(layer.bias_hat, torch.tensor([2.0, -5.0]) * unit)
    form = layer.integer_form(params)
    assert form.bias.tolist() == [2 - (2 - 21), -5 - (4 + 18)]  # less what the zero points add
    scale = layer.weight.require_params().scale
    layer.revise(params, weight_params=replace(layer.weight.require_params(), scale=scale * 2))
    torch.testing.assert_close(layer.weight_hat, 2 * torch.tensor([[8 / 7 / 0.5, -2], [1.6 / 7 / 0.5, 1.2 / 7]]))
    layer.fold(params)
    assert torch.equal(layer.weight_codes, codes)
    assert torch.equal(layer.weight.require_params().scale, scale)
    assert layer.revised is False


def test_folding_starts_again_from_the_float_weights() -> None:
    layer, fresh = (QuantLinear(random_linear(16, 8), None, config(), "attn_proj") for _ in range(2))
    params = QuantParams(torch.tensor(0.03), torch.tensor(5.0), 0, 255)
    layer.fold(params)
    layer.revise(params, codes=torch.zeros_like(layer.weight_codes), bias=torch.ones(8))
    layer.fold(params)
    fresh.fold(params)
    assert torch.equal(layer.weight_codes, fresh.weight_codes)
    assert torch.equal(layer.bias_hat, fresh.bias_hat)


def test_what_does_not_fit_is_refused() -> None:
    layer = QuantLinear(linear(HAND), None, config(bits=4), "head")
    with pytest.raises(ModelError, match=r"^head: codes of another shape\. Got \[2, 1\], expected \[2, 2\]"):
        layer.revise(None, codes=torch.zeros(2, 1, dtype=torch.int8))
    with pytest.raises(ModelError, match=r"^head: bias of another shape\. Got \[3\], expected \[2\]"):
        layer.revise(None, bias=torch.zeros(3))
    with pytest.raises(ModelError, match=r"^head: codes out of range\. Got -8 to 0, expected -7 to 7"):
        layer.revise(None, codes=torch.tensor([[0, -8], [0, 0]]))
    with pytest.raises(LifecycleError, match=r"no statistics for head\.weight"):
        QuantLinear(linear(HAND), None, None, "head").revise(None, bias=torch.zeros(2))


def test_one_scale_for_the_input_leaves_the_codes() -> None:
    layer = QuantLinear(random_linear(16, 8), None, config(), "attn_proj")
    codes, hat = layer.weight_codes.clone(), layer.weight_hat.clone()
    layer.fold(QuantParams(torch.tensor(0.03), torch.tensor(5.0), 0, 255))
    assert torch.equal(layer.weight_codes, codes)
    assert torch.equal(layer.weight_hat, hat)
    assert layer.input_scale is None


def test_folding_nothing_undoes_a_fold() -> None:
    layer = QuantLinear(random_linear(16, 8), None, config(), "attn_proj")
    codes, bias = layer.weight_codes.clone(), layer.bias_hat.clone()
    layer.fold(QuantParams(torch.rand(16) + 0.1, torch.zeros(16), -128, 127))
    assert not torch.equal(layer.weight_codes, codes)
    layer.fold(None)
    assert torch.equal(layer.weight_codes, codes)
    assert torch.equal(layer.bias_hat, bias)
    assert torch.equal(bias, layer.float_bias)  # type: ignore[arg-type]


@pytest.mark.parametrize("gain", [False, True])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("weights", [config(), config("layer_wise"), config(signed=False), config(bits=16)])
@pytest.mark.parametrize("per_channel", [False, True])
@pytest.mark.parametrize("signed", [False, True])
def test_equals_integer_arithmetic(
    signed: bool, per_channel: bool, weights: QuantConfig, bias: bool, gain: bool
) -> None:
    """What leaves the layer is ``acc_scale * (codes . input codes + whole-number bias)``."""
    generator = torch.Generator().manual_seed(1)
    gamma = torch.randn(8, generator=generator) if gain else None
    layer = QuantLinear(random_linear(24, 8, bias), None, weights, "mlp_fc2", gain=gamma)
    x = torch.randn(50, 24, generator=generator) * (torch.rand(24, generator=generator) * 9 + 0.1)
    low, high = (x.amin(0), x.amax(0)) if per_channel else (x.amin(), x.amax())
    grid = params_from_range(low, high, bits=8, signed=signed)
    layer.fold(grid)
    set_mode(layer, Mode.QUANTIZED)

    q = quantize(x, grid).double()
    params = layer.weight.require_params()
    w = layer.weight_codes.double() - params.zero_point
    acc_scale = params.scale.double().reshape(-1) * (1 if per_channel else grid.scale.double())
    zero = w @ grid.zero_point.double().expand(24)
    bias_units = layer.bias_hat.double() / acc_scale - zero
    torch.testing.assert_close(bias_units, bias_units.round(), rtol=0, atol=1e-6 * float(bias_units.abs().max()) + 1e-4)
    exact_bias = torch.zeros(8) if layer.float_bias is None else layer.float_bias
    exact_bias = exact_bias if gamma is None else exact_bias * gamma
    assert ((layer.bias_hat - exact_bias).abs() <= 0.5 * acc_scale.expand(8) + 1e-6).all()

    integers = (q @ w.T + bias_units.round()) * acc_scale
    simulated = layer(dequantize(q.float(), grid))
    torch.testing.assert_close(simulated.double(), integers, rtol=1e-4, atol=1e-5 * float(integers.abs().max()))


def test_the_gain_is_folded_exactly() -> None:
    module, gamma = random_linear(8, 6), torch.tensor([1.0, -2, 0.5, 1e-3, 0, 3])
    layer = QuantLinear(module, None, config(), "attn_proj", gain=gamma)
    x = torch.randn(5, 8, generator=torch.Generator().manual_seed(0))
    assert torch.equal(layer(x), module(x) * gamma)
    assert layer.weight_codes.abs().amax(1).tolist() == [127, 127, 127, 127, 0, 127]  # each row on its own scale
    set_mode(layer, Mode.QUANTIZED)
    assert layer(x)[:, 4].abs().sum() == 0


@pytest.mark.parametrize("enabled", [True, False])
def test_the_output_is_quantized_only_where_the_config_says(enabled: bool) -> None:
    layer = QuantLinear(random_linear(8, 6), config("layer_wise", 3, output_quant_enable=enabled), None, "head")
    x = torch.randn(9, 8, generator=torch.Generator().manual_seed(0))
    set_mode(layer, Mode.CALIBRATE)
    y = layer(x)
    layer.output.finish()
    set_mode(layer, Mode.QUANTIZED)
    assert torch.equal(layer(x), y) is not enabled
    assert (layer(x).unique().numel() <= 8) is enabled


def test_without_a_weight_config_weights_stay_float() -> None:
    module = random_linear(8, 6)
    for weight_config in (None, config(output_quant_enable=False)):
        layer = QuantLinear(module, None, weight_config, "head")
        set_mode(layer, Mode.QUANTIZED)
        x = torch.randn(9, 8, generator=torch.Generator().manual_seed(0))
        assert torch.equal(layer(x), module(x))
        assert layer.weight.params is None


def test_a_convolution_over_patches() -> None:
    conv = nn.Conv2d(3, 5, (2, 4), stride=(2, 4))
    layer = QuantLinear(conv, None, config(bits=16), "patch_embed")
    images = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    expected = conv(images).flatten(2).transpose(1, 2)
    patches = patchify(images, (2, 4))
    torch.testing.assert_close(layer(patches), expected)
    set_mode(layer, Mode.QUANTIZED)
    torch.testing.assert_close(layer(patches), expected, rtol=1e-3, atol=1e-3)
    assert layer.weight_codes.dtype == torch.int16


def test_observers_choose_the_weights_range() -> None:
    weight = torch.full((1, 1000), 0.1)
    weight[0, 0] = 10.0
    layer = QuantLinear(linear(weight.tolist()), None, config(bits=3, observer_type="OmseObserver"), "head")
    assert layer.weight.require_params().scale.item() < 10 / 3


def test_a_row_of_zeros_stays_zero() -> None:
    layer = QuantLinear(linear([[0.0, 0.0], [1.0, 2.0]], [0.25, 0.25]), None, config(), "head")
    assert layer.weight.no_range == 1
    assert layer.weight_hat[0].tolist() == [0, 0]
    set_mode(layer, Mode.QUANTIZED)
    assert layer(torch.ones(1, 2)).tolist() == [[0.25, pytest.approx(3.25, rel=1e-2)]]


def test_weights_that_are_not_finite_are_named() -> None:
    with pytest.raises(NumericsError, match=r"^blocks\.2\.mlp_fc1\.weight: found 0 Inf and 1 NaN"):
        QuantLinear(linear([[float("nan"), 1.0]]), None, config(), "blocks.2.mlp_fc1")


@pytest.mark.parametrize(
    ("qmin", "qmax", "dtype"),
    [
        (-127, 127, torch.int8),
        (0, 255, torch.uint8),
        (0, 15, torch.int8),
        (-32767, 32767, torch.int16),
        (0, 4095, torch.int16),
        (0, 65535, torch.int32),
    ],
)
def test_the_narrowest_type(qmin: int, qmax: int, dtype: torch.dtype) -> None:
    assert integer_type(qmin, qmax) == dtype


def test_the_module_given_is_not_changed() -> None:
    module = random_linear(8, 6)
    before: dict[str, Tensor] = {name: value.clone() for name, value in module.state_dict().items()}
    layer = QuantLinear(module, None, config(), "head")
    layer.fold(QuantParams(torch.rand(8) + 0.1, torch.zeros(8), -128, 127))
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())
