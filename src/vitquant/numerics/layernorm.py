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
from vitquant.numerics.limits import MAX_NORM_CHANNELS

FRACTION = 20  # fractional bits of the normalised value
RECIPROCAL = 54  # fractional bits of one over the standard deviation


@dataclass(frozen=True)
class IntegerLayerNorm:
    """The constants of one LayerNorm: all int64, ``gain``, ``offset`` and ``shift`` one a channel.

    ``epsilon`` has ``headroom`` (even) fractional bits: as many as the sums leave of 62, since a quiet token of few
    channels has a sum of squares so small that epsilon's fraction counts.
    """

    gain: Tensor
    offset: Tensor
    shift: Tensor
    epsilon: int
    headroom: int
    zero_point: Tensor
    qmin: int
    qmax: int

    def __call__(self, codes: Tensor) -> Tensor:
        """Codes ``[..., C]`` of the input (any integer type, at most 16 bits) to codes of the output, int64."""
        channels = codes.shape[-1]
        centred = codes.to(torch.int64, copy=True)
        total = centred.sum(-1, keepdim=True)
        centred *= channels
        centred -= total  # C * (x - mean), exactly
        squares = (centred * centred).sum(-1, keepdim=True)
        power = (squares << self.headroom) + self.epsilon  # C^3 * (variance + epsilon) * 2^headroom
        # Fill 62 bits, so that the root keeps its precision for quiet tokens too. Only constant ones meet the bound.
        k = ((62 - bit_length(power)) >> 1).clamp(max=30 - self.headroom // 2)
        deviation = isqrt((power << (2 * k)) // channels).clamp(min=1)
        k = k + self.headroom // 2  # deviation = C * sqrt(variance + epsilon) * 2^k
        normalised = centred
        normalised *= (1 << RECIPROCAL) // deviation
        normalised += 1 << (RECIPROCAL - FRACTION - 1 - k)
        normalised >>= RECIPROCAL - FRACTION - k
        scaled = normalised
        scaled *= self.gain
        scaled += self.offset + (torch.ones_like(self.shift) << (self.shift - 1))
        scaled >>= self.shift
        scaled += self.zero_point
        return scaled.clamp_(self.qmin, self.qmax)


def integer_layernorm(
    gamma: Tensor, beta: Tensor, eps: float, input_scale: float, output: QuantParams
) -> IntegerLayerNorm:
    """Build the integer LayerNorm that writes to the grid ``output``.

    Args:
        gamma: the layer's multiplicative parameters, ``[C]``.
        beta: the additive ones, ``[C]``.
        eps: the layer's epsilon, in real units.
        input_scale: scale of the input's codes (one for the whole tensor).
        output: grid of the result, per tensor or per channel.

    Raises:
        NumericsError: more channels than the exact sums allow, or an input scale so fine that its epsilon would not
            fit beside them.
    """
    channels = gamma.numel()
    if channels > MAX_NORM_CHANNELS:
        raise NumericsError(
            "integer LayerNorm would overflow", got=f"{channels} channels", expected=f"at most {MAX_NORM_CHANNELS}"
        )
    cube = channels**3
    epsilon = eps / input_scale**2 * cube
    headroom = (62 - int(cube * 2**30 + epsilon).bit_length()) // 2 * 2
    if headroom < 0:
        raise NumericsError(
            "integer LayerNorm would overflow",
            got=f"an input scale of {input_scale:.3g}, of whose square epsilon is {eps / input_scale**2:.3g} times",
            expected=f"a scale that keeps this below {2**62 / cube - 2**30:.3g}",
            fix="give fewer bits to the residual stream before this norm",
        )
    scale = output.scale.double().reshape(-1)
    ratio = gamma.double() / scale / 2**FRACTION
    largest = ratio.abs().clamp(min=2.0**-60)
    # 22-bit gains; the shift is bounded so that the offset, up to 2^16 codes, stays below 2^60.
    shift = (22 - torch.frexp(largest)[1].long()).clamp(1, 42)
    one = torch.ones_like(largest)
    # What these bounds cut is far beyond the last code: an output whose range is nothing beside gamma or beta.
    gain = (ratio * torch.ldexp(one, shift)).clamp(-(2.0**36), 2.0**36).round().long()
    offset = (beta.double() / scale * torch.ldexp(one, shift)).clamp(-(2.0**60), 2.0**60).round().long()
    return IntegerLayerNorm(
        gain=gain,
        offset=offset,
        shift=shift,
        epsilon=round(epsilon * 2**headroom),
        headroom=headroom,
        zero_point=output.zero_point.reshape(-1).long(),
        qmin=output.qmin,
        qmax=output.qmax,
    )
