"""GPTQ: integer weights that make up for each other's rounding errors."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from vitquant.calibration.repair.step import LayerInputs, RepairStep
from vitquant.config import GptqSettings
from vitquant.layers import QuantLinear
from vitquant.numerics.affine import QuantParams, quantize
from vitquant.numerics.packing import MAX_MULTIPLIER
from vitquant.numerics.quantized import Value, real
from vitquant.numerics.weight_groups import best_multipliers, quantize_grouped, spread

FACTORS = (1.0, 0.95, 0.9, 0.85, 0.8, 0.75, 0.7)
"""The scales that are tried, relative to the calibrated one: a finer scale clips the largest weights."""

DAMPING_STEP = 10.0
"""What the damping is multiplied by while the second moments are not positive definite."""


@dataclass(frozen=True)
class Moments:
    """The mean ``[in]`` of a layer's input and its second moments around it ``[in, in]``, float64."""

    mean: Tensor
    second: Tensor


@dataclass(frozen=True)
class Solution:
    """Integer weights ``[out, in]``, their parameters, and the squared error of each output, ``[out]`` or ``[1]``."""

    codes: Tensor
    params: QuantParams
    errors: Tensor


class Gptq(RepairStep):
    """Round the weights of each linear layer so that its outputs change little, not the weights themselves.

    The columns of the weight matrix are rounded one after the other. The error of each goes into the columns that are
    still to be rounded, in the proportions in which they cancel it best for the inputs that were seen: those of the
    quantized model, in which all earlier layers are rounded already. What is minimised is the squared error of the
    output, for the weights as they are stored, with the input's scales multiplied in.

    It differs from the paper as follows. The second moments are taken around the mean, since a constant error needs no
    weights: the bias takes it, ``b + (W - W_q) E[q]``. Several scales are tried, and each row (head, layer: what
    shares a scale) keeps the best one; ``power_of_two`` scales stay. Rounding to nearest competes, so that none gets
    worse on the step's images, damping included. The weights of an input that does not vary in them are rounded to
    nearest: the paper sets them to 0, which is right for inputs that are always 0.

    With ``weight_groups`` the multipliers are chosen for each scale that is tried, before the columns are rounded:
    those with the least squared error of rounding to nearest, in the measure in which GPTQ counts that of a column.

    A layer stays as it is if its sums would no longer fit into 32 bits.

    Source: Frantar et al., "GPTQ: Accurate Post-Training Quantization for Generative Pre-trained Transformers", 2022
    (arXiv 2210.17323), with the columns in the order of decreasing second moments ("act-order" in the authors' code).
    """

    settings: GptqSettings

    def repair_layer(self, layer: LayerInputs) -> None:
        linear = layer.linear
        scale = None if linear.input_scale is None else linear.input_scale.double()
        seen = moments((q for _, q in layer.batches()), scale, width=linear.float_weight.shape[1])
        weight, bias = (tensor.double() for tensor in linear.effective())
        found = solve(linear, weight if scale is None else weight * scale, seen.second, self.settings.damping)
        rounded = (found.codes - found.params.zero_point) * found.params.scale.double()
        mean = seen.mean if scale is None else seen.mean * scale
        left = weight - (rounded if scale is None else rounded / scale)
        before = linear.state, linear.weight.params
        fitted = fits(layer)
        linear.revise(layer.params, codes=found.codes, weight_params=found.params, bias=bias + left @ mean)
        if fitted and not fits(layer):
            linear.state, linear.weight.params = before


def fits(layer: LayerInputs) -> bool:
    """Whether the layer's sums fit into 32 bits; those of a float input have no such limit."""
    return layer.params is None or layer.linear.integer_form(layer.params).fits


def moments(batches: Iterable[Value], scale: Tensor | None, width: int) -> Moments:
    """Those of inputs ``[..., in]`` divided by ``scale`` ``[in]``, over images and tokens.

    Products are computed in the type of the inputs, and added up in float64.
    """
    shift: Tensor | None = None
    for value in batches:
        rows = real(value).reshape(-1, width)
        rows = rows if scale is None else rows / scale.to(rows.dtype)
        if shift is None:  # near the mean, so that little cancels below
            shift, count = rows.mean(0), 0
            first, second = torch.zeros_like(shift.double()), shift.new_zeros(width, width).double()
        rows = rows - shift
        first += rows.sum(0, dtype=torch.float64)
        second += (rows.t() @ rows).double()
        count += len(rows)
    assert shift is not None
    offset = first / count
    return Moments(shift.double() + offset, second / count - offset[:, None] * offset)


