"""The normalisation layer: integers where its input is on a grid, float elsewhere."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vitquant.config import QuantConfig
from vitquant.config.quant_config import BitType
from vitquant.errors import NumericsError
from vitquant.layers import Mode, QuantNorm
from vitquant.numerics.affine import QuantParams, fake_quantize, params_from_range, quantize
from vitquant.numerics.quantized import on

CHANNELS = 24


def config(mode: str, bits: int = 8, signed: bool = True) -> QuantConfig:
    return QuantConfig(calibration_mode=mode, bit_type=BitType(bits=bits, signed=signed))  # type: ignore[arg-type]


def stream() -> tuple[Tensor, QuantParams]:
    """Tokens on a 16-bit grid."""
    x = torch.randn(5, 7, CHANNELS, generator=torch.Generator().manual_seed(0)) * 3
    grid = params_from_range(x.min(), x.max(), bits=16, signed=True)
    return fake_quantize(x, grid), grid


def make(quant_config: QuantConfig | None) -> QuantNorm:
    norm = nn.LayerNorm(CHANNELS, eps=1e-6)
    generator = torch.Generator().manual_seed(1)
    norm.weight.data = torch.randn(CHANNELS, generator=generator)
    norm.bias.data = torch.randn(CHANNELS, generator=generator)
    return QuantNorm(norm, quant_config, "blocks.0.norm1", head_dim=8).requires_grad_(False)


def calibrated(quant_config: QuantConfig, x: Tensor) -> QuantNorm:
    layer = make(quant_config)
    layer.set_mode(Mode.CALIBRATE)
    layer(x)
    layer.finish()
    layer.set_mode(Mode.QUANTIZED)
    return layer


def float_norm(layer: QuantNorm, x: Tensor) -> Tensor:
    return F.layer_norm(x, (CHANNELS,), layer.norm.weight, layer.norm.bias, layer.norm.eps)


def test_without_a_config_it_is_the_float_norm() -> None:
    x, grid = stream()
    layer = make(None)
    for mode in Mode:
        layer.set_mode(mode)
        assert torch.equal(layer(on(x, grid)), layer.norm(x))


@pytest.mark.parametrize("signed", [True, False])
@pytest.mark.parametrize("mode", ["layer_wise", "channel_wise", "head_wise"])
def test_a_float_input_is_normalised_and_rounded(mode: str, signed: bool) -> None:
    x, _ = stream()
    layer = calibrated(config(mode, signed=signed), x)
    assert torch.equal(layer(x), fake_quantize(float_norm(layer, x), layer.require_params()))


@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("signed", [True, False])
@pytest.mark.parametrize("mode", ["layer_wise", "channel_wise", "head_wise"])
def test_integers_are_within_one_code_of_the_float_norm(mode: str, signed: bool, bits: int) -> None:
    x, grid = stream()
    layer = calibrated(config(mode, bits, signed), x)
    params = layer.require_params()
    exact = quantize(float_norm(layer, x), params)
    difference = (quantize(layer(on(x, grid)), params) - exact).abs()
    assert difference.max() <= 1
    assert difference.mean() < 0.05
    assert torch.equal(fake_quantize(layer(on(x, grid)), params), layer(on(x, grid))), "the output lies on the grid"


def test_the_zero_point_of_the_stream_cancels() -> None:
    x, grid = stream()
    layer = calibrated(config("channel_wise"), x)
    shifted = QuantParams(grid.scale, torch.tensor(32768.0), 0, 65535)
    assert torch.equal(layer(on(x, grid)), layer(on(x, shifted)))


def test_a_grid_per_channel_at_the_input_keeps_the_norm_float() -> None:
    x, grid = stream()
    layer = calibrated(config("layer_wise"), x)
    wide = QuantParams(grid.scale.expand(CHANNELS), grid.zero_point.expand(CHANNELS), grid.qmin, grid.qmax)
    assert torch.equal(layer(on(x, wide)), layer(x))


def test_an_overflow_is_named() -> None:
    x, grid = stream()
    layer = calibrated(config("layer_wise"), x)
    fine = QuantParams(torch.tensor(1e-14), grid.zero_point, grid.qmin, grid.qmax)
    with pytest.raises(NumericsError, match=r"^blocks\.0\.norm1: integer LayerNorm would overflow"):
        layer(on(x * 1e-14, fine))
