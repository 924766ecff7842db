"""Integer LayerNorm: the same formulas in Python's integers, and the exact value in float64."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from vitquant.errors import NumericsError
from vitquant.numerics.affine import QuantParams, params_from_range
from vitquant.numerics.layernorm import FRACTION, RECIPROCAL, IntegerLayerNorm, integer_layernorm
from vitquant.numerics.limits import MAX_NORM_CHANNELS


def exact(codes: Tensor, gamma: Tensor, beta: Tensor, eps: float, input_scale: float) -> Tensor:
    """LayerNorm in float64, in real units."""
    x = codes.double()
    centred = x - x.mean(-1, keepdim=True)
    deviation = (centred.square().mean(-1, keepdim=True) + eps / input_scale**2).sqrt()
    return centred / deviation * gamma.double() + beta.double()


def exact_codes(y: Tensor, output: QuantParams) -> Tensor:
    codes = (y / output.scale.double()).round() + output.zero_point.double()
    return codes.clamp(output.qmin, output.qmax).long()


def in_python(constants: IntegerLayerNorm, token: list[int]) -> list[int]:
    """The documented formulas on Python's integers, one token; refuses whatever would not fit 64 bits."""

    def fits(value: int) -> int:
        assert -(2**63) <= value < 2**63
        return value

    channels = len(token)
    mean = fits(sum(token))
    centred = [fits(channels * code - mean) for code in token]
    power = fits((sum(c * c for c in centred) << constants.headroom) + constants.epsilon)
    k = min((62 - power.bit_length()) // 2, 30 - constants.headroom // 2)
    deviation = max(1, math.isqrt(fits(power << (2 * k)) // channels))
    reciprocal = 2**RECIPROCAL // deviation
    drop = RECIPROCAL - FRACTION - k - constants.headroom // 2
    codes = []
    zero_points = constants.zero_point.expand(channels).tolist()
    for c, gain, offset, shift, zero in zip(
        centred, constants.gain.tolist(), constants.offset.tolist(), constants.shift.tolist(), zero_points, strict=True
    ):
        normalised = fits(fits(c * reciprocal) + 2 ** (drop - 1)) >> drop
        code = (fits(fits(normalised * gain) + offset + 2 ** (shift - 1)) >> shift) + zero
        codes.append(min(max(code, constants.qmin), constants.qmax))
    return codes


def loud(tokens: int, channels: int, generator: torch.Generator) -> Tensor:
    return torch.randint(-32768, 32768, (tokens, channels), generator=generator)


def quiet(tokens: int, channels: int, generator: torch.Generator) -> Tensor:
    return torch.randint(-3, 4, (tokens, channels), generator=generator)


def outlier(tokens: int, channels: int, generator: torch.Generator) -> Tensor:
    codes = torch.randint(-200, 201, (tokens, channels), generator=generator)
    codes[:, 0] = 32767
    return codes


TOKENS = [loud, quiet, outlier]


def make(
    codes: Tensor, bits: int, signed: bool, per_channel: bool, generator: torch.Generator
) -> tuple[IntegerLayerNorm, Tensor]:
    """The integer layer and the codes that it should give; the output's grid is calibrated on the exact values."""
    channels = codes.shape[-1]
    gamma = torch.randn(channels, generator=generator)  # of both signs
    gamma[channels // 2] = 0
    beta = torch.randn(channels, generator=generator)
    eps, input_scale = 1e-6, 2.3e-3
    y = exact(codes, gamma, beta, eps, input_scale)
    low, high = (y.amin(0), y.amax(0)) if per_channel else (y.amin(), y.amax())
    output = params_from_range(low, high, bits=bits, signed=signed)
    return integer_layernorm(gamma, beta, eps, input_scale, output), exact_codes(y, output)


@pytest.mark.parametrize("tokens", TOKENS)
@pytest.mark.parametrize("per_channel", [False, True])
@pytest.mark.parametrize("signed", [True, False])
@pytest.mark.parametrize("bits", [8, 16])
def test_within_one_code(
    bits: int, signed: bool, per_channel: bool, tokens: Callable[[int, int, torch.Generator], Tensor]
) -> None:
    generator = torch.Generator().manual_seed(bits)
    for channels in (2, 3, 16, 97, 384, 768, MAX_NORM_CHANNELS):
        codes = tokens(64, channels, generator)
        layer, expected = make(codes, bits, signed, per_channel, generator)
        difference = (layer(codes) - expected).abs()
        assert difference.max() <= 1
        assert difference.float().mean() < (0.005 if bits == 8 else 0.05), "only near ties differ, and these are rare"


def test_every_small_number_of_channels() -> None:
    generator = torch.Generator().manual_seed(0)
    for channels in range(1, 65):
        codes = loud(8, channels, generator)
        layer, expected = make(codes, 8, True, True, generator)
        assert (layer(codes) - expected).abs().max() <= 1


@pytest.mark.parametrize("channels", [1, 2, 7, 96, MAX_NORM_CHANNELS])
def test_equals_pythons_integers(channels: int) -> None:
    generator = torch.Generator().manual_seed(channels)
    for signed in (True, False):
        codes = torch.cat([tokens(2, channels, generator) for tokens in TOKENS])
        layer, _ = make(codes, 16, signed, channels % 2 == 0, generator)
        assert layer(codes).tolist() == [in_python(layer, token) for token in codes.tolist()]


@pytest.mark.parametrize("channels", [2, 96, 1624, MAX_NORM_CHANNELS])
def test_extremes_do_not_overflow(channels: int) -> None:
    half = torch.arange(channels) % 2 == 0
    one = torch.arange(channels) == 1
    codes = torch.stack(
        [
            torch.where(half, -32768, 32767),
            torch.where(half, 32767, -32768),
            torch.where(one, 32767, -32768),
            torch.where(one, -32768, 32767),
            torch.where(half, 0, 65535),  # unsigned codes of the stream
            torch.where(one, 1, 0),
            torch.where(one, 65535, 65534),
        ]
    )
    gamma, beta = torch.ones(channels), torch.zeros(channels)
    y = exact(codes, gamma, beta, 1e-6, 1e-3)
    output = params_from_range(y.amin(), y.amax(), bits=16, signed=True)
    layer = integer_layernorm(gamma, beta, 1e-6, 1e-3, output)
    assert layer(codes).tolist() == [in_python(layer, token) for token in codes.tolist()]
    assert (layer(codes) - exact_codes(y, output)).abs().max() <= 1


def test_a_constant_token_gives_beta() -> None:
    beta = torch.tensor([-1.0, 0.0, 0.5, 2.0])
    output = QuantParams(torch.tensor(0.25), torch.tensor(3.0), 0, 255)
    for eps in (1e-6, 1e-20, 0.0):
        layer = integer_layernorm(torch.ones(4), beta, eps, 0.01, output)
        for code in (-32768, -1, 0, 32767):
            assert layer(torch.full((1, 4), code)).tolist() == [[0, 3, 5, 11]]
            assert in_python(layer, [code] * 4) == [0, 3, 5, 11], "no shift becomes negative"


def test_by_hand() -> None:
    output = QuantParams(torch.tensor([0.5, 0.5, 1.0, 0.25]), torch.tensor([0.0, 0, 10, 0]), -128, 127)
    gamma, beta = torch.tensor([1.0, -1, 2, 0]), torch.tensor([0.0, 0, 0, 1.5])
    layer = integer_layernorm(gamma, beta, 0.0, 1.0, output)
    # mean 10, deviation sqrt((9 + 1 + 1 + 9) / 4) = 2.236: normalised -1.342, -0.447, 0.447, 1.342
    assert layer(torch.tensor([7, 9, 11, 13])).tolist() == [-3, 1, 11, 6]


def test_epsilon_counts_on_a_quiet_stream() -> None:
    codes = torch.tensor([[-1, 0, 0, 1]])
    output = QuantParams(torch.tensor(1 / 64), torch.tensor(0.0), -128, 127)
    fine, coarse = (integer_layernorm(torch.ones(4), torch.zeros(4), 1e-2, scale, output) for scale in (0.1, 10.0))
    # variance 1/2 in codes; epsilon is 1 at the fine scale, and 1e-4 at the coarse one
    assert fine(codes).tolist() == [[-52, 0, 0, 52]]  # 64 / sqrt(1.5)
    assert coarse(codes).tolist() == [[-91, 0, 0, 91]]  # 64 / sqrt(0.5001), 90.5 without its fraction's tie


def test_offsets_and_gains_beyond_all_codes_saturate() -> None:
    output = QuantParams(torch.tensor(1e-4), torch.tensor(0.0), -32768, 32767)
    codes = torch.tensor([[5, -5, 9, -9]])
    layer = integer_layernorm(torch.full((4,), 1e-5), torch.tensor([3e3, -3e3, 1e20, -1e20]), 1e-6, 0.01, output)
    assert layer(codes).tolist() == [[32767, -32768, 32767, -32768]]
    narrow = QuantParams(torch.tensor(1e-30), torch.tensor(0.0), -128, 127)
    layer = integer_layernorm(torch.ones(4), torch.zeros(4), 1e-6, 0.01, narrow)
    assert layer(codes).tolist() == [[127, -128, 127, -128]]


def test_too_many_channels_are_refused() -> None:
    ones = torch.ones(MAX_NORM_CHANNELS + 1)
    with pytest.raises(NumericsError, match=r"would overflow\. Got 1626 channels, expected at most 1625"):
        integer_layernorm(ones, ones, 1e-6, 0.1, QuantParams(torch.tensor(0.1), torch.tensor(0.0), -128, 127))


def test_an_input_too_fine_for_its_epsilon_is_refused() -> None:
    ones, output = torch.ones(16), QuantParams(torch.tensor(0.1), torch.tensor(0.0), -128, 127)
    with pytest.raises(NumericsError, match=r"would overflow\. Got an input scale of 1e-12"):
        integer_layernorm(ones, ones, 1e-6, 1e-12, output)
    layer = integer_layernorm(ones, 0 * ones, 1e-6, 3.1e-11, output)  # just coarse enough
    codes = torch.full((1, 16), 32767)
    codes[:, ::2] = -32768
    assert layer(codes).tolist() == [in_python(layer, codes[0].tolist())]
