"""What integers will do at each point, and which settings only a simulation can follow.

Works on the settings and the graph of a model, calibrated or not.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from vitquant.architectures.model import QuantModel
from vitquant.config import QuantConfig
from vitquant.config.catalogue import section_of
from vitquant.errors import DeployabilityError
from vitquant.layers import (
    AttentionScores,
    IntSoftmax,
    MeanOf,
    MeanToken,
    Point,
    Product,
    QAct,
    QuantEmbedding,
    QuantLinear,
    QuantNorm,
    QuantPatchEmbed,
    QuantResidual,
    SelectChannels,
    SelectToken,
    SelectTokens,
    WeightedSum,
)
from vitquant.layers.graph import Graph, Step
from vitquant.layers.layer import Shape
from vitquant.layers.linear import WeightPoint
from vitquant.numerics.limits import MAX_NORM_CHANNELS

KEPT_FLOAT = "float"
"""The action at a point that stays float."""


@dataclass(frozen=True)
class Verdict:
    """What integers do at one point. ``problem`` is ``None`` where it ships; ``fix`` is what would ship."""

    point: str
    action: str
    problem: str | None = None
    fix: str | None = None
    configured: bool = True

    @property
    def ships(self) -> bool:
        """Whether integers can execute the point."""
        return self.problem is None

    @property
    def stays_float(self) -> bool:
        """Whether the point has no integers although the model's integers would need some there."""
        return self.action == KEPT_FLOAT


SOFTMAX = {
    "row": "table of exponentials; one division a row after the product with V",
    "diffusion": "table of exponentials; differences of their rounded sums; one division a row",
    "uniform": "table of exponentials; shares of the row's sum on an affine grid",
    "log2": "table of exponentials; shares rounded to powers of two",
}


def verdicts(model: QuantModel, *, sized: bool = True) -> list[Verdict]:
    """One verdict for each point, in order; ``sized``: also on what depends on the model's shape."""
    found = Deployability(model.graph, model.graph.shapes(model.preprocessing.shape) if sized else None)
    return [found.verdict(point) for point in model.point_modules().values()]


def require_deployable(model: QuantModel) -> None:
    """Refuse settings that integers cannot execute as a whole model.

    Raises:
        DeployabilityError: naming the points, the reasons and the nearest settings that ship.
    """
    found = verdicts(model)
    if not all(v.ships for v in found):
        raise refusal(found)


def refusal(found: Sequence[Verdict]) -> DeployabilityError:
    """The error about the verdicts that do not ship, of which there is at least one."""
    refused = [v for v in found if not v.ships]
    first, more = refused[0], len(refused) - 1
    names = ", ".join(v.point for v in refused[1:6]) + (", ..." if more > 5 else "")
    others = f" ({more} more: {names})" if more else ""
    return DeployabilityError(
        f"integers cannot execute this: {first.problem}{others}",
        where=first.point,
        fix=f"{first.fix}; `vitquant check` lists every point",
    )


PASSED_ON = (SelectChannels, SelectToken, SelectTokens, MeanToken)
"""Steps that leave quantized values what they are."""

SUMMED = (QuantResidual, QuantEmbedding)
"""Steps that requantize what they are given to the scale of the residual stream."""


def readers(graph: Graph, step: Step) -> Iterator[Step | None]:
    """The steps that compute with what a step gives, selections left out; ``None`` is the model's output."""
    if step in graph.outputs.values():
        yield None
    for reader in graph.consumers[step]:
        if isinstance(reader.layer, PASSED_ON):
            yield from readers(graph, reader)
        else:
            yield None if isinstance(reader.layer, MeanOf) else reader


def source_of(step: Step | None) -> Step | None:
    """The step whose integers a step passes on: the step itself, if it is no selection."""
    while step is not None and isinstance(step.layer, PASSED_ON):
        step = step.inputs[0]
    return step


