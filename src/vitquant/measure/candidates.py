"""Other settings of points, tried on a calibrated model without changing it.

A candidate is a *twin* of a point: a copy with other settings, whose quantization parameters come from its own
observer. Twins watch one float pass over the calibration images; those that need the same statistics share an observer,
so that more bit widths cost nothing. The twin of weights belongs to a copy of their layer, rounded anew.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

from torch import Tensor, nn

from vitquant.architectures.model import QuantModel
from vitquant.config import QuantConfig
from vitquant.config.candidates import changed
from vitquant.layers import (
    AttentionScores,
    IntSoftmax,
    Point,
    QAct,
    QuantLinear,
    QuantPatchEmbed,
    only,
    points_of,
    watch_float,
)
from vitquant.layers.graph import Stage, Step, follow
from vitquant.layers.layer import Layer
from vitquant.layers.linear import WeightPoint
from vitquant.measure.sensitivity import SEED, RoundedPoint, RoundedWeights, Sensitivity, Trial
from vitquant.numerics.quantized import Value, real
from vitquant.numerics.sqnr import energy
from vitquant.observers import Observer

M = TypeVar("M", bound=nn.Module)


def shallow(module: M) -> M:
    """A copy that shares tensors and submodules with the original, and whose attributes can be set."""
    own = copy.copy(module)
    for name in ("_modules", "_buffers", "_parameters"):
        own.__dict__[name] = dict(module.__dict__[name])
    return own


def twin_of(point: Point, config: QuantConfig) -> Point:
    """A copy of a point with other settings, not calibrated."""
    twin = shallow(point)
    twin.config = config
    twin.layout = twin.layout_for(point.head_dim)
    twin.params = twin.observer = None
    if isinstance(twin, IntSoftmax):
        twin.observes = config.softmax == "uniform"
    return twin


def with_point(layer: Layer, point: Point, twin: Point) -> Layer:
    """A copy of a layer in which a twin takes the place of a point; for the point itself the twin."""
    if layer is point:
        return twin
    own = shallow(layer)
    for name, part in layer.named_children():
        if isinstance(part, Layer) and point in part.modules():
            own._modules[name] = with_point(part, point, twin)
    return own


@dataclass
class Observations:
    """The observers that the twins of activations share: one per point, granularity and kind of observer."""

    observers: dict[tuple[str, object], Observer] = field(default_factory=dict)

    def of(self, twin: Point) -> Observer:
        """The observer of a twin."""
        made = twin.new_observer()
        return self.observers.setdefault((twin.name, repr((type(made), sorted(made.settings.items())))), made)

    def watch(self, model: QuantModel, batches: Iterable[Tensor]) -> None:
        """Let all observers see the float tensors of their points."""
        by_point: dict[str, list[Observer]] = {}
        for (name, _), observer in self.observers.items():
            by_point.setdefault(name, []).append(observer)

        def see(point: Point, x: Tensor) -> None:
            with point.named():
                for observer in by_point[point.name]:
                    observer.observe(x)

        points = [point for name, point in model.point_modules().items() if name in by_point]
        watch_float(model, points, (pixels.to(model.device) for pixels in batches), see)


class CandidateSensitivity(Sensitivity):
    """Estimates what other settings of points cost, beside those that the model is calibrated for.

    The first trial of a point is the one that the model has; the others are ``candidates``, in their order.

    Args:
        model, stages, draws: as for :class:`Sensitivity`.
        candidates: the other settings of each point that is estimated.
        seed: of the random vectors.
    """

    def __init__(
        self,
        model: QuantModel,
        stages: Sequence[Stage],
        candidates: Mapping[str, Sequence[QuantConfig]],
        *,
        draws: int,
        seed: int = SEED,
    ) -> None:
        points = model.point_modules()
        super().__init__(model, stages, {name: points[name] for name in candidates}, draws=draws)
        self.generator.manual_seed(seed)
        self.candidates, self.twins, self.seen = candidates, dict[str, list[Point]](), Observations()
        graph = model.graph
        self.inputs = graph.params()
        self.partners = dict(pairs(model))
        for name, configs in candidates.items():
            self.twins[name] = [twin_of(points[name], config) for config in configs]
            for twin in self.twins[name]:
                if twin.observes and not isinstance(twin, WeightPoint):
                    for watched in (twin, *self.companions(twin)):
                        watched.observer = self.seen.of(watched)

    def companions(self, twin: Point) -> list[Point]:
        """For a scale per channel at Q or K: a twin of the other one that has it too, with which it is paired."""
        partner = self.partners.get(twin.name)
        if partner is None or twin.require_config().calibration_mode != "channel_wise" or not partner[1].active:
            return []
        return [twin_of(partner[1], changed(partner[1].require_config(), mode="channel_wise"))]

    def calibrate(self, batches: Iterable[Tensor]) -> None:
        """Give the twins of activations their parameters, from one float pass over the calibration images."""
        if self.seen.observers:
            self.seen.watch(self.model, batches)
        for twins in self.twins.values():
            for twin in twins:
                if twin.observer is None:
                    continue
                others = self.companions(twin)
                for other in others:
                    other.observer = self.seen.of(other)
                if others:
                    scores, _ = self.partners[twin.name]
                    sides = (twin, others[0]) if is_query(scores, twin) else (others[0], twin)
                    scores.layer.pair(*sides)
                else:
                    twin.finish()

    def trials(self, step: Step, point: Point) -> Sequence[Trial]:
        return [*super().trials(step, point), *(self.trial(step, point, twin) for twin in self.twins[point.name])]

    def trial(self, step: Step, point: Point, twin: Point) -> Trial:
        """A candidate at a step."""
        layer, acting = self.replaced(step, point, twin)
        if isinstance(layer, QuantLinear) and acting is layer.weight:
            return RoundedWeights(layer, self.short)
        return RoundedPoint(layer, acting)

    def replaced(self, step: Step, point: Point, twin: Point) -> tuple[Layer, Point]:
        """A step's layer with a twin in the place of a point, and the twin; for weights, both after rounding."""
        if not isinstance(twin, WeightPoint):
            return with_point(step.layer, point, twin), twin
        twin = shallow(twin)  # rounding gives it parameters; the next batch begins without
        layer = with_point(step.layer, point, twin)
        if isinstance(layer, QuantPatchEmbed):
            layer.linear.fold(layer.pixel_params())
        else:
            assert isinstance(layer, QuantLinear)
            layer.fold(self.inputs[step.inputs[0]])
        return layer, twin

    def exact(self, inputs: Sequence[Tensor]) -> dict[str, list[float]]:
        """The energy of the output's error for every trial of every point, measured by running the model.

        ``inputs`` are those of :meth:`add`. Call it inside ``entered``.
        """
        found: dict[str, list[float]] = {name: [] for name in self.points}
        with only([], self.model):
            for index, stage in enumerate(self.stages):
                for step in stage.steps:
                    for point in points_of(step.layer):
                        if point.name in found and not found[point.name]:
                            ways = [(step.layer, point)]
                            ways += [self.replaced(step, point, twin) for twin in self.twins[point.name]]
                            found[point.name] = [self.run(index, inputs, step, *way) for way in ways]
        return found

    def run(self, index: int, inputs: Sequence[Tensor], step: Step, layer: Layer, point: Point) -> float:
        """The energy of the output's error with a layer in the place of a step's, of which one point rounds."""

        def rule(each: Step, *values: Value) -> Value:
            return (layer if each.layer is step.layer else each.layer)(*values)  # type: ignore[no-any-return]

        stage = self.stages[index]
        given: dict[Step | None, Value] = {stage.source: inputs[index]}
        with only([point], layer):
            x = follow(stage.steps, given, rule)[stage.steps[-1]]
        for later in self.stages[index + 1 :]:
            x = later.run(x)
        return energy(inputs[-1] - real(x))


def pairs(model: QuantModel) -> Iterable[tuple[str, tuple[Step, Point]]]:
    """Where Q meets K: for the name of each of the two, the step and the other point."""
    for step in model.graph.steps:
        if isinstance(step.layer, AttentionScores):
            q, k = (source.layer for source in step.inputs if source is not None)
            if isinstance(q, QAct) and isinstance(k, QAct):
                yield q.name, (step, k)
                yield k.name, (step, q)


def is_query(scores: Step, point: Point) -> bool:
    """Whether a point is the first of the two that a step multiplies."""
    source = scores.inputs[0]
    return source is not None and isinstance(source.layer, Point) and source.layer.name == point.name
