"""A first-order estimate of every point's isolated SQNR, from a few backward passes instead of a run per point.

Let ``y`` be the float model's output, ``J`` the derivative of ``y`` with respect to the tensor at a point, and ``e``
the error that quantization makes there. The error of the output is ``J e`` to first order. For a random ``v`` of the
output's shape, with independent entries of mean 0 and variance 1,

    E <v, J e>^2 = ||J e||^2,    and    <v, J e> = <J^T v, e>.

One backward pass from ``v`` gives ``J^T v`` for all points together. ``v`` consists of +1 and -1, as in Hutchinson's
estimator of a trace (1990). Gradients have measured the sensitivity of quantized layers before: HAWQ-V2 (Dong et al.,
2020), BRECQ (Li et al., 2021). No labels are needed, and nothing is trained.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Protocol, TypeAlias

import torch
from torch import Tensor
from torch.nn import functional as F

from vitquant.architectures.model import QuantModel
from vitquant.layers import (
    MeanToken,
    Point,
    QAct,
    QuantLinear,
    SelectChannels,
    SelectToken,
    SelectTokens,
    only,
    points_of,
)
from vitquant.layers.graph import Graph, Stage, Step, follow
from vitquant.layers.layer import Layer
from vitquant.layers.linear import WeightPoint
from vitquant.measure.gradients import ShortGradients, short_type
from vitquant.numerics.quantized import real
from vitquant.numerics.sqnr import decibel, energy

DRAWS = 6
"""Backward passes per image."""
SEED = 0


class Trial(Protocol):
    """A way to quantize a point."""

    def error(self, inputs: Sequence[Tensor], exact: Tensor) -> Tensor:
        """The error of a step's result on float inputs, if only this point is quantized; ``exact`` is the result."""


@dataclass(frozen=True, eq=False)
class RoundedPoint:
    """A step's layer, or a copy of it, in which ``point`` is the one that rounds."""

    layer: Layer
    point: Point

    def error(self, inputs: Sequence[Tensor], exact: Tensor) -> Tensor:
        with only([self.point], self.layer):
            return real(self.layer(*inputs)) - exact


class RoundedWeights:
    """The integer weights of a linear layer. Their error is that of the layer's result.

    Args:
        linear: the layer, or a copy of it.
        short: a type in which matrix products are faster; the error of the weights, not the weights, is rounded to it.
    """

    def __init__(self, linear: QuantLinear, short: torch.dtype | None) -> None:
        weight, bias = linear.effective()
        self.weight, self.bias = linear.weight_hat - weight, linear.bias_hat - bias
        if short is not None:
            self.weight = self.weight.to(short)

    def error(self, inputs: Sequence[Tensor], exact: Tensor) -> Tensor:
        (x,) = inputs
        return F.linear(x.to(self.weight.dtype), self.weight).to(exact.dtype) + self.bias