@dataclass(frozen=True)
class Deployability:
    """What integers can do at the points of a graph; without ``shapes``, nothing that depends on them is judged."""

    graph: Graph
    shapes: Mapping[Step | None, Shape] | None

    def ships_alone(self, point: Point, config: QuantConfig) -> bool:
        """Whether integers can execute other settings of a point, if those of Q and K are given to both."""
        return self.verdict(point, config, paired=True).ships

    def verdict(self, point: Point, config: QuantConfig | None = None, *, paired: bool = False) -> Verdict:
        """What integers do at a point, with the settings that it has or with others.

        ``paired``: of Q and K, the other one has the same granularity.
        """
        name, own = point.name, point.config if config is None else config
        step = self.graph.step_of[point]
        if own is None or not own.output_quant_enable:
            return self.inactive(point, step)
        if isinstance(point, WeightPoint):
            return Verdict(name, weight_action(own))
        if isinstance(step.layer, SUMMED):
            return stream_verdict(name, own)
        if isinstance(step.layer, IntSoftmax):
            return Verdict(name, SOFTMAX[own.softmax])
        if isinstance(step.layer, QuantNorm) and self.shapes is not None:
            channels = self.shapes[step][-1]
            if channels > MAX_NORM_CHANNELS:
                problem = f"integer LayerNorm would overflow beyond {MAX_NORM_CHANNELS} channels, here {channels}"
                return Verdict(name, "", problem, "a model with fewer channels")
        for reader in readers(self.graph, step):
            if reader is None:
                continue
            if isinstance(reader.layer, AttentionScores):
                return self.pairing_verdict(name, own, step, reader, paired)
            if isinstance(reader.layer, Product):
                overflow = self.product_overflow(reader)
                if overflow:
                    return Verdict(name, "", overflow, f"give {section_of(name)} fewer bits")
            if isinstance(reader.layer, WeightedSum) and self.shapes is not None:
                overflow = self.sum_overflow(own, reader)
                if overflow:
                    return Verdict(name, "", overflow, f"give {section_of(name)} or intSoft fewer bits")
            if isinstance(reader.layer, QuantLinear) and not is_linear(step):
                return Verdict(name, folded_action(own, step, reader.layer))
        if point.channel_dim == 1:
            return Verdict(name, "as is, one scale" if own.calibration_mode == "layer_wise" else "one scale a head")
        return Verdict(name, output_action(own))

    def inactive(self, point: Point, step: Step) -> Verdict:
        """A point that does not round."""
        name, configured = point.name, point.config is not None
        section = section_of(name)
        if is_linear(step) and not isinstance(point, WeightPoint):
            found = list(readers(self.graph, step))
            if all(reader is None or requantizes(reader) for reader in found):
                targets = ["the logits" if r is None else section_of(points_name(r)) for r in found]
                told = f"not rounded: accumulators go straight to {enumerated(targets)}"
                return Verdict(name, told, configured=configured)
        stream = isinstance(step.layer, SUMMED)
        settings = "calibration_mode: layer_wise, bit_type: {bits: 16}" if stream else "bit_type: {bits: 8}"
        fix = "set output_quant_enable: True" if configured else f"add `{section}: {{{settings}}}`"
        return Verdict(name, KEPT_FLOAT, "it stays float", fix, configured)

    def pairing_verdict(self, name: str, own: QuantConfig, step: Step, scores: Step, paired: bool) -> Verdict:
        """Q and K: their scales must leave the sum over a head's channels as one product."""
        sides = [source_of(source) for source in scores.inputs]
        twin = next(side for side in sides if side is not step)
        assert twin is not None
        assert isinstance(twin.layer, QAct)
        assert isinstance(scores.layer, AttentionScores)
        other, told = twin.layer.config, section_of(twin.layer.name)
        if self.shapes is not None and other is not None:
            limit = self.shapes[step][-1] // scores.layer.num_heads * largest(own) * largest(other)
            if limit >= 2**31:
                pair = " or ".join(section_of(points_name(side)) for side in sides if side is not None)
                problem = f"products of Q and K could reach {limit:.3g}, beyond 32 bits"
                return Verdict(name, "", problem, f"give {pair} fewer bits")
        if own.calibration_mode != "channel_wise":
            return Verdict(name, "as is, one scale" if own.calibration_mode == "layer_wise" else "one scale a head")
        if other is not None and twin.layer.active and (paired or other.calibration_mode == "channel_wise"):
            return Verdict(name, f"paired with {told}: the product of the scales is one constant a head")
        return Verdict(
            name,
            "simulation only",
            f"a scale per channel stands inside the sum of Q and K unless {told} has one too",
            f"give both channel_wise, or {section_of(name)} head_wise",
        )

    def product_overflow(self, product: Step) -> str | None:
        """Whether the product of two activations could leave 32 bits."""
        sides = [source_of(source) for source in product.inputs]
        configs = [side.layer.config for side in sides if side is not None and isinstance(side.layer, Point)]
        limit = math.prod(largest(config) for config in configs if config is not None)
        return f"products of both could reach {limit:.3g}, beyond 32 bits" if limit >= 2**31 else None

    def sum_overflow(self, v: QuantConfig, weighted_sum: Step) -> str | None:
        """Whether the product with V could leave 32 bits."""
        softmax = weighted_sum.inputs[0]
        assert softmax is not None
        assert isinstance(softmax.layer, IntSoftmax)
        assert self.shapes is not None
        p = softmax.layer.config
        if p is None or p.softmax == "log2":  # the weights of log2 sum to at most sqrt(2) * 2^15 a row
            return None
        limit = self.shapes[softmax][-1] * largest(p) * largest(v)
        return f"products with V could reach {limit:.3g}, beyond 32 bits" if limit >= 2**31 else None