def solve(linear: QuantLinear, weight: Tensor, second: Tensor, damping: float) -> Solution:
    """The best integers for float64 weights ``[out, in]``, all inputs' scales multiplied in."""
    params = linear.weight.require_params()
    nearest = round_to_nearest(linear, weight)
    if not 0 < float(second.diagonal().sum()) < torch.inf:  # the images say nothing, or too large numbers
        return Solution(nearest, params, weight.new_zeros(len(weight)))
    order = second.diagonal().argsort(descending=True, stable=True)
    factor, damped = factorize(second[order][:, order], damping)
    ordered, nearest = weight[:, order], nearest[:, order]
    left = ordered - (nearest - params.zero_point) * params.scale
    best = Solution(nearest, params, shared(linear, (left @ damped * left).sum(1)))
    movable = linear.weight.require_config().quantization_method != "power_of_two"
    tiny = torch.finfo(torch.float32).tiny
    for change in FACTORS if movable else (1.0,):
        trial = replace(params, scale=(params.scale * change).clamp(min=tiny))
        chosen = None if not linear.weight.group else column_multipliers(linear, weight, trial.scale, factor, order)
        codes, errors = round_columns(ordered, factor, trial, chosen)
        best = better(best, Solution(codes, trial, shared(linear, errors)))
    return replace(best, codes=best.codes[:, order.argsort()])


def round_to_nearest(linear: QuantLinear, weight: Tensor) -> Tensor:
    """The codes nearest to float64 weights ``[out, in]``, as :meth:`QuantLinear.fold` chooses them."""
    params, limit, group = linear.weight.require_params(), linear.weight.limit, linear.weight.group
    if not group:
        return quantize(weight, params)
    scale = params.scale.double()
    return quantize_grouped(weight, scale, best_multipliers(weight, scale, limit, group), limit, group)


def column_multipliers(linear: QuantLinear, weight: Tensor, scale: Tensor, factor: Tensor, order: Tensor) -> Tensor:
    """One multiplier per weight ``[out, in]``, the columns in ``order``; the groups are neighbours without it.

    An error ``e`` of a column adds ``(e / u)^2`` to the squared error of the output, ``u`` the diagonal of ``factor``.
    """
    importance = factor.diagonal()[order.argsort()].square().reciprocal()
    limit, group = linear.weight.limit, linear.weight.group
    chosen = best_multipliers(weight, scale.double(), limit, group, importance)
    return spread(chosen, group, weight.shape[1])[:, order]


def shared(linear: QuantLinear, errors: Tensor) -> Tensor:
    """The error of all rows that share a scale with each row: ``[out]``, or ``[1]`` for one scale for all."""
    layout = linear.weight.layout
    if layout.dim is None:
        return errors.sum(0, keepdim=True)
    return errors.reshape(-1, layout.group).sum(1).repeat_interleave(layout.group)


def better(a: Solution, b: Solution) -> Solution:
    """For each row the solution with the smaller error."""
    takes = b.errors < a.errors
    rows = takes[:, None]
    scale = torch.where(rows.reshape(a.params.scale.shape), b.params.scale, a.params.scale)
    return Solution(
        torch.where(rows, b.codes, a.codes), replace(a.params, scale=scale), torch.where(takes, b.errors, a.errors)
    )


def factorize(second: Tensor, damping: float) -> tuple[Tensor, Tensor]:
    """Upper triangular ``U`` with ``U^T U`` the inverse of the damped second moments, and these; all ``[in, in]``.

    The damping is a share of the mean of the diagonal, which is added to the diagonal. It grows until the matrix is
    positive definite, which fewer images than inputs do not make it.
    """
    level = float(second.diagonal().mean())
    eye = torch.eye(len(second), dtype=second.dtype, device=second.device)
    while True:
        damped = second + damping * level * eye
        lower, info = torch.linalg.cholesky_ex(damped.flip(0, 1))
        if not int(info):
            # with H = V V^T, V upper triangular, U is the inverse of V: no inverse of H is needed
            return torch.linalg.solve_triangular(lower.flip(0, 1), eye, upper=True), damped
        damping *= DAMPING_STEP


def round_columns(
    weight: Tensor, factor: Tensor, params: QuantParams, multipliers: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """GPTQ of weights ``[out, in]``, from the first column to the last: codes ``[out, in]`` and errors ``[out]``.

    ``factor`` is that of :func:`factorize`. ``multipliers`` ``[out, in]`` are those of the weights' groups, which the
    codes are multiples of. The errors are squared errors of the outputs with the damped moments.
    """
    columns = weight.t().contiguous()  # a column is in one piece of memory
    codes, errors = torch.empty_like(columns), torch.empty_like(columns)
    scale, zero = (t.double().reshape(-1) for t in (params.scale, params.zero_point))
    each = columns.new_ones(len(columns), 1) if multipliers is None else multipliers.t().contiguous()
    finest = 1 if multipliers is None else MAX_MULTIPLIER
    low, high = -(-params.qmin // finest), params.qmax // finest

    def visit(start: int, end: int) -> None:
        """Round some columns; halves instead of blocks, so that most of the work is large matrix products."""
        if end - start == 1:
            steps = columns[start] / (scale * each[start])
            codes[start] = steps.round_().add_(zero).clamp_(low, high).mul_(each[start])
            errors[start] = (columns[start] - (codes[start] - zero) * scale) / factor[start, start]
            return
        middle = (start + end) // 2
        visit(start, middle)
        columns[middle:end] -= factor[start:middle, middle:end].t() @ errors[start:middle]
        visit(middle, end)

    visit(0, len(columns))
    return codes.t(), errors.square().sum(0)
