"""Bias correction: no output channel of a linear layer is wrong on average."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from vitquant.calibration.repair.step import LayerInputs, RepairStep
from vitquant.numerics.quantized import Value, real


class BiasCorrection(RepairStep):
    """Add the mean error of each output channel to the bias, layer by layer.

    The mean is over images and tokens. With ``x`` the input of the float layer and ``q`` that of the quantized one, in
    which all earlier layers are corrected, the new bias is ``E[W x + b] - W_q E[q]``: the accumulators then have the
    mean of the float output, up to the rounding of the bias to their scale. A layer without a bias gets one, since its
    integer form has room for it. LayerNorms and layers with float weights stay as they are.

    Source: Nagel et al., "Data-Free Quantization Through Weight Equalization and Bias Correction", 2019 (arXiv
    1906.04721), section 4.2 and appendix D (empirical bias correction).
    """

    def repair_layer(self, layer: LayerInputs) -> None:
        linear = layer.linear
        exact, rounded = means(layer.batches(), width=linear.float_weight.shape[1])
        weight, bias = (tensor.double() for tensor in linear.effective())
        wanted = weight @ exact + bias
        linear.revise(layer.params, bias=wanted - linear.weight_hat.double() @ rounded)


def means(batches: Iterable[tuple[Tensor, Value]], width: int) -> tuple[Tensor, Tensor]:
    """The mean over images and tokens of each channel of both inputs, float64 ``[width]``."""
    sums, count = [torch.zeros(width, dtype=torch.float64) for _ in range(2)], 0
    for pair in batches:
        for i, value in enumerate(pair):
            rows = real(value).reshape(-1, width)
            sums[i] = sums[i].to(rows.device) + rows.sum(0, dtype=torch.float64)
        count += len(rows)
    return sums[0] / count, sums[1] / count
