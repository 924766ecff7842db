"""Affine quantization: real numbers to integer codes and back.

The definitions are those of Jacob et al., 2018 (section 2.1): ``q = clamp(round(x / scale) + zero_point)`` with
rounding half to even, and ``x^ = scale * (q - zero_point)``.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor


@dataclass(frozen=True)
class QuantParams:
    """The grid a tensor is rounded to.

    ``scale`` (float32, positive) and ``zero_point`` (float32, whole numbers) broadcast against the tensor, so
    per-tensor, per-channel and per-head grids need no further care. Codes lie in ``[qmin, qmax]``.
    """

    scale: Tensor
    zero_point: Tensor
    qmin: int
    qmax: int

    @property
    def is_scalar(self) -> bool:
        """Whether one scale serves the whole tensor."""
        return self.scale.numel() == 1

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> QuantParams:
        """The same grid on another device or in another float type."""
        return replace(self, scale=self.scale.to(device, dtype), zero_point=self.zero_point.to(device, dtype))


def code_range(bits: int, signed: bool, narrow: bool = False) -> tuple[int, int]:
    """Smallest and largest code. ``narrow`` drops the most negative one, as weights do, so that codes are symmetric."""
    if not signed:
        return 0, 2**bits - 1
    high = 2 ** (bits - 1) - 1
    return (-high if narrow else -high - 1), high


def scale_from_range(low: Tensor, high: Tensor, *, bits: int, signed: bool, power_of_two: bool = False) -> Tensor:
    """The finest scale whose grid covers ``[low, high]``, float64; 0 where there is no range to speak of.

    Args:
        low: lower end of the range, one per channel; widened to contain zero.
        high: upper end, likewise.
        bits: width of a code, 2 to 16.
        signed: symmetric around zero, ``max|x| / (2^(bits-1) - 1)``; otherwise ``(high - low) / (2^bits - 1)``.
        power_of_two: round up to a power of two, so that requantization is a shift.
    """
    _, qmax = code_range(bits, signed)
    low, high = low.double().clamp(max=0), high.double().clamp(min=0)
    scale = torch.maximum(-low, high) / qmax if signed else (high - low) / qmax
    scale = torch.where(scale < torch.finfo(torch.float32).tiny, 0.0, scale)  # its float32 would be a denormal
    return power_of_two_ceil(scale) if power_of_two else scale


def params_from_scale(scale: Tensor, low: Tensor, *, bits: int, signed: bool, narrow: bool = False) -> QuantParams:
    """The grid with this ``scale`` whose range begins at ``low`` (symmetric grids do not ask where).

    A scale of 0, a channel without range, becomes 1: all of the channel rounds to zero exactly.
    ``narrow`` leaves out the most negative code, as weights do.
    """
    qmin, qmax = code_range(bits, signed, narrow)
    scale = torch.where(scale == 0, 1.0, scale).float()
    if signed:
        return QuantParams(scale, torch.zeros_like(scale), qmin, qmax)
    zero_point = (-low.double().clamp(max=0) / scale.double()).round().clamp(qmin, qmax)
    return QuantParams(scale, zero_point.float(), qmin, qmax)


def params_from_range(
    low: Tensor, high: Tensor, *, bits: int, signed: bool, narrow: bool = False, power_of_two: bool = False
) -> QuantParams:
    """The grid that covers ``[low, high]``: :func:`scale_from_range`, then :func:`params_from_scale`."""
    scale = scale_from_range(low, high, bits=bits, signed=signed, power_of_two=power_of_two)
    return params_from_scale(scale, low, bits=bits, signed=signed, narrow=narrow)


def power_of_two_ceil(x: Tensor) -> Tensor:
    """The smallest power of two that is not below ``x``; zero stays zero."""
    mantissa, exponent = torch.frexp(x)
    exponent = torch.where(mantissa == 0.5, exponent - 1, exponent)
    return torch.where(x > 0, torch.ldexp(torch.ones_like(x), exponent), 0.0)


def quantize(x: Tensor, params: QuantParams) -> Tensor:
    """Real numbers to codes. The codes come back in the float type of ``x``; they are whole numbers."""
    return (x / params.scale).round_().add_(params.zero_point).clamp_(params.qmin, params.qmax)


def dequantize(codes: Tensor, params: QuantParams) -> Tensor:
    """Codes (of any type) to the real numbers they stand for."""
    return (codes - params.zero_point) * params.scale


def fake_quantize(x: Tensor, params: QuantParams) -> Tensor:
    """Round ``x`` to the grid and return the real numbers: what integers will know of it."""
    return quantize(x, params).sub_(params.zero_point).mul_(params.scale)
