"""Which linear layers make a tensor and read it, with nothing between that a rewrite of their weights would change."""

from __future__ import annotations

from collections.abc import Sequence

from vitquant.layers import QAct, QuantLinear, SelectChannels
from vitquant.layers.graph import Graph, Step


def passes(step: Step) -> bool:
    """Whether a step only rounds what it reads."""
    return isinstance(step.layer, QAct) and step.layer.act_module is None


def rewritable(graph: Graph, step: Step) -> bool:
    """Whether a step is a linear layer that the model uses at this place only."""
    return isinstance(step.layer, QuantLinear) and sum(other.layer is step.layer for other in graph.steps) == 1


def maker(graph: Graph, step: Step | None) -> tuple[QuantLinear, slice] | None:
    """The linear layer whose rows make what a step gives, which nothing else reads; ``None`` if there is none."""
    parts: list[SelectChannels] = []
    while step is not None and step not in graph.outputs.values():
        readers = graph.consumers[step]
        selected = {(r.layer.index, r.layer.count) for r in readers if isinstance(r.layer, SelectChannels)}
        if len(readers) > 1 and len(selected) < len(readers):  # something else reads all of it, or the same part
            return None
        if isinstance(step.layer, QuantLinear):
            if not rewritable(graph, step) or len(parts) > 1:
                return None
            width = len(step.layer.float_weight)
            return step.layer, parts[0].part(width) if parts else slice(0, width)
        if isinstance(step.layer, SelectChannels):
            parts.append(step.layer)
        elif not passes(step):
            return None
        step = step.inputs[0]
    return None


def readers(graph: Graph, step: Step) -> Sequence[QuantLinear] | None:
    """The linear layers that read what a step gives, if nothing else does."""
    found: list[QuantLinear] = []
    if step in graph.outputs.values():
        return None
    for reader in graph.consumers[step]:
        if passes(reader):
            behind = readers(graph, reader)
            if behind is None:
                return None
            found.extend(behind)
        elif isinstance(reader.layer, QuantLinear) and rewritable(graph, reader):
            found.append(reader.layer)
        else:
            return None
    return found
