"""The graph of a quantized module: its steps, and which of them feed which.

It is traced once from the module's own forward (by ``torch.fx``, with our layers as leaves), and is what calibration,
deployability, the compiler, both exports, the profile and the saved form read. No wiring is written down elsewhere.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeVar

from torch import nn
from torch.fx import Node, Tracer

from vitquant.errors import ConfigError, ModelError
from vitquant.layers.layer import Layer, Shape
from vitquant.layers.point import Point, points_of
from vitquant.numerics.affine import QuantParams
from vitquant.numerics.quantized import Value

T = TypeVar("T")


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
    """The steps in the order of computation, and those that give the results, by name; the first is the main one."""

    steps: tuple[Step, ...]
    outputs: Mapping[str, Step]

    @property
    def output(self) -> Step:
        """The step that gives the main result."""
        return next(iter(self.outputs.values()))

    def choose(self, names: Sequence[str] = ()) -> Graph:
        """The part of the graph that these outputs depend on; without names the main one.

        Raises:
            ConfigError: there is no such output.
        """
        for name in names:
            if name not in self.outputs:
                expected = " or ".join(self.outputs)
                raise ConfigError("the model has no such output", where="output", got=name, expected=expected)
        chosen = {name: self.outputs[name] for name in names or [*self.outputs][:1]}
        needed = set(chosen.values())
        for step in reversed(self.steps):
            if step in needed:
                needed.update(source for source in step.inputs if source is not None)
        return Graph(tuple(step for step in self.steps if step in needed), chosen)

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

    def follow(self, given: T, rule: Callable[..., T]) -> dict[Step | None, T]:
        """What ``rule`` makes of each step and of what it made of the step's inputs; ``given`` is for the input."""
        return follow(self.steps, {None: given}, rule)

    def shapes(self, image: Shape) -> dict[Step | None, Shape]:
        """The shape, without the batch, of what each step gives for an input of the shape ``image``."""
        return self.follow(image, lambda step, *shapes: step.layer.shape_after(*shapes))

    def params(self) -> dict[Step | None, QuantParams | None]:
        """The calibrated quantization parameters of what each step gives, where it has any."""
        return self.follow(None, lambda step, *params: step.layer.params_after(*params))

    def finish(self) -> None:
        """Turn the statistics of a calibration into quantization parameters, and fold them into the weights."""
        done: set[Layer] = set()
        for step in self.steps:
            done.update(step.layer.pair(*(source.layer for source in step.inputs if source is not None)))

        def finished(step: Step, *params: QuantParams | None) -> QuantParams | None:
            if step.layer not in done:
                step.layer.finish(*params)
            return step.layer.params_after(*params)

        self.follow(None, finished)

    @cached_property
    def stages(self) -> tuple[Stage, ...]:
        """The steps to the main result, cut wherever everything that follows depends on the last value alone."""
        steps = self.choose().steps
        last_use = {source: i for i, step in enumerate(steps) for source in step.inputs}
        stages: list[Stage] = []
        start, source = 0, None
        for i, step in enumerate(steps[:-1]):
            live = [s for s in (source, *steps[start:i]) if last_use.get(s, -1) > i]
            if not live:
                stages.append(Stage(source, steps[start : i + 1]))
                start, source = i + 1, step
        return (*stages, Stage(source, steps[start:]))


@dataclass(frozen=True, eq=False)
class Stage:
    """Neighbouring steps that start from one value, that of ``source``; the last one gives the next stage's input."""

    source: Step | None
    steps: Sequence[Step]

    def run(self, x: Value) -> Value:
        """From the stage's input to its result. Call it inside :func:`vitquant.layers.layer.entered`."""
        values = follow(self.steps, {self.source: x}, lambda step, *inputs: step.layer(*inputs))
        return values[self.steps[-1]]

    def points(self) -> list[Point]:
        """The stage's points, in order."""
        return [point for step in self.steps for point in points_of(step.layer)]


def follow(steps: Sequence[Step], known: dict[Step | None, T], rule: Callable[..., T]) -> dict[Step | None, T]:
    """Extend ``known`` by what ``rule`` makes of each step and of what is known of its inputs."""
    for step in steps:
        known[step] = rule(step, *(known[source] for source in step.inputs))
    return known


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
        return Graph((only,), {"output": only})
    layers = dict(module.named_modules())
    steps: dict[Node, Step | None] = {}
    outputs: dict[str, Step | None] = {}
    for node in LayerTracer().trace(module).nodes:
        if node.op == "placeholder":
            steps[node] = None
        elif node.op == "call_module":
            layer = layers[str(node.target)]
            assert isinstance(layer, Layer)
            steps[node] = Step(str(node.target), layer, tuple(steps[source] for source in sources(node)))
        elif node.op == "output":
            given = node.args[0]
            outputs = {k: steps[v] for k, v in (given if isinstance(given, dict) else {"output": given}).items()}
        else:
            raise ModelError(
                "the composition of a quantized model consists of layers only",
                where=type(module).__name__,
                got=f"{node.op} {node.target}",
                fix="make this step a vitquant.layers.layer.Layer",
            )
    made = {name: step for name, step in outputs.items() if step is not None}
    assert made, "a composition gives what a layer makes"
    return Graph(tuple(step for step in steps.values() if step is not None), made)


def sources(node: Node) -> list[Any]:
    """The nodes that a node reads, in the order of its arguments."""
    return [argument for argument in node.args if isinstance(argument, Node)]
