"""Migration: how much of the quantization error a linear layer's input has, and how much its weights."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from vitquant.calibration.repair.step import GraphBlock, RepairStep
from vitquant.config.repair import MigrationSettings
from vitquant.data.sample import evenly_spaced
from vitquant.layers import Point, QuantLinear
from vitquant.layers.graph import Step, follow
from vitquant.numerics.affine import QuantParams, fake_quantize
from vitquant.numerics.quantized import real

ROWS = 4096
"""Input vectors on which the exponents are compared; more of them hardly change the choice."""


class Migration(RepairStep):
    """Widen the finer scales of an input with a scale per channel or group, where the output loses less by it.

    Such scales ``s`` are folded into the weights, which makes the rows of the weight matrix uneven: coarse for the
    channels of fine scales. With the scales ``s^(1 - alpha) S^alpha``, ``S`` the widest one, the input loses more and
    the weights less. Of several exponents, each input gets the one with the smallest squared error at the outputs of
    the linear layers that read it, on their inputs in the float model. No scale gets finer, so nothing is clipped that
    was not, and fine scales hold better on other images.

    Source: Xiao et al., "SmoothQuant", 2022 (arXiv 2211.10438), section 4, with scales in place of ranges and an
    exponent for each layer.
    """

    settings: MigrationSettings
    gains_on_its_images = False  # wider scales lose a little on images that the calibration has seen

    def repair_block(self, block: GraphBlock) -> None:
        read_by = dict(inputs_of_linears(block))
        rows = sample(block, list(read_by)) if len(self.settings.alphas) > 1 else {}
        for step, linears in read_by.items():
            point = step.layer
            assert isinstance(point, Point)
            trials = [migrated(point, point.require_params(), alpha) for alpha in self.settings.alphas]
            errors = [output_error(linears, trial, rows[step]) for trial in trials] if rows else [0.0]
            block.rescale(point, trials[errors.index(min(errors))])


def inputs_of_linears(block: GraphBlock) -> Iterator[tuple[Step, list[QuantLinear]]]:
    """The points of the block with several scales that nothing but linear layers reads, with these."""
    integer = {linear for _, step, linear in block.linears() if step.layer is linear}
    for step in block.steps:
        point = step.layer
        if not isinstance(point, Point) or point.params is None or point.params.is_scalar:
            continue
        readers = [reader.layer for reader in block.rounded.graph.consumers[step]]
        linears = [reader for reader in readers if isinstance(reader, QuantLinear) and reader in integer]
        if linears and len(linears) == len(readers) and point.require_config().quantization_method == "uniform":
            yield step, linears


def sample(block: GraphBlock, steps: Sequence[Step]) -> dict[Step, Tensor]:
    """Vectors ``[at most ROWS, C]`` that these steps give in the float model, evenly spaced over images and tokens."""
    found: dict[Step, list[Tensor]] = {step: [] for step in steps}
    for x, _ in block.batches():
        with block.exact.computing():
            values = follow(block.steps, {block.source: x}, lambda step, *inputs: step.layer(*inputs))
        for step, kept in found.items():
            kept.append(real(values[step]).flatten(0, -2))
    rows = {step: torch.cat(kept) for step, kept in found.items()}
    return {step: x[torch.tensor(evenly_spaced(len(x), ROWS), device=x.device)] for step, x in rows.items()}


def output_error(linears: Sequence[QuantLinear], params: QuantParams, rows: Tensor) -> float:
    """Squared error of the layers' outputs for float inputs ``[N, in]`` that are rounded to these parameters.

    The layers are folded for them.
    """
    error, rounded = 0.0, fake_quantize(rows, params)
    for linear in linears:
        linear.fold(params)
        weight, _ = linear.effective()
        error += float((rows @ weight.t() - rounded @ linear.weight_hat.t()).square().sum())
    return error


def migrated(point: Point, given: QuantParams, alpha: float) -> QuantParams:
    """The parameters with scales ``s^(1 - alpha) S^alpha``; the middle of each range stays where it is."""
    if alpha == 0:
        return given
    scale = given.scale.double()
    has_range = scale != 1 if point.no_range else torch.ones_like(scale, dtype=torch.bool)
    widest = torch.where(has_range, scale, 0).max()
    wider = torch.where(has_range, scale ** (1 - alpha) * widest**alpha, scale)
    middle = (given.qmin + given.qmax + 1) // 2
    zero = middle - (middle - given.zero_point.double()) * scale / wider
    zero = zero.round().clamp(given.qmin, given.qmax) if given.qmin == 0 else given.zero_point
    return replace(given, scale=wider.to(given.scale.dtype), zero_point=zero.to(given.zero_point.dtype))