def is_linear(step: Step) -> bool:
    """Whether accumulators of a linear layer leave the step."""
    return isinstance(step.layer, QuantLinear | QuantPatchEmbed)


def requantizes(step: Step) -> bool:
    """Whether a step gives accumulators a scale of its own."""
    return isinstance(step.layer, SUMMED) or (isinstance(step.layer, QAct) and step.layer.act_module is None)


def points_name(step: Step) -> str:
    """The name of a step's point."""
    assert isinstance(step.layer, Point)
    return step.layer.name


def enumerated(names: Sequence[str]) -> str:
    """Such as ``a, b and c``."""
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def weight_action(own: QuantConfig) -> str:
    """Weights: their scales leave the sum as they are, one a row at most."""
    scales = {"layer_wise": "one scale", "channel_wise": "one scale a row", "head_wise": "one scale for a head's rows"}
    wide = "" if own.bit_type.signed and own.bit_type.bits <= 8 else "; wider than 8 bits, so products take longer"
    groups = f"; groups of {own.weight_groups} multiplied out to 8 bits" if own.weight_groups else ""
    return f"as is, {scales[own.calibration_mode]}{wide}{groups}"


def stream_verdict(name: str, own: QuantConfig) -> Verdict:
    """The residual stream must have one scale."""
    if own.calibration_mode == "layer_wise":
        return Verdict(name, "as is: both addends are requantized to the stream's scale")
    return Verdict(
        name,
        "simulation only",
        f"a {own.calibration_mode} scale would stand inside the sums of the LayerNorm after it",
        "calibration_mode: layer_wise",
    )


def largest(config: QuantConfig) -> int:
    """Largest magnitude of a code less its zero point."""
    bits = config.bit_type.bits
    return int(2 ** (bits - 1) if config.bit_type.signed else 2**bits - 1)


def folded_action(own: QuantConfig, step: Step, linear: QuantLinear) -> str:
    """The input of a linear layer."""
    made = ""
    if isinstance(step.layer, QuantNorm):
        made = "integer LayerNorm; "
    elif isinstance(step.layer, QAct) and step.layer.act_module is not None:
        source = step.inputs[0]
        assert source is not None
        assert isinstance(source.layer, QuantLinear)
        made = f"table from {section_of(source.layer.weight.name).removesuffix('.weight')}'s codes; "
    if own.calibration_mode == "layer_wise":
        return f"{made}as is, one scale"
    target = section_of(linear.weight.name).removesuffix(".weight")
    return f"{made}{own.calibration_mode} scales folded into the weights of {target}"


def output_action(own: QuantConfig) -> str:
    """An output that is requantized with one multiplier a channel at most."""
    scales = {"layer_wise": "as is, one scale", "channel_wise": "one scale a channel", "head_wise": "one scale a head"}
    return f"{scales[own.calibration_mode]}, at the end of the product"
