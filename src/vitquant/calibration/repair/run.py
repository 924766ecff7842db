"""Repair steps, one after the other, each through the whole model."""

from __future__ import annotations

import time
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from vitquant.calibration.calibrate import unchanged_if_it_fails
from vitquant.calibration.repair.step import GraphBlock, LayerInputs, RepairStep
from vitquant.calibration.repair.stream import Stream
from vitquant.data.sample import evenly_spaced
from vitquant.layers import Point, QuantLinear, points_of
from vitquant.layers.graph import Stage, graph_of
from vitquant.layers.layer import Layer
from vitquant.layers.memory import memory_named
from vitquant.layers.plain_torch import plain_torch
from vitquant.layers.usage import using
from vitquant.numerics.quantized import real
from vitquant.numerics.sqnr import SqnrMeter
from vitquant.progress import track

WORSE_DB = 0.5
"""A smaller loss of SQNR is not significant: every change of the integers moves it a little, up or down."""


class RepairWarning(UserWarning):
    """A repair step made the output of the model worse."""


@dataclass(frozen=True)
class RepairRecord:
    """What one repair step did.

    ``changed`` names the layers that it changed. The two SQNRs are those of the model's output
    before and after the step, on the images that the step used: on other images the gain is usually smaller.
    """

    step: str
    settings: dict[str, Any]
    images: int
    changed: tuple[str, ...]
    sqnr_before_db: float
    sqnr_after_db: float
    seconds: float

    def __str__(self) -> str:
        layers, images = (
            f"{count} {noun}{'' if count == 1 else 's'}"
            for count, noun in ((len(self.changed), "layer"), (self.images, "image"))
        )
        gain = f"{self.sqnr_before_db:.2f} dB before, {self.sqnr_after_db:.2f} dB after"
        return f"{self.step} changed {layers}; SQNR of the output on its {images}: {gain}"


def repair_images(
    model: Layer, steps: Sequence[RepairStep], images: Tensor, *, batch_size: int = 8
) -> tuple[RepairRecord, ...]:
    """Run repair steps on a calibrated model.

    Memory, in addition to that of a forward: for each image that a step uses, the values between two blocks, in float
    and quantized, and inside a block those that later steps of the block read. For a ViT of width D these are at most 6
    D bytes per token between blocks and 26 D inside them, whatever its depth: 164 MB for 64 images and DINOv2 ViT-S/14
    at 224. They are in main memory, also if the model computes on another device.

    Args:
        model: calibrated, with its float weights.
        steps: in order.
        images: inputs of the model, such as ``uint8 [N, C, h, w]``, in main memory.
        batch_size: images in one forward.

    Returns:
        A record per step.

    Warns:
        RepairWarning: a step lowered the SQNR of the output on its images.

    Raises:
        LifecycleError: the model is not calibrated, or was loaded without its float weights, or another thread
            computes with it.
        OutOfMemoryError: naming the layer.

    Whatever is raised, the model is as it was before.
    """
    with using(points_of(model), alone=True), plain_torch(), unchanged_if_it_fails(model):
        linears = [m for m in model.modules() if isinstance(m, QuantLinear)]
        for linear in linears:
            linear.require_float(linear.reference)
        records = []
        for step in steps:
            before, start = snapshot(model), time.perf_counter()
            chosen = images[evenly_spaced(len(images), step.settings.images)]
            with memory_named("images", count=batch_size):
                sqnr_before, sqnr_after = run_step(model, step, chosen.split(batch_size))
            changed = tuple(name for name, tensors in snapshot(model).items() if differ(tensors, before[name]))
            records.append(
                RepairRecord(
                    step=step.settings.name,
                    settings=step.settings.model_dump(),
                    images=len(chosen),
                    changed=changed,
                    sqnr_before_db=sqnr_before.db,
                    sqnr_after_db=sqnr_after.db,
                    seconds=time.perf_counter() - start,
                )
            )
        for step, record in zip(steps, records, strict=True):
            if step.gains_on_its_images and record.sqnr_after_db < record.sqnr_before_db - WORSE_DB:
                message = f"{record}. Fix: give the step more images, or remove it from repair."
                warnings.warn(message, RepairWarning, stacklevel=3)
    return tuple(records)


def run_step(model: Layer, step: RepairStep, batches: Sequence[Tensor]) -> tuple[SqnrMeter, SqnrMeter]:
    """Run one step through the model up to its main result; returns the SQNR of that before and after the step."""
    graph, points, device = graph_of(model).choose(), points_of(model), next(model.buffers()).device
    original, exact, rounded = (Stream(model, graph, p, batches, device) for p in (points, [], points))
    original.advance(len(graph.steps))
    for block in track(list(blocks(exact, rounded)), step.settings.name):
        step.repair_block(block)
        for position, at, linear in block.linears():
            exact.advance(position)
            rounded.advance(position)
            step.repair_layer(LayerInputs(linear, at, exact, rounded))
        exact.advance(block.end)
        rounded.advance(block.end)
    before, after = SqnrMeter(), SqnrMeter()
    for meter, stream in ((before, original), (after, rounded)):
        for reference, output in zip(exact.values(graph.output), stream.values(graph.output), strict=True):
            meter.add(real(reference), real(output))
    return before, after


def blocks(exact: Stream, rounded: Stream) -> Iterator[GraphBlock]:
    """The model in blocks: neighbouring stages of the graph whose steps belong to the same module."""
    start, end, merged = 0, 0, list[Stage]()
    stages = rounded.graph.stages
    for stage, following in zip(stages, (*stages[1:], None), strict=True):
        merged.append(stage)
        end += len(stage.steps)
        if following is None or owner(following) != owner(stage):
            first, last = merged[0].steps[0], merged[-1].steps[-1]
            alone = first.name if first is last else f"{first.name} to {last.name}"
            yield GraphBlock(owner(stage) or alone, start, end, merged[0].source, exact, rounded)
            start, merged = end, []


def owner(stage: Stage) -> str:
    """The innermost module that all steps of a stage belong to, by its name; that of the model itself is empty."""
    paths = [step.name.split(".")[:-1] for step in stage.steps]
    shared = 0
    while all(len(path) > shared and path[shared] == paths[0][shared] for path in paths):
        shared += 1
    return ".".join(paths[0][:shared])


def snapshot(model: Layer) -> dict[str, list[Tensor]]:
    """The tensors that a step may change, by the name of the layer."""
    found: dict[str, list[Tensor]] = {}
    for module in model.modules():
        if isinstance(module, Point) and module.params is not None:
            name = module.name.removesuffix(".weight").removesuffix(".output")  # the points of a linear layer
            found.setdefault(name, []).extend((module.params.scale, module.params.zero_point))
        elif isinstance(module, QuantLinear) and module.weight.active:
            found.setdefault(module.layer_name, []).extend((module.weight_codes, module.bias_hat))
    return found


def differ(a: Sequence[Tensor], b: Sequence[Tensor]) -> bool:
    """Whether any tensor has changed."""
    return any(not torch.equal(x, y) for x, y in zip(a, b, strict=True))
