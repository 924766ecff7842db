"""The two products of attention. The points around them round what they give."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from vitquant.layers.act import QAct
from vitquant.layers.layer import Layer, Shape, entrance, owned
from vitquant.layers.softmax import AttentionWeights
from vitquant.numerics.limits import INT32_MAX
from vitquant.numerics.matmul import int_matmul
from vitquant.numerics.pairing import pair_scales, product_per_head
from vitquant.numerics.quantized import Accumulators, QuantizedTensor, Value, real
from vitquant.numerics.softmax import divide, division_bits
from vitquant.numerics.tokens import merge_heads, merge_windows, split_heads, split_windows


class AttentionScores(Layer):
    """``Q K^T`` times a scale, head by head: ``[B, N, C]`` and ``[B, M, C]`` to ``[B, H, N, M / windows]``.

    Args:
        num_heads: heads, each with ``C / H`` channels.
        scale: what the products are multiplied with, usually ``head_dim ** -0.5``.
        name: what messages call it.
        windows: queries and keys are so many equal runs of neighbouring tokens, and meet within a run only.
        table: what is added for each head (or all), query and key, ``[1 or H, R, M / windows]``, such as a relative
            position bias; with fewer rows than queries it begins anew after its last. It is copied.
    """

    table: Tensor | None

    def __init__(
        self, num_heads: int, scale: float, name: str, *, windows: int = 1, table: Tensor | None = None
    ) -> None:
        super().__init__()
        self.num_heads, self.scale, self.name, self.windows = num_heads, scale, name, windows
        self.register_buffer("table", None if table is None else owned(table))

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
                a, b = (self.split(x.centred()) for x in (q, k))
                sums = merge_windows(int_matmul(a, b.transpose(-2, -1)))
                unit = unit[:, None, None] * self.scale
                return Accumulators(sums, unit, q.params.scale.dtype, table=self.added(sums.shape[2]))
        a, b = (self.split(real(x)) for x in (q, k))
        scores = merge_windows((a * self.scale) @ b.transpose(-2, -1))
        table = self.added(scores.shape[2])
        return scores if table is None else scores + table

    def split(self, x: Tensor) -> Tensor:
        """``[B, N, C]`` to ``[B, H, windows, N / windows, C / H]``, without windows ``[B, H, N, C / H]``."""
        return split_windows(split_heads(x, self.num_heads), self.windows)

    def added(self, queries: int) -> Tensor | None:
        """The table for all queries, ``[1 or H, N, M / windows]``."""
        return None if self.table is None else self.table.repeat(1, queries // self.table.shape[1], 1)

    def shape_after(self, *shapes: Shape) -> Shape:
        return self.num_heads, shapes[0][0], shapes[1][0] // self.windows

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
    """The attention weights times V, head by head: ``[B, H, N, M / windows]`` and ``[B, M, C]`` to ``[B, N, C]``.

    The arguments are those of :class:`AttentionScores`.
    """

    def __init__(self, num_heads: int, name: str, *, windows: int = 1) -> None:
        super().__init__()
        self.num_heads, self.name, self.windows = num_heads, name, windows

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
        return merge_heads(self.product(real(weights), real(v), torch.matmul))

    def product(self, weights: Tensor, v: Tensor, matmul: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
        """The sums over the keys of each query, ``[B, H, N, C / H]``."""
        v = split_windows(split_heads(v, self.num_heads), self.windows)
        return merge_windows(matmul(split_windows(weights, self.windows), v))

    def integers(self, weights: AttentionWeights, v: QuantizedTensor) -> Accumulators:
        """The product as a device computes it."""
        p, unit = weights.centred(), v.params.scale.double()
        sums = self.product(p, v.centred(), int_matmul)
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
