"""Scales for Q and K whose product is one constant per head.

The score of two tokens is a sum over the channels of a head, ``sum_c q_c k_c s_q[c] s_k[c]``. Integers can compute it
with a scale per channel only where ``s_q[c] * s_k[c]`` leaves the sum. The ratio of the two scales stays free, one per
channel, and absorbs what makes one channel of Q wide and the same channel of K narrow.
"""

from __future__ import annotations

import torch
from torch import Tensor

from vitquant.numerics.affine import power_of_two_ceil

PAIRED = 1e-5
"""Products of paired scales differ by less, relatively."""


def product_per_head(scale_q: Tensor, scale_k: Tensor, num_heads: int) -> Tensor | None:
    """``s_q[c] * s_k[c]`` as one constant for each head, float64 ``[H]``; ``None`` where it is none.

    Each scale has one element, or one for each channel.
    """
    width = max(scale_q.numel(), scale_k.numel(), num_heads)
    product = scale_q.double().reshape(-1).expand(width) * scale_k.double().reshape(-1).expand(width)
    product = product.reshape(num_heads, -1)
    mean = product.mean(1)
    constant = ((product / mean[:, None] - 1).abs() < PAIRED).all()  # float32 keeps no pair exactly
    return mean if bool(constant) else None


def pair_scales(scale_q: Tensor, scale_k: Tensor, num_heads: int, power_of_two: bool = False) -> tuple[Tensor, Tensor]:
    """Widen the tight scales ``[C]`` of Q and K until their product is one constant per head.

    No scale becomes smaller, so nothing is clipped that was not; both are widened by the same factor. A scale of 0
    (a channel without range) does not constrain its head. With ``power_of_two`` all scales come back as powers of two.

    Returns:
        The two scales, ``[C]``, all positive.
    """
    if power_of_two:
        scale_q, scale_k = power_of_two_ceil(scale_q), power_of_two_ceil(scale_k)
    q, k = scale_q.reshape(num_heads, -1), scale_k.reshape(num_heads, -1)
    product = (q * k).amax(1, keepdim=True)
    product = torch.where(product == 0, 1.0, product)
    # A side without range takes whatever the other side's tight scale leaves of the product.
    tight_q = torch.where(q > 0, q, torch.where(k > 0, product / k, product.sqrt()))
    tight_k = torch.where(k > 0, k, product / tight_q)
    paired_q = (product * tight_q / tight_k).sqrt()
    if power_of_two:
        paired_q = power_of_two_ceil(paired_q)
    return paired_q.flatten(), (product / paired_q).flatten()
