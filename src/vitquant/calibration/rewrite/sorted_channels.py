"""Sorted channels: neighbours of the hidden layer that share a scale have about the same range."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor

from vitquant.calibration.rewrite.rewrite import Rewrite
from vitquant.calibration.rewrite.wiring import maker, readers
from vitquant.errors import ModelError
from vitquant.layers import Point, QAct, QuantLinear, watch_float
from vitquant.layers.graph import graph_of
from vitquant.layers.layer import Composite


class SortedChannels(Rewrite):
    """Put the channels between two linear layers in the order of their largest magnitude after the activation function.

    The rows of the first layer and the columns of the second are permuted alike. With ``head_wise`` scales, each group
    of neighbours has one scale: less is lost than with unsorted groups, and it holds better on other images than a
    scale per channel does.

    Source: the reordering of channels in Yuan et al., "RPTQ", 2023 (arXiv 2304.01089), section 4.1, with groups of
    equal size.
    """

    def measure(self, model: Composite, batches: Sequence[Tensor]) -> dict[str, Tensor]:
        peaks: dict[str, Tensor] = {}

        def add(point: Point, x: Tensor) -> None:
            name, peak = point.name, x.abs().reshape(-1, x.shape[-1]).amax(0)
            peaks[name] = torch.maximum(peaks[name], peak) if name in peaks else peak

        watch_float(model, [point for point, _, _ in hidden(model)], batches, add)
        return {point.name: peaks[point.name].argsort(stable=True) for point, _, _ in hidden(model)}

    def apply(self, model: Composite, measured: Mapping[str, Tensor]) -> None:
        for point, first, following in hidden(model):
            order = measured[point.name]
            if not torch.equal(order.sort().values, torch.arange(len(first.float_weight), device=order.device)):
                raise ModelError("not an order of channels", where=point.name, expected="each channel once")
            weight, bias = first.effective()
            order = order.to(weight.device)
            first.rewrite(weight[order], bias[order])
            for reader in following:
                weight, bias = reader.effective()
                reader.rewrite(weight[:, order], bias)


def hidden(model: Composite) -> Iterator[tuple[QAct, QuantLinear, Sequence[QuantLinear]]]:
    """The points after an activation function between two linear layers, with the layer before and those behind."""
    graph = graph_of(model)
    for step in graph.steps:
        if not isinstance(step.layer, QAct) or step.layer.act_module is None:
            continue
        found, following = maker(graph, step.inputs[0]), readers(graph, step)
        if found is not None and following and found[1] == slice(0, len(found[0].float_weight)):
            yield step.layer, found[0], following
