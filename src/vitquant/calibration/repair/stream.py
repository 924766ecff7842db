"""One computation, in float or quantized, that goes through a model step by step with all its images."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from vitquant.layers import Point, QuantLinear, only
from vitquant.layers.graph import Graph, Step, follow
from vitquant.layers.layer import Layer, entered, tensor_of
from vitquant.numerics.quantized import Accumulators, QuantizedTensor, Value

Known = dict[Step | None, Value]


@dataclass(eq=False)
class Stream:
    """Where the computation stands: ``position`` steps of the graph are computed, for each batch of images.

    Only the values that later steps read are kept, in main memory, whatever device the model computes on: between two
    blocks one tensor per batch, and inside a block also those that wait for later steps of the block.

    Args:
        model: computes the steps.
        graph: the part of the model's graph that its main result depends on.
        points: those that round; none in the float computation.
        batches: inputs of the model.
        device: where to compute.
    """

    model: Layer
    graph: Graph
    points: list[Point]
    batches: Sequence[Tensor]
    device: torch.device
    position: int = 0
    known: list[Known] = field(init=False)

    def __post_init__(self) -> None:
        self.known = [{None: batch} for batch in self.batches]

    def advance(self, position: int) -> None:
        """Compute the steps before ``position`` that are not computed yet."""
        if position == self.position:
            return
        steps, later = self.graph.steps[self.position : position], self.graph.steps[position:]
        read = {source for step in later for source in step.inputs} if later else {self.graph.output}
        for number, known in enumerate(self.known):
            given = {step: moved(value, self.device) for step, value in known.items()}
            with self.computing():
                values = follow(steps, given, lambda step, *inputs: step.layer(*inputs))
            self.known[number] = {step: moved(v, torch.device("cpu")) for step, v in values.items() if step in read}
        self.position = position

    def values(self, source: Step | None) -> Iterator[Value]:
        """What a step gave in each batch."""
        for known in self.known:
            yield moved(known[source], self.device)

    def inputs_of(self, linear: QuantLinear, step: Step) -> Iterator[Value]:
        """What a linear layer gets in each batch, as the next step or inside it."""
        if step.layer is linear:
            yield from self.values(step.inputs[0])
            return
        for known in self.known:
            seen: list[Value] = []
            hook = linear.register_forward_pre_hook(lambda _, inputs, seen=seen: seen.append(inputs[0]))
            with hook, self.computing():
                step.layer(*(moved(known[source], self.device) for source in step.inputs))
            yield seen[0]

    @contextmanager
    def computing(self) -> Iterator[None]:
        """Within the block, layers compute this stream's values."""
        with only(self.points, self.model), entered(self.model):
            yield

    @property
    def nbytes(self) -> int:
        """Memory of the values that are kept."""
        tensors = [tensor_of(value) for known in self.known for value in known.values()]
        return sum(tensor.nbytes for tensor in tensors if tensor is not None)


def moved(value: Value, device: torch.device) -> Value:
    """The value with its numbers on another device. Its parameters are the points' own, and stay where these are."""
    if isinstance(value, QuantizedTensor):
        return replace(value, codes=value.codes.to(device))
    if isinstance(value, Accumulators):
        return replace(value, sums=value.sums.to(device))
    return value.to(device)
