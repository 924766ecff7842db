"""Softmax as integers compute it."""

from __future__ import annotations

import torch
from torch import Tensor

from vitquant.config import QuantConfig
from vitquant.layers.point import Point
from vitquant.numerics.affine import QuantParams, fake_quantize
from vitquant.numerics.softmax import (
    FINE_SCALE,
    exponential,
    exponential_table,
    log2_quantize,
    probabilities,
    row_codes,
)


class IntSoftmax(Point):
    """Softmax over the last dimension of scores ``[B, H, N, N]``, in the form and approximation of its config."""

    def __init__(self, quant_config: QuantConfig | None, layer_name: str = "intSoft") -> None:
        super().__init__(layer_name, quant_config)
        # Only the uniform form rounds to a calibrated grid; the others carry their own.
        self.observes = quant_config is None or quant_config.softmax == "uniform"

    def forward(self, scores: Tensor, input_grid: QuantParams | None = None) -> Tensor:
        """Probabilities. ``input_grid`` is the grid that the scores lie on, ``None`` while they are float."""
        if not self.rounding:
            p = scores.softmax(dim=-1)
            self.observe(p)
            return self.emit(p, p)
        config = self.require_config()
        e = self.exponentials(scores, input_grid, config.approximation).to(scores.dtype)
        bits = config.bit_type.bits
        if config.softmax == "row":
            codes = row_codes(e, bits)
            p = codes / codes.sum(-1, keepdim=True)
        elif config.softmax == "log2":
            p = log2_quantize(probabilities(e), bits)
        else:
            p = fake_quantize(probabilities(e), self.require_params())
        return p if self.tap is None else self.emit(scores.softmax(dim=-1), p)

    @staticmethod
    def exponentials(scores: Tensor, grid: QuantParams | None, approximation: str) -> Tensor:
        """``exp(score - row maximum)`` by the approximation; by table where the scores are codes."""
        distance = scores.amax(-1, keepdim=True) - scores
        if grid is None:
            if approximation == "table":
                return torch.exp(-distance)
            return exponential((distance / FINE_SCALE).round_(), FINE_SCALE, approximation)
        codes = (distance / grid.scale).round_().int()
        levels = grid.qmax - grid.qmin + 1
        scales = grid.scale.reshape(-1).tolist()
        tables = torch.stack([exponential_table(s, levels, approximation) for s in scales]).to(scores)
        if len(scales) > 1:  # one table per head
            codes += levels * torch.arange(len(scales), dtype=torch.int32, device=codes.device)[:, None, None]
        return tables.flatten()[codes]