class Sensitivity:
    """Estimates what quantization costs at points, batch by batch.

    The backward pass goes stage by stage and image by image, and computes each stage again: memory holds the tensors of
    one image in one stage, and the inputs of the others.

    Args:
        model: calibrated.
        stages: its stages, from the pixels to the output.
        points: those to estimate, by name.
        draws: random vectors per image. The relative standard deviation of an error energy is about
            ``sqrt(2 / (draws * images))`` if all images contribute alike: 0.6 dB with 6 draws and 16 images.
    """

    def __init__(
        self, model: QuantModel, stages: Sequence[Stage], points: Mapping[str, Point], *, draws: int = DRAWS
    ) -> None:
        self.model, self.stages, self.points, self.draws = model, stages, dict(points), draws
        self.short = short_type(next(model.buffers()).device)
        self.signal = 0.0
        self.products: dict[str, list[Tensor]] = {name: [] for name in points}
        """Per image, the inner products of gradients and errors divided by the root of the number of draws, float64
        ``[draws, trials]``: their squares sum to the energy of the output's error."""
        self.generator = torch.Generator(device="cpu").manual_seed(SEED)

    def db(self, name: str) -> float:
        """The estimated SQNR of the output, in dB, if a point is quantized alone."""
        return decibel(self.signal, sum(float(rows[:, 0].square().sum()) for rows in self.products[name]))

    def forget(self, name: str) -> None:
        """Drop the estimate of a point."""
        del self.points[name], self.products[name]

    def trials(self, step: Step, point: Point) -> Sequence[Trial]:
        """The ways to quantize a point that are estimated: the one that the model is calibrated for."""
        if isinstance(step.layer, QuantLinear) and point is step.layer.weight:
            return [RoundedWeights(step.layer, self.short)]
        return [RoundedPoint(step.layer, point)]

    def add(self, inputs: Sequence[Tensor]) -> None:
        """Take in one batch: the float input of every stage, and the output. Call it inside ``entered``."""
        *starts, output = inputs
        self.signal += energy(output)
        gradients = [self.draw(y) for y in output.split(1)]
        found: list[dict[str, Tensor]] = [{} for _ in gradients]
        with only([], self.model):
            for stage, x in zip(reversed(self.stages), reversed(starts), strict=True):
                places = [
                    (point.name, step, self.trials(step, point))
                    for step in stage.steps
                    for point in points_of(step.layer)
                    if point.name in self.products
                ]
                for i, image in enumerate(x.split(1)):  # one at a time: its tensors stay in the processor's cache
                    gradients[i] = self.back(stage, places, image, gradients[i], found[i])
        for products in found:
            for name, rows in products.items():
                self.products[name].append(rows.cpu() / math.sqrt(self.draws))

    def draw(self, output: Tensor) -> list[Tensor]:
        """Random signs of the shape of one image's output, ``[1, ...]`` each, which the batch size has no effect on."""
        size = self.draws, *output.shape
        signs = torch.randint(2, size, generator=self.generator, dtype=torch.int8, device="cpu")
        return list((2 * signs - 1).to(output))

    def back(
        self, stage: Stage, places: Sequence[Place], x: Tensor, gradients: list[Tensor], found: dict[str, Tensor]
    ) -> list[Tensor]:
        """From the gradients at a stage's result, per draw, to those at its input ``x``, for one image.

        The inner products of gradients and errors are added to those in ``found``, ``[draws, trials]``: a layer can be
        called in several places, and its errors add up before they are squared.
        """
        with torch.enable_grad(), ShortGradients(self.short) if self.short else nullcontext():
            values = follow(stage.steps, {stage.source: x if stage.source is None else tracked(x)}, tracked_step)
        targets = [values[step] for _, step, _ in places]
        if stage.source is not None:  # nothing before the first stage needs a gradient
            targets.append(values[stage.source])
        if not targets:  # the first stage has no point to estimate
            return []
        errors = [errors_of(step, trials, values) for _, step, trials in places]
        products: list[list[Tensor]] = [[] for _ in places]
        before: list[Tensor] = []
        for index, gradient in enumerate(gradients):
            last = index + 1 == len(gradients)
            parts = torch.autograd.grad(values[stage.steps[-1]], targets, gradient, retain_graph=not last)
            for rows, error, part in zip(products, errors, parts, strict=False):
                rows.append((error @ part.flatten()).double())
            before.append(parts[-1])
        for (name, _, _), rows in zip(places, products, strict=True):
            made = torch.stack(rows)
            found[name] = found[name] + made if name in found else made
        return before


Place: TypeAlias = tuple[str, Step, Sequence[Trial]]
"""A point, a step that it belongs to, and the ways to quantize it."""


def errors_of(step: Step, trials: Sequence[Trial], values: Mapping[Step | None, Tensor]) -> Tensor:
    """The errors of a step's result, a row per trial; those of weights are errors of their layer."""
    inputs, exact = [values[source].detach() for source in step.inputs], values[step].detach()
    rows = exact.new_empty(len(trials), exact.numel())
    for row, trial in zip(rows, trials, strict=True):
        row.copy_(trial.error(inputs, exact).flatten())
    return rows


def tracked_step(step: Step, *inputs: Tensor) -> Tensor:
    """The result of a step on float tensors, which gradients can be computed for."""
    y = real(step.layer(*inputs))
    return y if y.requires_grad else tracked(y)


def tracked(x: Tensor) -> Tensor:
    """A tensor of the same numbers at which a backward pass ends."""
    return x.detach().requires_grad_()


def rounded_again(graph: Graph) -> set[str]:
    """The points whose error is not theirs alone: a mean over tokens rounds it to the same integers once more.

    That second error is larger than what is left of the first one, and no derivative contains it.
    """
    found: set[str] = set()
    none: frozenset[str] = frozenset()

    def rule(step: Step, *given: frozenset[str]) -> frozenset[str]:
        active = frozenset(p.name for p in points_of(step.layer) if p.active and not isinstance(p, WeightPoint))
        passed = none.union(*given)
        if isinstance(step.layer, MeanToken):
            found.update(passed)
        elif not isinstance(step.layer, QAct | SelectChannels | SelectToken | SelectTokens):
            return active
        return active or passed

    graph.follow(none, rule)
    return found
