"""What every point loses, alone and in the chain.

*Isolated*: only this point is quantized, and the SQNR is that of the model's output. The float model's input of every
block is kept, so a point's run starts at its own block; the blocks before it are never computed again.

*Cumulative*: everything is quantized, and the SQNR is that of the point's own tensor, the chain up to it included.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from vitquant.architectures.model import QuantModel
from vitquant.arguments import require_count, require_kind
from vitquant.config import QuantConfig
from vitquant.data import ImagesLike, model_batches, open_images
from vitquant.layers import Point, QuantLinear, hooked, only
from vitquant.layers.graph import Stage
from vitquant.layers.layer import entered
from vitquant.layers.linear import WeightPoint
from vitquant.layers.point import Hook
from vitquant.layers.undisturbed import undisturbed
from vitquant.layers.view import timed
from vitquant.measure.meters import MetricsMeter
from vitquant.measure.outliers import Outlier, RangeMeter, outlier_of
from vitquant.numerics.quantized import Value, real
from vitquant.numerics.sqnr import SqnrMeter
from vitquant.progress import track
from vitquant.results import PointMetrics


@dataclass(frozen=True)
class PointProfile:
    """One row of a profile. The SQNRs are ``None`` for a point that stays float."""

    name: str
    config: QuantConfig | None
    active: bool
    shape: tuple[int, ...] | None
    sqnr_isolated_db: float | None
    sqnr_cumulative_db: float | None
    metrics: PointMetrics | None


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
    """Accumulates a profile batch by batch."""

    def __init__(self, model: QuantModel) -> None:
        model.require_calibrated()
        self.model, self.stages = model, measured_stages(model)
        self.points = model.point_modules()
        reached = {point.name for stage in self.stages for point in stage.points()}
        measured = {name: p for name, p in self.points.items() if p.active and name in reached}
        self.isolated = {name: SqnrMeter() for name in measured}
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

    def add(self, pixels: Tensor) -> None:
        """Take in one batch of images, ``uint8 [B, C, h, w]``."""
        self.images += len(pixels)
        with entered(self.model, pixels):
            inputs = self.chain(pixels)
            for index, stage in enumerate(self.stages):
                for point in stage.points():
                    if point.active:
                        self._isolate(point, index, inputs)

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
        def hook(point: Point, _: Tensor, after: Value) -> None:
            if point.active:
                self.cumulative[point.name].add(reference.pop(point.name), real(after))

        return hook

    def _isolate(self, point: Point, index: int, inputs: list[Tensor]) -> None:
        """Quantize one point alone, from the float input of its stage to the output."""
        meter = self.metrics.get(point.name)
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
        rows = [
            PointProfile(
                name=name,
                config=point.config,
                active=point.active,
                shape=point.shape,
                sqnr_isolated_db=self.isolated[name].db if name in self.isolated else None,
                sqnr_cumulative_db=self.cumulative[name].db if name in self.cumulative else None,
                metrics=self.metrics[name].result() if name in self.metrics else None,
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
def profile(model: QuantModel, images: ImagesLike, *, limit: int | None = None, batch_size: int = 8) -> ModelProfile:
    """Measure the isolated and the cumulative error of every point of a calibrated model.

    Points with ``enable_profiler`` also get the metrics of :class:`PointMetrics`; points that the main output does not
    depend on get none. The cost is about half a forward
    for each active point.

    Args:
        model: calibrated; its mode is the same afterwards.
        images: as for :func:`vitquant.quantize`.
        limit: measure on at most so many images.
        batch_size: images in one forward.

    Raises:
        LifecycleError: an active point was never observed, or another thread calibrates the model.
        OutOfMemoryError: naming the point, and the batch size that was too large.
    """
    require_kind(model, QuantModel, "model")
    require_count(batch_size, "batch_size")
    source = open_images(images, model.preprocessing, limit=limit, ignore_labels=True)
    total = source.batch_count(batch_size)
    profiler = Profiler(model)
    with torch.no_grad():
        for batch in track(model_batches(source, batch_size), "profiling", total):
            profiler.add(batch.pixels.to(model.device))
    return profiler.result()


def measured_stages(model: QuantModel) -> tuple[Stage, ...]:
    """The stages of the forward up to the last one that has points: the logits, or the final norm without a head."""
    stages = model.graph.stages
    last = max(index for index, stage in enumerate(stages) if stage.points())
    return stages[: last + 1]


def keep_in(seen: dict[str, Tensor]) -> Hook:
    """A hook that notes what each point passed on."""

    def hook(point: Point, _: Tensor, after: Value) -> None:
        seen[point.name] = real(after)

    return hook


def measured(stage: Stage, point: Point, x: Tensor, meter: MetricsMeter) -> Value:
    """Run a stage and feed the meter with the point's own tensor and the time of its layer."""
    owner = owner_of(stage, point)
    seen: list[tuple[Tensor, Tensor]] = []
    with timed(owner) as clock, hooked([point], lambda _, a, b: seen.append((a, real(b)))):
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
