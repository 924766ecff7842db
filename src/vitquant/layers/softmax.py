"""Softmax as integers compute it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from vitquant.config import QuantConfig
from vitquant.layers.layer import entrance
from vitquant.layers.point import Point
from vitquant.numerics.affine import QuantParams, fake_quantize
from vitquant.numerics.limits import DIFFUSION_BITS, EXPONENTIAL_BITS, LOG2_ROW_LIMIT
from vitquant.numerics.quantized import Accumulators, QuantizedTensor, Value, integer_type, on, real
from vitquant.numerics.softmax import (
    FINE_SCALE,
    LOG2_MAX,
    SHARE_BITS,
    diffused,
    exponential,
    exponential_table,
    log2_quantize,
    log2_weights,
    look_up,
    probabilities,
    row_codes,
    shares,
)


@dataclass(frozen=True, eq=False)
class AttentionWeights(QuantizedTensor):
    """The integers that V is multiplied with, ``[B, H, N, N]``.

    ``largest_row`` bounds the sum of a row. If ``by_row``, a probability is the share of its code in the sum of its
    row; otherwise it is what ``params`` say.
    """

    largest_row: int
    by_row: bool = False

    def real(self) -> Tensor:
        if not self.by_row:
            return super().real()
        codes = self.codes.to(self.params.scale.dtype)
        return codes / codes.sum(-1, keepdim=True)

    @property
    def row_limit(self) -> int:
        return self.largest_row


class IntSoftmax(Point):
    """Softmax over the last dimension of scores ``[B, H, N, N]``, in the form and approximation of its config."""

    def __init__(self, quant_config: QuantConfig | None, layer_name: str = "intSoft") -> None:
        super().__init__(layer_name, quant_config)
        # Only the uniform form rounds to a calibrated grid; the others carry their own.
        self.observes = quant_config is None or quant_config.softmax == "uniform"

    @entrance
    def forward(self, scores: Value) -> Value:
        """Probabilities; integers where the scores are."""
        if not self.rounding:
            return self.settle(real(scores).softmax(dim=-1))
        p = self.from_codes(scores) if isinstance(scores, QuantizedTensor) else self.from_floats(real(scores))
        return self.show(lambda: real(scores).softmax(dim=-1), p)

    def from_codes(self, scores: QuantizedTensor) -> AttentionWeights:
        """Probabilities of quantized scores, as a device computes them."""
        config, bits = self.require_config(), self.require_config().bit_type.bits
        scale = scores.params.scale
        levels, tokens = scores.params.qmax - scores.params.qmin + 1, scores.codes.shape[-1]
        table = torch.stack([exponential_table(s, levels, config.approximation) for s in scale.reshape(-1).tolist()])
        table = row_codes(table, *self.table_bits).int().to(scores.codes.device)
        e = look_up(table, scores.codes)
        if self.by_row:
            top = (1 << bits) - 1
            codes = diffused(e, top << DIFFUSION_BITS) if config.softmax == "diffusion" else e
            return AttentionWeights(
                codes.to(integer_type(0, top)), weight_params(top, scale), tokens * top, by_row=True
            )
        if config.softmax == "log2":
            codes = log2_weights(e, self.last)
            return AttentionWeights(codes.int(), weight_params(1 << LOG2_MAX, scale), LOG2_ROW_LIMIT)
        params = self.require_params()
        unit = torch.full((), 2.0**-SHARE_BITS, dtype=torch.float64, device=e.device)
        p = on(Accumulators(shares(e), unit, scale.dtype), params)
        return AttentionWeights(p.codes, params, tokens * p.centred_limit)

    @property
    def by_row(self) -> bool:
        """Whether a probability is the share of its code in the sum of its row."""
        return self.require_config().softmax in ("row", "diffusion")

    @property
    def table_bits(self) -> tuple[int, int]:
        """Bits of the codes that the table of exponentials holds, and fractional bits beyond them."""
        if not self.by_row:
            return EXPONENTIAL_BITS, 0
        config = self.require_config()
        return config.bit_type.bits, DIFFUSION_BITS if config.softmax == "diffusion" else 0

    @property
    def last(self) -> int:
        """The largest exponent that the form ``log2`` keeps."""
        return min((1 << self.require_config().bit_type.bits) - 1, LOG2_MAX)

    def from_floats(self, scores: Tensor) -> Tensor:
        """Probabilities of scores that are no codes, in the form and approximation of the config."""
        config, bits = self.require_config(), self.require_config().bit_type.bits
        distance = scores.amax(-1, keepdim=True) - scores
        if config.approximation == "table":
            e = torch.exp(-distance)
        else:
            e = exponential((distance / FINE_SCALE).round_(), FINE_SCALE, config.approximation).to(scores.dtype)
        if self.by_row:
            codes = row_codes(e, *self.table_bits)
            if config.softmax == "diffusion":
                codes = diffused(codes.int(), (2**bits - 1) << DIFFUSION_BITS).to(scores.dtype)
            return codes / codes.sum(-1, keepdim=True)
        p = probabilities(e)
        return log2_quantize(p, bits) if config.softmax == "log2" else fake_quantize(p, self.require_params())


def weight_params(top: int, like: Tensor) -> QuantParams:
    """Parameters of codes from 0 to ``top``, which stands for 1."""
    scale = torch.tensor(1 / top, dtype=like.dtype, device=like.device)
    return QuantParams(scale, torch.zeros_like(scale), 0, top)
