"""Softmax as integers compute it."""

from __future__ import annotations

import torch
from torch import Tensor

from vitquant.config import QuantConfig
from vitquant.layers.layer import entrance
from vitquant.layers.point import Point
from vitquant.layers.regrid import centred_codes, centred_limit, code_dtype, codes_of, land
from vitquant.numerics.affine import QuantParams, fake_quantize
from vitquant.numerics.limits import EXPONENTIAL_BITS
from vitquant.numerics.softmax import (
    FINE_SCALE,
    LOG2_MAX,
    SHARE_BITS,
    exponential,
    exponential_table,
    log2_quantize,
    log2_weights,
    look_up,
    probabilities,
    row_codes,
    shares,
)


class IntSoftmax(Point):
    """Softmax over the last dimension of scores ``[B, H, N, N]``, in the form and approximation of its config."""

    def __init__(self, quant_config: QuantConfig | None, layer_name: str = "intSoft") -> None:
        super().__init__(layer_name, quant_config)
        # Only the uniform form rounds to a calibrated grid; the others carry their own.
        self.observes = quant_config is None or quant_config.softmax == "uniform"

    @entrance
    def forward(self, scores: Tensor, input_grid: QuantParams | None = None) -> Tensor:
        """Probabilities. ``input_grid`` is the grid that the scores lie on, ``None`` while they are float."""
        if not self.rounding:
            p = scores.softmax(dim=-1)
            self.observe(p)
            return self.emit(p, p)
        p = (
            self.from_floats(scores)
            if input_grid is None
            else self.from_codes(codes_of(scores, input_grid), input_grid)
        )
        return p if self.hook is None else self.emit(scores.softmax(dim=-1), p)

    def from_codes(self, scores: Tensor, grid: QuantParams) -> Tensor:
        """Probabilities of codes, as a device computes them."""
        config, bits = self.require_config(), self.require_config().bit_type.bits
        levels = grid.qmax - grid.qmin + 1
        scales = grid.scale.reshape(-1).tolist()
        table = torch.stack([exponential_table(s, levels, config.approximation) for s in scales])
        table = row_codes(table, bits if config.softmax == "row" else EXPONENTIAL_BITS).int().to(scores.device)
        e = look_up(table, scores)
        if config.softmax == "row":
            codes = e.to(grid.scale.dtype)  # a quotient of integers would be of torch's default type
            return codes / codes.sum(-1, keepdim=True)
        if config.softmax == "log2":
            return torch.ldexp(log2_weights(e, self.last).to(grid.scale.dtype), torch.tensor(-LOG2_MAX))
        params, share = self.require_params(), shares(e)
        unit = torch.full((), 2.0**-SHARE_BITS, dtype=torch.float64, device=e.device)
        p = land(share, unit, params)
        return fake_quantize((share * unit).to(grid.scale.dtype), params) if p is None else p

    def weights(self, p: Tensor) -> Tensor:
        """The integers behind the probabilities of :meth:`from_codes`: what V is multiplied with."""
        config = self.require_config()
        if config.softmax == "row":  # the largest of a row is always the last code
            top = (1 << config.bit_type.bits) - 1
            codes: Tensor = (p * (top / p.amax(-1, keepdim=True))).round_()
            return codes.to(code_dtype(0, top))
        if config.softmax == "log2":
            return (p * 2.0**LOG2_MAX).int()
        return centred_codes(p, self.require_params())

    @property
    def weight_limit(self) -> int:
        """Largest magnitude among :meth:`weights`."""
        config = self.require_config()
        if config.softmax != "row":
            return centred_limit(self.require_params())
        return (1 << config.bit_type.bits) - 1

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
        if config.softmax == "row":
            codes = row_codes(e, bits)
            return codes / codes.sum(-1, keepdim=True)
        p = probabilities(e)
        return log2_quantize(p, bits) if config.softmax == "log2" else fake_quantize(p, self.require_params())
