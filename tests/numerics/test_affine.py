"""The affine grid: by hand, by properties, and against torch's own fake quantization."""

import itertools
from functools import partial

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from vitquant.numerics.affine import (
    QuantParams,
    code_range,
    dequantize,
    fake_quantize,
    params_from_range,
    params_from_scale,
    power_of_two_ceil,
    quantize,
    scale_from_range,
)

BITS = range(2, 17)
tensor = partial(torch.tensor, dtype=torch.float32)
finite = st.floats(-1e6, 1e6, width=32)
ranges = st.tuples(finite, finite).map(sorted)


def grid(scale: float, zero_point: float = 0, qmin: int = -128, qmax: int = 127) -> QuantParams:
    return QuantParams(tensor(scale), tensor(zero_point), qmin, qmax)


@pytest.mark.parametrize(
    ("bits", "signed", "narrow", "expected"),
    [
        (8, True, False, (-128, 127)),
        (8, True, True, (-127, 127)),
        (8, False, False, (0, 255)),
        (8, False, True, (0, 255)),
        (2, True, False, (-2, 1)),
        (2, True, True, (-1, 1)),
        (16, True, False, (-32768, 32767)),
        (16, False, False, (0, 65535)),
    ],
)
def test_code_range(bits: int, signed: bool, narrow: bool, expected: tuple[int, int]) -> None:
    assert code_range(bits, signed, narrow) == expected


def test_ties_go_to_even_and_both_ends_are_clamped() -> None:
    x = tensor([-0.25, 0.25, 0.75, 1.25, -0.75, 1.2, -63.75, -64.0, -64.3, -1e9, 63.5, 63.74, 64.0, 1e9])
    codes = [0, 0, 2, 2, -2, 2, -128, -128, -128, -128, 127, 127, 127, 127]
    assert quantize(x, grid(0.5)).tolist() == codes
    assert fake_quantize(x, grid(0.5)).tolist() == [code / 2 for code in codes]


def test_ties_are_those_of_the_value_not_of_the_code() -> None:
    x = tensor([-1.5, -0.5, 0.5, 1.5, 2.5])  # rounded to even before the odd zero point is added
    assert quantize(x, grid(1.0, 3, 0, 7)).tolist() == [1, 3, 3, 5, 5]


def test_unsigned_by_hand() -> None:
    params = params_from_range(tensor(-1), tensor(3), bits=2, signed=False)
    assert params.scale.item() == pytest.approx(4 / 3)
    assert (params.zero_point.item(), params.qmin, params.qmax) == (1, 0, 3)  # round(0.75)
    assert quantize(tensor([-9, -1, -0.6, 0, 0.6, 0.7, 3, 9]), params).tolist() == [0, 0, 1, 1, 1, 2, 3, 3]
    assert dequantize(torch.arange(4), params).tolist() == pytest.approx([-4 / 3, 0, 4 / 3, 8 / 3])


def test_an_unsigned_range_is_widened_to_hold_zero() -> None:
    above = params_from_range(tensor(2), tensor(10), bits=8, signed=False)
    below = params_from_range(tensor(-10), tensor(-2), bits=8, signed=False)
    assert above.scale.item() == below.scale.item() == pytest.approx(10 / 255)
    assert (above.zero_point.item(), below.zero_point.item()) == (0, 255)


def test_a_signed_scale_comes_from_the_larger_end() -> None:
    low, high = tensor([-2, -1, 1, -4]), tensor([1, 3, 2, -3])
    params = params_from_range(low, high, bits=8, signed=True)
    assert params.scale.tolist() == pytest.approx([2 / 127, 3 / 127, 2 / 127, 4 / 127])
    assert params.zero_point.tolist() == [0, 0, 0, 0]
    assert not params.is_scalar


def test_a_channel_without_range_stays_exactly_zero() -> None:
    tiny = torch.finfo(torch.float32).tiny
    high = torch.tensor([0.0, 1e-45, 1e-40, tiny, 126 * tiny, 1.0])
    for bits, signed in itertools.product((2, 8, 16), (True, False)):
        params = params_from_range(torch.zeros(6), high, bits=bits, signed=signed)
        assert params.scale[:3].tolist() == [1, 1, 1]
        assert (params.scale >= tiny).all(), "no scale is a denormal"
        assert fake_quantize(high, params)[:3].tolist() == [0, 0, 0]
        assert fake_quantize(high, params)[5].item() == pytest.approx(1)
        assert fake_quantize(-high, params)[:3].abs().sum() == 0


def test_the_scale_of_the_smallest_normal_range() -> None:
    tiny = torch.finfo(torch.float32).tiny
    scale = scale_from_range(torch.zeros(2).double(), torch.tensor([126.9, 127.1]).double() * tiny, bits=8, signed=True)
    assert scale[0] == 0
    assert scale[1] > tiny


def test_every_code_comes_back() -> None:
    for bits, signed in itertools.product(BITS, (True, False)):
        params = params_from_range(tensor(-1.7), tensor(0.9), bits=bits, signed=signed)
        codes = torch.arange(params.qmin, params.qmax + 1)
        assert torch.equal(quantize(dequantize(codes, params), params), codes.float())


