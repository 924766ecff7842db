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

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from vitquant.architectures.model import QuantModel
from vitquant.layers import MeanToken, Point, QAct, SelectChannels, SelectToken, SelectTokens, only, points_of
from vitquant.layers.graph import Graph, Stage, Step, follow
from vitquant.layers.linear import WeightPoint
from vitquant.numerics.quantized import real
from vitquant.numerics.sqnr import SqnrMeter, energy

DRAWS = 8
"""Backward passes per image."""
SEED = 0


class Sensitivity:
    """Estimates the isolated SQNRs of points, batch by batch.

    The backward pass goes stage by stage, and computes each stage again: memory holds the tensors of one stage, and the
    inputs of the others.

    Args:
        model: calibrated.
        stages: its stages, from the pixels to the output.
        points: those to estimate, by name.
        draws: random vectors per image. The relative standard deviation of an error energy is about
            ``sqrt(2 / (draws * images))`` if all images contribute alike: 0.5 dB with 8 draws and 16 images.
    """

    def __init__(
        self, model: QuantModel, stages: Sequence[Stage], points: Mapping[str, Point], *, draws: int = DRAWS
    ) -> None:
        self.model, self.stages, self.draws = model, stages, draws
        self.meters = {name: SqnrMeter() for name in points}
        self.generator = torch.Generator(device="cpu").manual_seed(SEED)

    def add(self, inputs: Sequence[Tensor]) -> None:
        """Take in one batch: the float input of every stage, and the output. Call it inside ``entered``."""
        *starts, output = inputs
        gradients = self.draw(output)
        # A layer can be called in several places. Its errors add up before they are squared.
        rows = torch.zeros(self.draws, len(output), dtype=torch.float64, device=output.device)
        products = {name: rows.clone() for name in self.meters}
        for stage, x in zip(reversed(self.stages), reversed(starts), strict=True):
            gradients = self.back(stage, x, gradients, products)
        signal = energy(output)
        for name, meter in self.meters.items():
            meter.signal += signal
            meter.noise += float(products[name].square().sum()) / self.draws

    def draw(self, output: Tensor) -> list[Tensor]:
        """Random signs of the output's shape, per draw.

        They are drawn image by image, so they do not depend on the batch size.
        """
        size = self.draws, *output.shape[1:]
        signs = [torch.randint(2, size, generator=self.generator, dtype=torch.int8, device="cpu") for _ in output]
        return [(2 * s - 1).to(output) for s in torch.stack(signs, 1)]

    def back(self, stage: Stage, x: Tensor, gradients: list[Tensor], products: Mapping[str, Tensor]) -> list[Tensor]:
        """From the gradients at a stage's result, per draw, to those at its input ``x``.

        The inner products of gradient and error are added to those of the stage's points, ``[draws, images]`` each.
        """
        with only([], self.model), torch.enable_grad():
            values = follow(stage.steps, {stage.source: x if stage.source is None else tracked(x)}, tracked_step)
        errors = [
            (point.name, values[step], self.error(point, step, values))
            for step in stage.steps
            for point in points_of(step.layer)
            if point.name in self.meters
        ]
        targets = [tensor for _, tensor, _ in errors]
        if stage.source is not None:  # nothing before the first stage needs a gradient
            targets.append(values[stage.source])
        if not targets:  # the first stage has no point to estimate
            return []
        found: list[Tensor] = []
        for index, gradient in enumerate(gradients):
            last = index + 1 == len(gradients)
            parts = torch.autograd.grad(values[stage.steps[-1]], targets, gradient, retain_graph=not last)
            for (name, _, error), part in zip(errors, parts, strict=False):
                products[name][index] += torch.linalg.vecdot(part.flatten(1), error.flatten(1)).double()
            found.append(parts[-1])
        return found

    def error(self, point: Point, step: Step, values: Mapping[Step | None, Tensor]) -> Tensor:
        """The error of a step's result if only this point is quantized; that of weights is one of their layer."""
        with only([point], self.model):
            rounded = real(step.layer(*(values[source].detach() for source in step.inputs)))
        return rounded - values[step].detach()


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
