"""What a repair step is, and what it is given."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from vitquant.calibration.repair.stream import Stream
from vitquant.config import RepairSettings
from vitquant.layers import Point, QuantLinear, points_of
from vitquant.layers.graph import Step, follow, graph_of
from vitquant.numerics.affine import QuantParams
from vitquant.numerics.quantized import QuantizedTensor, Value, real


class RepairStep:
    """A method that changes the scales, biases and integer weights of a calibrated model.

    The blocks come in the order of computation. Of each, :meth:`repair_block` is called first, then
    :meth:`repair_layer` for each of its linear layers, in order. What a method changes is in effect in everything that
    is computed after it: the quantized inputs that later layers and blocks get contain the earlier repairs. A method
    overrides one of the two, or both.

    A step gives layers other tensors, and does not write into those that they have: if anything fails, or is
    interrupted, the model gets its earlier tensors back. Gradients are off; ``torch.enable_grad()`` turns them on for
    a step's own tensors.
    """

    gains_on_its_images: ClassVar[bool] = True
    """Whether a loss on the images that it uses is worth a warning."""

    def __init__(self, settings: RepairSettings) -> None:
        self.settings = settings

    def repair_block(self, block: GraphBlock) -> None:
        """Change anything in the block."""

    def repair_layer(self, layer: LayerInputs) -> None:
        """Change one linear layer with integer weights: :meth:`QuantLinear.revise`.

        Layers whose weights stay in floating point are left out, and so are layers that the model uses at several
        places, since no place has all their inputs.
        """


@dataclass(frozen=True, eq=False)
class LayerInputs:
    """A linear layer with integer weights, and what reaches it."""

    linear: QuantLinear
    step: Step
    exact: Stream
    rounded: Stream

    @property
    def params(self) -> QuantParams | None:
        """The quantization parameters of the input, for :meth:`QuantLinear.revise`; ``None`` if it is float."""
        first = next(self.rounded.inputs_of(self.linear, self.step))
        return first.params if isinstance(first, QuantizedTensor) else None

    def batches(self) -> Iterator[tuple[Tensor, Value]]:
        """Batch by batch: the input in the float model, ``[..., in]``, and the same in the quantized model.

        The second contains all earlier repairs; ``real()`` gives its numbers.
        """
        exact, rounded = (stream.inputs_of(self.linear, self.step) for stream in (self.exact, self.rounded))
        for x, q in zip(exact, rounded, strict=True):
            yield real(x), q


@dataclass(frozen=True, eq=False)
class GraphBlock:
    """Neighbouring steps of the graph that start from one value, ``source``, and end with one.

    ``start`` and ``end`` are positions in the graph. ``name`` is the module that the steps belong to, such as
    ``blocks.3``; steps of the model itself are named by the first and the last.
    """

    name: str
    start: int
    end: int
    source: Step | None
    exact: Stream
    rounded: Stream

    @property
    def steps(self) -> tuple[Step, ...]:
        """The steps of the block, in order."""
        return self.rounded.graph.steps[self.start : self.end]

    @property
    def points(self) -> list[Point]:
        """The points of the block, in order."""
        return [point for step in self.steps for point in points_of(step.layer)]

    def linears(self) -> Iterator[tuple[int, Step, QuantLinear]]:
        """The linear layers with integer weights that belong to one step alone, with its position in the graph."""
        everywhere = graph_of(self.rounded.model).steps
        uses = [module for step in everywhere for module in step.layer.modules() if isinstance(module, QuantLinear)]
        for position, step in enumerate(self.steps, start=self.start):
            for module in step.layer.modules():
                if isinstance(module, QuantLinear) and module.weight.active and uses.count(module) == 1:
                    yield position, step, module

    def batches(self) -> Iterator[tuple[Tensor, Value]]:
        """Batch by batch: the block's input in the float model, and the same in the quantized model.

        They can be read in :meth:`RepairStep.repair_block`, as often as needed. The first block gets images.
        """
        for x, q in zip(self.exact.values(self.source), self.rounded.values(self.source), strict=True):
            yield real(x), q

    def exact_output(self, x: Tensor) -> Tensor:
        """What the float model gives at the end of the block for one of its inputs."""
        return real(self._run(self.exact, x))

    def rounded_output(self, q: Value) -> Value:
        """What the quantized model, as it is now, gives at the end of the block for one of its inputs."""
        return self._run(self.rounded, q)

    def _run(self, stream: Stream, x: Value) -> Value:
        with stream.computing():
            values = follow(self.steps, {self.source: x}, lambda step, *inputs: step.layer(*inputs))
        return values[self.steps[-1]]

    def rescale(self, point: Point, params: QuantParams) -> None:
        """Give a point of the block other quantization parameters, of the shapes that it has.

        The linear layers that read the point are folded again, from their float weights: steps that change scales
        come before those that change weights and biases. Q and K with scales per channel are paired (their product
        is one constant per head): change both.
        """
        graph = graph_of(self.rounded.model)
        before = graph.params()
        point.params = params
        after = graph.params()
        for step in graph.steps:
            if isinstance(step.layer, QuantLinear) and not same(before[step.inputs[0]], after[step.inputs[0]]):
                step.layer.fold(after[step.inputs[0]])


def same(a: QuantParams | None, b: QuantParams | None) -> bool:
    """Whether two sets of parameters quantize alike."""
    if a is None or b is None:
        return a is b
    if (a.qmin, a.qmax, a.scale.shape) != (b.qmin, b.qmax, b.scale.shape):
        return False
    return torch.equal(a.scale, b.scale) and torch.equal(a.zero_point, b.zero_point)
