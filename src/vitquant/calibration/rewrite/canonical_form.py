"""Canonical form: LayerNorms and LayerScale without parameters of their own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from vitquant.calibration.rewrite.rewrite import Rewrite
from vitquant.calibration.rewrite.wiring import readers
from vitquant.layers import QuantLinear, QuantNorm
from vitquant.layers.graph import graph_of
from vitquant.layers.layer import Composite


class CanonicalForm(Rewrite):
    """Fold gamma and beta of each LayerNorm into the linear layers that read it, and LayerScale into those before it.

    What is quantized is then ``(x - mean) / std``: all channels have about the same range, around zero. A norm that
    anything else reads, such as the model's output, stays as it is.

    Source: the fusion of norms in Ashkboos et al., "SliceGPT", 2024 (arXiv 2401.15024).
    """

    def measure(self, model: Composite, batches: Sequence[Tensor]) -> dict[str, Tensor]:
        return {}

    def apply(self, model: Composite, measured: Mapping[str, Tensor]) -> None:
        graph = graph_of(model)
        for linear in model.modules():
            if isinstance(linear, QuantLinear) and linear.gain is not None:
                linear.rewrite(*linear.effective())
        for step in graph.steps:
            norm = step.layer
            linears = readers(graph, step) if isinstance(norm, QuantNorm) else None
            if not linears:
                continue
            assert isinstance(norm, QuantNorm)
            gamma, beta = norm.norm.weight.double(), norm.norm.bias.double()
            for linear in linears:
                weight, bias = (tensor.double() for tensor in linear.effective())
                linear.rewrite(weight * gamma, bias + weight @ beta)
            for name, value in (
                ("weight", torch.ones_like(norm.norm.weight)),
                ("bias", torch.zeros_like(norm.norm.bias)),
            ):
                setattr(norm.norm, name, nn.Parameter(value, requires_grad=False))
