"""The product of two activations, code by code, as in gated MLPs. The point after it rounds it."""

from __future__ import annotations

from vitquant.layers.layer import Layer, entrance
from vitquant.numerics.limits import INT32_MAX
from vitquant.numerics.quantized import Accumulators, QuantizedTensor, Value, real


class Product(Layer):
    """Multiplies two tensors ``[B, N, C]``."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name

    @property
    def label(self) -> str:
        return self.name

    @entrance
    def forward(self, a: Value, b: Value) -> Value:
        """Integers where both are, and their products fit 32 bits."""
        if isinstance(a, QuantizedTensor) and isinstance(b, QuantizedTensor):
            limit = a.centred_limit * b.centred_limit
            if limit <= INT32_MAX:
                unit = a.params.scale.double() * b.params.scale.double()
                return Accumulators(a.centred().int() * b.centred(), unit, a.params.scale.dtype, limit)
        return real(a) * real(b)
