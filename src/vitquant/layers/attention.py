"""The two products of attention. The points around them round what they give."""

from __future__ import annotations

import torch

from vitquant.layers.act import QAct
from vitquant.layers.layer import Layer, Shape, entrance
from vitquant.layers.softmax import AttentionWeights
from vitquant.numerics.limits import INT32_MAX
from vitquant.numerics.matmul import int_matmul
from vitquant.numerics.pairing import pair_scales, product_per_head
from vitquant.numerics.quantized import Accumulators, QuantizedTensor, Value, real
from vitquant.numerics.softmax import divide, division_bits
from vitquant.numerics.tokens import merge_heads, split_heads


class AttentionScores(Layer):
    """``Q K^T`` times a scale, head by head: ``[B, N, C]`` twice to ``[B, H, N, N]``.

    Args:
        num_heads: heads, each with ``C / H`` channels.
        scale: what the products are multiplied with, usually ``head_dim ** -0.5``.
        name: what messages call it.
    """

    def __init__(self, num_heads: int, scale: float, name: str) -> None:
        super().__init__()
        self.num_heads, self.scale, self.name = num_heads, scale, name

    @property
    def label(self) -> str:
        return self.name

    @entrance
    def forward(self, q: Value, k: Value) -> Value:
        """Integers where the scales of both leave the sum over a head's channels as one product."""
        if isinstance(q, QuantizedTensor) and isinstance(k, QuantizedTensor):
            unit = product_per_head(q.params.scale, k.params.scale, self.num_heads)
            limit = q.codes.shape[-1] // self.num_heads * q.centred_limit * k.centred_limit
            if unit is not None and limit <= INT32_MAX:
                a, b = (split_heads(x.centred(), self.num_heads) for x in (q, k))
                sums = int_matmul(a, b.transpose(-2, -1))
                return Accumulators(sums, unit[:, None, None] * self.scale, q.params.scale.dtype)
        a, b = (split_heads(real(x), self.num_heads) for x in (q, k))
        return (a * self.scale) @ b.transpose(-2, -1)

    def shape_after(self, *shapes: Shape) -> Shape:
        return self.num_heads, shapes[0][0], shapes[1][0]

    def pair(self, *layers: Layer) -> list[Layer]:
        """Where Q and K have a scale per channel each, choose both so that the product is one constant per head."""
        q, k = layers
        if not isinstance(q, QAct) or not isinstance(k, QAct) or not all(map(is_per_channel, (q, k))):
            return []
        (scale_q, low_q), (scale_k, low_k) = (point.tight_scale() for point in (q, k))
        power_of_two = any(p.require_config().quantization_method == "power_of_two" for p in (q, k))
        no_range = [int((scale == 0).sum()) for scale in (scale_q, scale_k)]
        scale_q, scale_k = pair_scales(scale_q, scale_k, self.num_heads, power_of_two)
        q.adopt(scale_q, low_q)
        k.adopt(scale_k, low_k)
        q.no_range, k.no_range = no_range
        return [q, k]


class WeightedSum(Layer):
    """The attention weights times V, head by head: ``[B, H, N, N]`` and ``[B, N, C]`` to ``[B, N, C]``."""

    def __init__(self, num_heads: int, name: str) -> None:
        super().__init__()
        self.num_heads, self.name = num_heads, name

    @property
    def label(self) -> str:
        return self.name

    @entrance
    def forward(self, weights: Value, v: Value) -> Value:
        """Integers where both are; divided by the sums of the rows where the weights are shares of them."""
        if (
            isinstance(weights, AttentionWeights)
            and isinstance(v, QuantizedTensor)
            and weights.row_limit * v.centred_limit <= INT32_MAX
        ):
            return self.integers(weights, v)
        return merge_heads(real(weights) @ split_heads(real(v), self.num_heads))

    def integers(self, weights: AttentionWeights, v: QuantizedTensor) -> Accumulators:
        """The product as a device computes it."""
        p, unit = weights.centred(), v.params.scale.double()
        sums = int_matmul(p, split_heads(v.centred(), self.num_heads))
        if weights.by_row:
            reciprocal, fraction = division_bits(v.centred_limit)
            sums = divide(sums, p.sum(-1, keepdim=True, dtype=torch.int64), reciprocal, fraction)
            unit = unit * 2.0**-fraction
        else:
            per_head = weights.params.scale.double().reshape(-1).expand(self.num_heads)
            unit = unit * per_head.repeat_interleave(v.codes.shape[-1] // self.num_heads)
        return Accumulators(merge_heads(sums), unit, v.params.scale.dtype)

    def shape_after(self, *shapes: Shape) -> Shape:
        return shapes[0][1], shapes[1][1]


def is_per_channel(point: QAct) -> bool:
    """Whether a point has a scale per channel."""
    return point.active and point.layout.dim is not None and point.layout.group == 1
