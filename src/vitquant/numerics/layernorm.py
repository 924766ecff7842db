"""LayerNorm on integers.

The mean and the variance of the codes are exact integer sums, the square root is an integer's, each token costs one
division, and one requantization a channel carries gamma, beta and the scale of the output (after I-BERT, Kim et al.,
2021, section 3.5, and I-ViT, Li and Gu, 2023, section 3.3; the fixed-point layout here is our own).
The scale of the input cancels, but for the epsilon under the root.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from vitquant.errors import NumericsError
from vitquant.numerics.affine import QuantParams
from vitquant.numerics.isqrt import bit_length, isqrt

FRACTION = 20  # fractional bits of the normalised value
RECIPROCAL = 54  # fractional bits of one over the standard deviation
MAX_CHANNELS = 1625  # C^3 * 2^30, the largest sum of squares of 16-bit codes, stays below 2^62


@dataclass(frozen=True)
class IntegerLayerNorm:
    """The constants of one LayerNorm: all int64, ``gain``, ``offset`` and ``shift`` one a channel."""

    gain: Tensor
    offset: Tensor
    shift: Tensor
    epsilon: int
    zero_point: Tensor
    qmin: int
    qmax: int

    def __call__(self, codes: Tensor) -> Tensor:
        """Codes ``[..., C]`` of the input (any integer type, at most 16 bits) to codes of the output, int64."""
        channels = codes.shape[-1]
        x = codes.long()
        centred = x * channels - x.sum(-1, keepdim=True)  # C * (x - mean), exactly
        power = (centred * centred).sum(-1, keepdim=True) + self.epsilon  # C^3 * (variance + epsilon)
        # Use the headroom of 62 bits, so that the root keeps its precision for quiet tokens too.
        k = (62 - bit_length(power)) >> 1
        deviation = isqrt((power << (2 * k)) // channels).clamp(min=1)  # C * sqrt(variance + epsilon) * 2^k
        reciprocal = (1 << RECIPROCAL) // deviation
        normalised = (centred * reciprocal + (1 << (RECIPROCAL - FRACTION - 1 - k))) >> (RECIPROCAL - FRACTION - k)
        scaled = normalised * self.gain + self.offset + (torch.ones_like(self.shift) << (self.shift - 1))
        return ((scaled >> self.shift) + self.zero_point).clamp(self.qmin, self.qmax)


def integer_layernorm(
    gamma: Tensor, beta: Tensor, eps: float, input_scale: float, output: QuantParams
) -> IntegerLayerNorm:
    """Build the integer LayerNorm that writes to the grid ``output``.

    Args:
        gamma, beta: the layer's affine parameters, ``[C]``.
        eps: the layer's epsilon, in real units.
        input_scale: scale of the input's codes (one for the whole tensor).
        output: grid of the result, per tensor or per channel.

    Raises:
        NumericsError: more channels than the exact sums allow.
    """
    channels = gamma.numel()
    if channels > MAX_CHANNELS:
        raise NumericsError(
            "integer LayerNorm would overflow", got=f"{channels} channels", expected=f"at most {MAX_CHANNELS}"
        )
    scale = output.scale.double().reshape(-1)
    ratio = gamma.double() / scale / 2**FRACTION
    largest = ratio.abs().clamp(min=2.0**-60)
    # 22-bit gains; the shift is bounded so that the offset, up to 2^16 codes, stays below 2^60.
    shift = (22 - torch.frexp(largest)[1].long()).clamp(1, 42)
    one = torch.ones_like(largest)
    gain = (ratio * torch.ldexp(one, shift)).round().long()
    offset = (beta.double() / scale * torch.ldexp(one, shift)).round().long()
    return IntegerLayerNorm(
        gain=gain,
        offset=offset,
        shift=shift,
        epsilon=round(eps / input_scale**2 * channels**3),
        zero_point=output.zero_point.reshape(-1).long(),
        qmin=output.qmin,
        qmax=output.qmax,
    )
