"""What every point loses, alone and in the chain.

*Isolated*: only this point is quantized, and the SQNR is that of the model's output. Most of these are estimated
(:mod:`vitquant.measure.sensitivity`); those of the worst points, and of any others on request, are exact: the model is
run with this point quantized. The float model's input of every block is kept, so a point's run starts at its own block.

*Cumulative*: everything is quantized, and the SQNR is that of the point's own tensor, the chain up to it included.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor, nn

from vitquant.architectures.model import QuantModel
from vitquant.arguments import require_count, require_kind, shown
from vitquant.config import QuantConfig
from vitquant.config.pattern import Pattern
from vitquant.data import ImagesLike, model_batches, open_images
from vitquant.errors import ConfigError
from vitquant.layers import Point, QuantLinear, hooked, only
from vitquant.layers.graph import Stage
from vitquant.layers.layer import entered
from vitquant.layers.linear import WeightPoint
from vitquant.layers.point import Hook
from vitquant.layers.undisturbed import undisturbed
from vitquant.layers.view import timed
from vitquant.measure.meters import MetricsMeter
from vitquant.measure.outliers import Outlier, RangeMeter, outlier_of
from vitquant.measure.sensitivity import DRAWS, Sensitivity, rounded_again
from vitquant.numerics.quantized import Value, real
from vitquant.numerics.sqnr import SqnrMeter
from vitquant.progress import track
from vitquant.results import PointMetrics

Exact: TypeAlias = bool | str | Sequence[str]
"""Which isolated SQNRs are exact: ``True`` or ``"all"``, or the names or patterns of further points."""
WORST = 5
"""Number of points with the lowest SQNR, all of which are exact."""
KEPT_BYTES = 256 * 2**20
"""Memory for float inputs of stages that exact figures start from; what is beyond it is computed again."""


@dataclass(frozen=True)
class PointProfile:
    """One row of a profile. The SQNRs are ``None`` for a point that stays float.

    If ``estimated``, the isolated SQNR is a first-order estimate. The cumulative one is always exact.
    """

    name: str
    config: QuantConfig | None
    active: bool
    shape: tuple[int, ...] | None
    sqnr_isolated_db: float | None
    sqnr_cumulative_db: float | None
    metrics: PointMetrics | None
    estimated: bool = False


@dataclass(frozen=True)
class ModelProfile:
    """The profile of a model: its points in order, and the SQNR of its output with everything quantized.

    ``sqnr_db`` is that of the logits, or of all tokens after the final norm where there is no head. ``outliers`` are
    the points whose range a few values take up.
    """

    points: tuple[PointProfile, ...]
    sqnr_db: float
    images: int
    outliers: tuple[Outlier, ...] = ()

    def worst(self, count: int = 5) -> list[PointProfile]:
        """The points whose quantization alone costs the output most."""
        measured = [p for p in self.points if p.sqnr_isolated_db is not None]
        return sorted(measured, key=lambda p: p.sqnr_isolated_db or 0.0)[:count]


class Profiler:
    """Accumulates a profile batch by batch.

    Args:
        model: calibrated.
        exact: the points whose isolated SQNR is measured by running the model; that of the others is estimated.
        draws: as for :class:`Sensitivity`.
    """

    def __init__(self, model: QuantModel, exact: Collection[str] = (), draws: int = DRAWS) -> None:
        model.require_calibrated()
        self.model, self.stages = model, measured_stages(model)
        self.points = model.point_modules()
        reached = {point.name for stage in self.stages for point in stage.points()}
        measured = {name: p for name, p in self.points.items() if p.active and name in reached}
        self.isolated = {name: SqnrMeter() for name in measured if name in exact}
        rest = {name: point for name, point in measured.items() if name not in exact}
        self.sensitivity = Sensitivity(model, self.stages, rest, draws=draws)
        self.cumulative = {name: SqnrMeter() for name in measured}
        self.metrics = {
            name: MetricsMeter(p.params) for name, p in measured.items() if p.require_config().enable_profiler
        }
        self.ranges = {
            name: RangeMeter(p.params, channel_dim=p.channel_dim)
            for name, p in measured.items()
            if p.params is not None and not isinstance(p, WeightPoint)
        }
        self.output = SqnrMeter()
        self.images = 0
        self.kept: list[list[Tensor]] | None = []
        """The float inputs of all stages and the output, per batch, unless they take more than :data:`KEPT_BYTES`."""
        self.kept_bytes = 0

    def add(self, pixels: Tensor) -> None:
        """Take in one batch of images, ``uint8 [B, C, h, w]``."""
        self.images += len(pixels)
        with entered(self.model, pixels):
            inputs = self.chain(pixels)
            for index, stage in enumerate(self.stages):
                for point in stage.points():
                    if point.name in self.isolated:
                        self._isolate(point, index, inputs, self.metrics.get(point.name))
                    elif point.name in self.metrics:
                        with only([point], self.model):
                            measured(stage, point, inputs[index], self.metrics[point.name])
            if self.sensitivity.points:
                self.sensitivity.add(inputs)
            self.keep(inputs)

    def keep(self, inputs: list[Tensor]) -> None:
        """Keep a batch for :meth:`add_exact`, as long as there is room."""
        size = sum(x.nbytes for x in inputs)
        if self.kept is not None and self.kept_bytes + size <= KEPT_BYTES:
            self.kept.append(inputs)
            self.kept_bytes += size
        else:
            self.kept = None

    def replace(self, names: Collection[str]) -> None:
        """Drop the estimates of these points, to measure them by :meth:`add_exact`."""
        for name in names:
            self.sensitivity.forget(name)
            self.isolated[name] = SqnrMeter()

    def add_exact(self, batches: Iterable[Tensor], names: Collection[str]) -> None:
        """Measure the isolated error of these points on the batches that :meth:`add` has taken in.

        ``batches`` are their pixels, which are read if the float inputs of the stages could not be kept.
        """
        kept = map(self.float_inputs, batches) if self.kept is None else iter(self.kept)
        for inputs in kept:
            with entered(self.model, inputs[0]):
                for index, stage in enumerate(self.stages):
                    for point in stage.points():
                        if point.name in names:
                            self._isolate(point, index, inputs)

    def float_inputs(self, pixels: Tensor) -> list[Tensor]:
        """The float input of every stage, and the output."""
        inputs = [pixels.to(self.model.device)]
        with entered(self.model, pixels), only([], self.model):
            for stage in self.stages:
                inputs.append(real(stage.run(inputs[-1])))
        return inputs

    def chain(self, pixels: Tensor) -> list[Tensor]:
        """Run the float and the quantized chain side by side; returns the float input of every stage and the output."""
        exact, inputs = pixels, [pixels]
        rounded: Value = pixels
        for stage in self.stages:
            reference: dict[str, Tensor] = {}
            points = stage.points()
            with only([], self.model), hooked(points, keep_in(reference)):
                exact = real(stage.run(exact))
            for name in self.ranges.keys() & reference.keys():
                self.ranges[name].add(reference[name])
            with only(list(self.points.values()), self.model), hooked(points, self._compare(reference)):
                rounded = stage.run(rounded)
            inputs.append(exact)
        self.output.add(exact, real(rounded))
        return inputs

    def _compare(self, reference: dict[str, Tensor]) -> Hook:
        def hook(point: Point, _: object, after: Value) -> None:
            if point.active:
                self.cumulative[point.name].add(reference.pop(point.name), real(after))

        return hook

    def _isolate(self, point: Point, index: int, inputs: list[Tensor], meter: MetricsMeter | None = None) -> None:
        """Quantize one point alone, from the float input of its stage to the output."""
        x: Value
        with only([point], self.model):
            if meter is None:
                x = self.stages[index].run(inputs[index])
            else:
                x = measured(self.stages[index], point, inputs[index], meter)
            for stage in self.stages[index + 1 :]:
                x = stage.run(x)
        self.isolated[point.name].add(inputs[-1], real(x))

    def result(self) -> ModelProfile:
        """The profile of all batches so far."""
        estimated = {name: self.sensitivity.db(name) for name in self.sensitivity.points}
        isolated = {name: meter.db for name, meter in self.isolated.items()} | estimated
        rows = [
            PointProfile(
                name=name,
                config=point.config,
                active=point.active,
                shape=point.shape,
                sqnr_isolated_db=isolated.get(name),
                sqnr_cumulative_db=self.cumulative[name].db if name in self.cumulative else None,
                metrics=self.metrics[name].result() if name in self.metrics else None,
                estimated=name in estimated,
            )
            for name, point in self.points.items()
        ]
        return ModelProfile(tuple(rows), self.output.db, self.images, tuple(self.outliers()))

    def outliers(self) -> Iterator[Outlier]:
        """The points with outliers: activations as observed, and weights."""
        meters = dict(self.ranges)
        for module in self.model.modules():
            if isinstance(module, QuantLinear) and module.weight.active:
                meter = meters[module.weight.name] = RangeMeter(module.weight.require_params(), channel_dim=1)
                meter.add(module.folded_weights()[0].unsqueeze(0))
        for name, point in self.points.items():
            found = outlier_of(name, point.require_config(), meters[name]) if name in meters else None
            if found is not None:
                yield found


@undisturbed
def profile(
    model: QuantModel,
    images: ImagesLike,
    *,
    limit: int | None = None,
    batch_size: int = 8,
    exact: Exact = (),
    draws: int = DRAWS,
) -> ModelProfile:
    """Measure the isolated and the cumulative error of every point of a calibrated model.

    The isolated SQNR of most points is a first-order estimate (:mod:`vitquant.measure.sensitivity`). It is exact, from
    a run of the model, for the five points with the lowest SQNR, for points whose error the estimate does not
    cover (a mean over tokens reads them), and for those in ``exact``. :attr:`PointProfile.estimated` tells which it is.
    The estimate is the same in every run. It costs about ``draws + 4`` forwards, an exact figure about half a forward.

    Points with ``enable_profiler`` also get the metrics of :class:`PointMetrics`; points that the main output does not
    depend on get none.

    Args:
        model: calibrated; its mode is the same afterwards.
        images: as for :func:`vitquant.quantize`. Those that can be iterated only once are kept in memory.
        limit: measure on at most so many images.
        batch_size: images in one forward.
        exact: names or patterns of points, such as ``["blocks.0.*"]``, whose isolated SQNR is exact; ``True`` or
            ``"all"`` for all points.
        draws: random vectors per image for the estimate; more of them reduce its random error, in proportion to the
            square root.

    Raises:
        LifecycleError: an active point was never observed, or another thread calibrates the model.
        ConfigError: a pattern in ``exact`` is malformed, or matches no point.
        OutOfMemoryError: naming the point, and the batch size that was too large.
    """
    require_kind(model, QuantModel, "model")
    require_count(batch_size, "batch_size")
    require_count(draws, "draws")
    names = exact_points(model, exact)
    source = open_images(images, model.preprocessing, limit=limit, ignore_labels=True)
    total = source.batch_count(batch_size)
    profiler = Profiler(model, names, draws)
    kept: list[Tensor] = []
    with torch.no_grad():
        for batch in track(model_batches(source, batch_size), "profiling", total):
            profiler.add(batch.pixels.to(model.device))
            if not source.repeatable:
                kept.append(batch.pixels)
        while worst := {row.name for row in profiler.result().worst(WORST) if row.estimated}:
            again = (batch.pixels for batch in model_batches(source, batch_size)) if source.repeatable else iter(kept)
            profiler.replace(worst)
            profiler.add_exact(again, worst)
    return profiler.result()


def exact_points(model: QuantModel, exact: Exact) -> set[str]:
    """The names of the points whose isolated SQNR is to be exact: those asked for, and those that no estimate covers.

    Raises:
        ConfigError: a pattern is malformed, or matches no point.
    """
    points = model.point_modules()
    if exact is True or (isinstance(exact, str) and exact == "all"):
        return set(points)
    found = rounded_again(model.graph.choose())
    for pattern in patterns_of(exact):
        matched = set(filter(Pattern.parse(pattern).matches, points))
        if not matched:
            raise ConfigError(
                "no point of the model matches", where="exact", got=pattern, expected="a point or pattern"
            )
        found |= matched
    return found


def patterns_of(exact: Exact) -> Sequence[str]:
    """The patterns in the argument ``exact``.

    Raises:
        ConfigError: it is something else.
    """
    if exact is False:
        return ()
    given = (exact,) if isinstance(exact, str) else exact
    if isinstance(given, list | tuple) and all(isinstance(pattern, str) for pattern in given):
        return given
    expected = 'True, "all", or a list of names and patterns'
    raise ConfigError("bad value", where="exact", got=shown(exact), expected=expected)


def measured_stages(model: QuantModel) -> tuple[Stage, ...]:
    """The stages of the forward up to the last one that has points: the logits, or the final norm without a head."""
    stages = model.graph.stages
    last = max(index for index, stage in enumerate(stages) if stage.points())
    return stages[: last + 1]


def keep_in(seen: dict[str, Tensor]) -> Hook:
    """A hook that notes what each point passed on."""

    def hook(point: Point, _: object, after: Value) -> None:
        seen[point.name] = real(after)

    return hook


def measured(stage: Stage, point: Point, x: Tensor, meter: MetricsMeter) -> Value:
    """Run a stage and feed the meter with the point's own tensor and the time of its layer."""
    owner = owner_of(stage, point)
    seen: list[tuple[Tensor, Tensor]] = []
    with timed(owner) as clock, hooked([point], lambda _, a, b: seen.append((a(), real(b)))):
        y = stage.run(x)
    tensors = owner.folded_weights() if isinstance(owner, QuantLinear) else seen[0]
    meter.add(*tensors, seconds=clock.seconds, images=len(x))
    return y


def owner_of(stage: Stage, point: Point) -> nn.Module:
    """The layer whose forward a point belongs to: a weight's linear layer, else the point itself."""
    if not isinstance(point, WeightPoint):
        return point
    linears = [m for step in stage.steps for m in step.layer.modules() if isinstance(m, QuantLinear)]
    return next(linear for linear in linears if linear.weight is point)
