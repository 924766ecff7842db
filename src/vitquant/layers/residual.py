"""The residual stream: its beginning, and each addition to it."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from vitquant.config import QuantConfig
from vitquant.layers.layer import Shape, entrance, owned
from vitquant.layers.point import Point
from vitquant.numerics.affine import QuantParams
from vitquant.numerics.quantized import QuantizedTensor, Value, addend_params, integer_type, on, real


class QuantResidual(Point):
    """Adds two tensors on the scale of the residual stream.

    Integers can only add what has one scale, so each addend is rounded to the stream's scale first and the sum of the
    codes is clamped. Rounding the exact sum once would be a little better, and not what a device does.
    """

    @entrance
    def forward(self, x: Value, y: Value) -> Value:
        """Add two tensors ``[B, N, C]``."""
        params = self.acting
        if params is None:
            return self.settle(real(x) + real(y))
        return self.show(lambda: real(x) + real(y), clamped_sum(x, y, params))


class QuantEmbedding(Point):
    """Patch tokens ``[B, P, C]`` to the start of the residual stream, ``[B, N, C]``.

    Args:
        table: what is added, ``[1, N, C]``: the prefix tokens (class, distillation, registers) and the position
            embedding. It is copied.
        prefix: how many of the ``N`` tokens stand before the patches.
        quant_config, layer_name, head_dim: as for any point.
    """

    def __init__(
        self, table: Tensor, prefix: int, quant_config: QuantConfig | None, layer_name: str, *, head_dim: int
    ) -> None:
        super().__init__(layer_name, quant_config, head_dim=head_dim)
        self.prefix = prefix
        self.table: Tensor
        self.register_buffer("table", owned(table))

    @entrance
    def forward(self, patches: Value) -> Value:
        """Put the patches in their places and add the table."""
        params = self.acting
        if params is None:
            return self.settle(self.placed(real(patches)) + self.table)
        placed = on(patches, addend_params(params))
        y = clamped_sum(placed.with_codes(self.placed(placed.codes)), self.table, params)
        return self.show(lambda: self.placed(real(patches)) + self.table, y)

    def placed(self, patches: Tensor) -> Tensor:
        """Zeros in the places of the prefix tokens, and the patches after them."""
        return F.pad(patches, (0, 0, self.prefix, 0)) if self.prefix else patches

    def shape_after(self, *shapes: Shape) -> Shape:
        return tuple(self.table.shape[1:])


def clamped_sum(x: Value, y: Value, params: QuantParams) -> QuantizedTensor:
    """The sum of two tensors on these parameters, each addend rounded to their scale."""
    scaled = addend_params(params)
    codes = on_scale(x, scaled) + on_scale(y, scaled)
    codes += params.zero_point.to(codes.dtype)
    return QuantizedTensor(codes.clamp_(params.qmin, params.qmax).to(integer_type(params.qmin, params.qmax)), params)


def on_scale(x: Value, scaled: QuantParams) -> Tensor:
    """The codes of an addend."""
    placed = isinstance(x, QuantizedTensor) and x.params.scale is scaled.scale and x.params.qmin == scaled.qmin
    return x.codes if placed else on(x, scaled).codes  # type: ignore[union-attr]
