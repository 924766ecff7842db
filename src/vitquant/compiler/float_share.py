"""The points that a configuration leaves in floating point, and their share of the model's multiplications.

Depends on the settings and the graph only, so it is computed before calibration.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from vitquant.architectures.model import QuantModel
from vitquant.compiler.deployability import source_of, verdicts
from vitquant.errors import DeployabilityError
from vitquant.layers import AttentionScores, Point, QuantLinear, QuantPatchEmbed, WeightedSum
from vitquant.layers.graph import Step
from vitquant.results import float_phrase


@dataclass(frozen=True)
class MatrixProduct:
    """A matrix product: its multiplications per image, and the points of its operands."""

    name: str
    multiplications: int
    operands: tuple[str, ...]


@dataclass(frozen=True)
class FloatShare:
    """Points and matrix products in floating point, and their share of all multiplications, 0 to 1."""

    points: tuple[str, ...]
    products: tuple[str, ...]
    share: float

    def __str__(self) -> str:
        return float_phrase(self.points, self.share)


def products(model: QuantModel) -> Iterator[MatrixProduct]:
    """All matrix products of a model."""
    graph = model.graph
    shapes = graph.shapes(model.preprocessing.shape)
    for step in graph.steps:
        layer, given = step.layer, [shapes[source] for source in step.inputs]
        if isinstance(layer, QuantPatchEmbed):  # the pixels are already integers
            rows, columns = layer.linear.float_weight.shape
            yield MatrixProduct(layer.label, shapes[step][0] * rows * columns, (layer.linear.weight.name,))
        elif isinstance(layer, QuantLinear):
            rows, columns = layer.float_weight.shape
            tokens = math.prod(given[0][:-1])
            yield MatrixProduct(layer.layer_name, tokens * rows * columns, (*operands(step), layer.weight.name))
        elif isinstance(layer, AttentionScores):
            yield MatrixProduct(layer.name, math.prod(shapes[step]) * given[0][1] // layer.num_heads, operands(step))
        elif isinstance(layer, WeightedSum):
            yield MatrixProduct(layer.name, given[0][1] * given[0][2] * given[1][1], operands(step))


def operands(step: Step) -> tuple[str, ...]:
    """The points of the operands of a step."""
    found = (source_of(source) for source in step.inputs)
    return tuple(source.layer.name for source in found if source is not None and isinstance(source.layer, Point))


def float_share(model: QuantModel) -> FloatShare:
    """The points and products that the settings of a model leave in floating point.

    A point stays in floating point if integer execution needs it to be quantized and it is not. Outputs of linear
    layers that are requantized at another point do not count. A matrix product is float if one of its operands is.
    """
    every = list(products(model))
    kept = tuple(verdict.point for verdict in verdicts(model, sized=False) if verdict.stays_float)
    in_float = [product for product in every if not set(product.operands).isdisjoint(kept)]
    total = sum(product.multiplications for product in every)
    return FloatShare(kept, tuple(p.name for p in in_float), sum(p.multiplications for p in in_float) / total)


def require_integers(model: QuantModel) -> None:
    """Check that the settings leave nothing in floating point.

    Raises:
        DeployabilityError: points stay in floating point; the message gives their share of the multiplications.
    """
    found = float_share(model)
    if found.points:
        raise DeployabilityError(
            str(found),
            where="strict",
            expected="integer arithmetic at every point",
            fix="add settings for these points (`vitquant check` suggests some), or omit strict",
        )