@given(ranges, st.sampled_from(BITS), st.booleans(), st.booleans(), st.booleans())
def test_zero_is_a_code(ends: list[float], bits: int, signed: bool, narrow: bool, power_of_two: bool) -> None:
    low, high = map(tensor, ends)
    params = params_from_range(low, high, bits=bits, signed=signed, narrow=narrow, power_of_two=power_of_two)
    code = quantize(tensor(0.0), params)
    assert params.qmin <= code.item() <= params.qmax
    assert code.item() == params.zero_point.item() == round(params.zero_point.item())
    assert dequantize(code, params).item() == 0


@given(ranges, st.sampled_from(BITS), st.booleans(), st.booleans(), st.booleans(), st.floats(0, 1, width=32))
def test_inside_the_range_the_error_is_half_a_step(
    ends: list[float], bits: int, signed: bool, narrow: bool, power_of_two: bool, place: float
) -> None:
    low, high = map(tensor, ends)
    params = params_from_range(low, high, bits=bits, signed=signed, narrow=narrow, power_of_two=power_of_two)
    x = (low + place * (high - low)).clamp(low, high)
    rounded = fake_quantize(x, params)
    flat = max(abs(low.item()), abs(high.item())) < 1e-30
    if not flat:
        assert (x.double() - rounded.double()).abs() <= params.scale.double() * (0.5 + 1e-3) + x.abs() * 1e-6
    assert torch.equal(fake_quantize(rounded, params), rounded), "what lies on the grid stays"


@given(st.lists(finite, min_size=2, max_size=20), ranges, st.sampled_from(BITS), st.booleans())
def test_order_is_kept(values: list[float], ends: list[float], bits: int, signed: bool) -> None:
    params = params_from_range(tensor(ends[0]), tensor(ends[1]), bits=bits, signed=signed)
    codes = quantize(tensor(sorted(values)), params)
    assert (codes.diff() >= 0).all()


def test_power_of_two_ceil_around_every_power() -> None:
    powers = torch.ldexp(torch.ones(200, dtype=torch.float64), torch.arange(-100, 100))
    assert torch.equal(power_of_two_ceil(powers), powers)
    assert torch.equal(power_of_two_ceil(torch.nextafter(powers, powers * 2)), powers * 2)
    assert torch.equal(power_of_two_ceil(torch.nextafter(powers, powers / 2)), powers)
    assert power_of_two_ceil(torch.zeros(1)).item() == 0


@given(ranges, st.sampled_from(BITS), st.booleans())
def test_a_power_of_two_scale_is_the_next_one(ends: list[float], bits: int, signed: bool) -> None:
    low, high = map(tensor, ends)
    free = scale_from_range(low, high, bits=bits, signed=signed).item()
    scale = scale_from_range(low, high, bits=bits, signed=signed, power_of_two=True).item()
    if free == 0:
        assert scale == 0
    else:
        assert float(scale).hex().startswith(("0x1.0000000000000p", "0x1p"))
        assert free <= scale < 2 * free


def away_from_ties(x: Tensor, scale: Tensor) -> Tensor:
    """Move what lies within 1 % of a tie: torch multiplies by the reciprocal of the scale, and may round otherwise."""
    steps = x.double() / scale
    fraction = steps - steps.floor()
    return torch.where((fraction - 0.5).abs() < 0.01, x + 0.1 * scale, x).float()


@pytest.mark.parametrize("signed", [True, False])
@pytest.mark.parametrize("bits", [2, 4, 8, 12, 16])
def test_per_tensor_equals_torch(bits: int, signed: bool) -> None:
    generator = torch.Generator().manual_seed(bits)
    params = params_from_range(tensor(-1.3), tensor(2.1), bits=bits, signed=signed)
    x = away_from_ties(torch.randn(20_000, generator=generator) * 2, params.scale)
    expected = torch.fake_quantize_per_tensor_affine(
        x, params.scale.item(), int(params.zero_point.item()), params.qmin, params.qmax
    )
    torch.testing.assert_close(fake_quantize(x, params), expected, rtol=1e-6, atol=0)


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("signed", [True, False])
def test_per_channel_equals_torch(axis: int, signed: bool) -> None:
    generator = torch.Generator().manual_seed(axis)
    shape = (7, 7, 7)
    low, high = -torch.rand(7, generator=generator), torch.rand(7, generator=generator) * 9
    params = params_from_range(low, high, bits=6, signed=signed)
    form = [7 if dim == axis else 1 for dim in range(3)]
    wide = QuantParams(params.scale.reshape(form), params.zero_point.reshape(form), params.qmin, params.qmax)
    x = away_from_ties(torch.randn(shape, generator=generator) * 4, wide.scale)
    expected = torch.fake_quantize_per_channel_affine(
        x, params.scale, params.zero_point.int(), axis, params.qmin, params.qmax
    )
    torch.testing.assert_close(fake_quantize(x, wide), expected, rtol=1e-6, atol=0)


def test_nothing_of_the_input_changes() -> None:
    x = torch.linspace(-1, 1, 11)
    before = x.clone()
    fake_quantize(x, grid(0.3))
    quantize(x, grid(0.3))
    assert torch.equal(x, before)


def test_params_move_and_keep_their_range() -> None:
    params = params_from_scale(torch.tensor([0.5, 0.0]), torch.tensor([-1.0, 0.0]), bits=4, signed=False)
    assert params.scale.tolist() == [0.5, 1]
    assert params.zero_point.tolist() == [2, 0]
    wide = params.to(dtype=torch.float64)
    assert (wide.scale.dtype, wide.qmin, wide.qmax) == (torch.float64, 0, 15)
