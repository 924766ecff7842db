"""The graph of a quantized module: its steps, and which of them feed which.

It is traced once from the module's own forward (by ``torch.fx``, with our layers as leaves), and is what calibration,
deployability, the compiler, both exports, the profile and the saved form read. No wiring is written down elsewhere.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from torch import nn
from torch.fx import Node, Tracer

from vitquant.errors import ModelError
from vitquant.layers.layer import Layer, Shape
from vitquant.layers.point import Point, points_of
from vitquant.numerics.affine import QuantParams
from vitquant.numerics.quantized import Value


@dataclass(frozen=True, eq=False)
class Step:
    """A layer at its place in the graph. ``inputs`` are the steps that feed it; ``None`` is the graph's own input."""

    name: str
    layer: Layer
    inputs: tuple[Step | None, ...]

    def __repr__(self) -> str:
        return f"Step({self.name})"


@dataclass(frozen=True, eq=False)
class Graph:
    """The steps in the order of computation, and the one that gives the result."""

    steps: tuple[Step, ...]
    output: Step

    @cached_property
    def consumers(self) -> Mapping[Step | None, tuple[Step, ...]]:
        """What each step feeds, in order."""
        found: dict[Step | None, list[Step]] = {step: [] for step in (None, *self.steps)}
        for step in self.steps:
            for source in dict.fromkeys(step.inputs):
                found[source].append(step)
        return {source: tuple(steps) for source, steps in found.items()}

    @cached_property
    def step_of(self) -> Mapping[Point, Step]:
        """The step that each point belongs to."""
        return {point: step for step in self.steps for point in points_of(step.layer)}

    def points(self) -> Iterator[Point]:
        """All points in the order of computation."""
        for step in self.steps:
            yield from points_of(step.layer)

    def shapes(self, image: Shape) -> dict[Step | None, Shape]:
        """The shape, without the batch, of what each step gives for an input of the shape ``image``."""
        found: dict[Step | None, Shape] = {None: image}
        for step in self.steps:
            found[step] = step.layer.shape_after(*(found[source] for source in step.inputs))
        return found

    def params(self) -> dict[Step | None, QuantParams | None]:
        """The calibrated quantization parameters of what each step gives, where it has any."""
        found: dict[Step | None, QuantParams | None] = {None: None}
        for step in self.steps:
            found[step] = step.layer.params_after(*(found[source] for source in step.inputs))
        return found

    def finish(self) -> None:
        """Turn the statistics of a calibration into quantization parameters, and fold them into the weights."""
        done: set[Layer] = set()
        for step in self.steps:
            done.update(step.layer.pair(*(source.layer for source in step.inputs if source is not None)))
        params: dict[Step | None, QuantParams | None] = {None: None}
        for step in self.steps:
            given = [params[source] for source in step.inputs]
            if step.layer not in done:
                step.layer.finish(*given)
            params[step] = step.layer.params_after(*given)

    @cached_property
    def stages(self) -> tuple[Stage, ...]:
        """The steps, cut wherever everything that follows depends on the last value alone."""
        last_use = {source: i for i, step in enumerate(self.steps) for source in step.inputs}
        stages: list[Stage] = []
        start, source = 0, None
        for i, step in enumerate(self.steps[:-1]):
            live = [s for s in (source, *self.steps[start:i]) if last_use.get(s, -1) > i]
            if not live:
                stages.append(Stage(source, self.steps[start : i + 1]))
                start, source = i + 1, step
        return (*stages, Stage(source, self.steps[start:]))


@dataclass(frozen=True, eq=False)
class Stage:
    """Neighbouring steps that start from one value, that of ``source``; the last one gives the next stage's input."""

    source: Step | None
    steps: Sequence[Step]

    def run(self, x: Value) -> Value:
        """From the stage's input to its result. Call it inside :func:`vitquant.layers.layer.entered`."""
        values: dict[Step | None, Value] = {self.source: x}
        for step in self.steps:
            values[step] = step.layer(*(values[source] for source in step.inputs))
        return values[self.steps[-1]]

    def points(self) -> list[Point]:
        """The stage's points, in order."""
        return [point for step in self.steps for point in points_of(step.layer)]


class LayerTracer(Tracer):
    """Traces through modules that are made of layers, down to the layers."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return isinstance(m, Layer) and m.is_step


def graph_of(module: nn.Module) -> Graph:
    """The graph of a module; kept, as a module's composition does not change.

    Raises:
        ModelError: its forward does something else than calling layers.
    """
    kept = module.__dict__.get("_graph")
    if kept is None or kept[0] is not module:  # a copied module has a copied attribute
        kept = module.__dict__["_graph"] = (module, trace(module))
    graph: Graph = kept[1]
    return graph


def trace(module: nn.Module) -> Graph:
    """The graph of a module, traced anew."""
    if isinstance(module, Layer) and module.is_step:
        only = Step("", module, (None,))
        return Graph((only,), only)
    layers = dict(module.named_modules())
    steps: dict[Node, Step | None] = {}
    output: Step | None = None
    for node in LayerTracer().trace(module).nodes:
        if node.op == "placeholder":
            steps[node] = None
        elif node.op == "call_module":
            layer = layers[str(node.target)]
            assert isinstance(layer, Layer)
            steps[node] = Step(str(node.target), layer, tuple(steps[source] for source in sources(node)))
        elif node.op == "output":
            output = steps[sources(node)[0]]
        else:
            raise ModelError(
                "the composition of a quantized model consists of layers only",
                where=type(module).__name__,
                got=f"{node.op} {node.target}",
                fix="make this step a vitquant.layers.layer.Layer",
            )
    assert output is not None
    return Graph(tuple(step for step in steps.values() if step is not None), output)


def sources(node: Node) -> list[Any]:
    """The nodes that a node reads, in the order of its arguments."""
    return [argument for argument in node.args if isinstance(argument, Node)]
