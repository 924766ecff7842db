"""Centring: keys and values without their mean."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor

from vitquant.calibration.rewrite.rewrite import Rewrite
from vitquant.calibration.rewrite.wiring import maker, readers
from vitquant.layers import AttentionScores, Point, QuantLinear, WeightedSum, watch_float
from vitquant.layers.graph import graph_of
from vitquant.layers.layer import Composite


class Centring(Rewrite):
    """Subtract from keys and values their mean over images and tokens, channel by channel.

    A constant in the keys adds the same number to all scores of a row, which softmax ignores. The probabilities of a
    row add up to one, so a constant in the values is one in the attention's output, and goes into the bias of the
    linear layers that read it. Keys, values and scores become smaller, and so do their errors.

    Source: the static form of the smoothed keys of Zhang et al., "SageAttention", 2024 (arXiv 2410.02367), section 4.2.
    """

    def measure(self, model: Composite, batches: Sequence[Tensor]) -> dict[str, Tensor]:
        made = [linear for linear, _, _ in moved(model)]
        points = {linear.output.name: linear.output for linear in made}
        sums, counts = {name: torch.zeros((), dtype=torch.float64) for name in points}, dict.fromkeys(points, 0)

        def add(point: Point, x: Tensor) -> None:
            name, rows = point.name, x.reshape(-1, x.shape[-1])
            sums[name] = sums[name].to(rows.device) + rows.sum(0, dtype=torch.float64)
            counts[name] += len(rows)

        watch_float(model, list(points.values()), batches, add)
        means = {name: sums[name] / counts[name] for name in points}
        kept: dict[str, Tensor] = {}
        for linear, part, _ in moved(model):
            mean = means[linear.output.name]
            kept.setdefault(linear.layer_name, torch.zeros_like(mean))[part] = mean[part]
        return {name: mean.float() for name, mean in kept.items()}

    def apply(self, model: Composite, measured: Mapping[str, Tensor]) -> None:
        for linear, part, following in moved(model):
            weight, bias = (tensor.double() for tensor in linear.effective())
            mean = measured[linear.layer_name][part].to(bias)
            bias[part] -= mean
            linear.rewrite(weight, bias)
            for reader in following:
                weight, bias = (tensor.double() for tensor in reader.effective())
                reader.rewrite(weight, bias + weight @ mean)


def moved(model: Composite) -> Iterator[tuple[QuantLinear, slice, Sequence[QuantLinear]]]:
    """The linear layers that make keys and values, with their rows, and those that read the products with values."""
    graph = graph_of(model)
    for step in graph.steps:
        if isinstance(step.layer, AttentionScores | WeightedSum):
            found = maker(graph, step.inputs[1])
            following = readers(graph, step) if isinstance(step.layer, WeightedSum) else ()
            if found is not None and following is not None:
                yield (*found, following)
