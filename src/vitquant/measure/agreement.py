"""Simulation and integers side by side, point by point."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor

from vitquant.architectures.quant_vit import QuantViT
from vitquant.layers import IntSoftmax, Point, points_of, tapped
from vitquant.program.program import IntegerProgram

Values: TypeAlias = Callable[[Tensor, Collection[str]], dict[str, Tensor]]
"""Images ``uint8`` and names to the codes of these values: what :meth:`Reference.run` does."""


@dataclass(frozen=True)
class Divergence:
    """A point at which the codes of two executions differ: by how much at most, and the share that differs."""

    point: str
    largest: int
    share: float

    def __str__(self) -> str:
        return f"{self.point}: {self.share:.2%} of the codes differ, by up to {self.largest}"


@torch.no_grad()
def divergences(model: QuantViT, program: IntegerProgram, run: Values, images: Tensor) -> tuple[list[Divergence], int]:
    """Compare the codes at every point that both have, in order.

    Args:
        model: calibrated, in mode ``QUANTIZED``.
        program: made from it.
        run: an executor of the program.
        images: pixels, ``uint8 [B, C, h, w]``.

    Returns:
        The points that differ, and how many were compared.
    """
    known = model.point_modules()
    names = [name for name in program.values() if name in known]
    integer = run(images, names)
    found: dict[str, Divergence] = {}

    def compare(point: Point, _: Tensor, after: Tensor) -> None:
        if point.name in integer:
            codes = integer.pop(point.name).to(after.device)
            difference = (codes_at(point, after) - codes.reshape(after.shape).long()).abs()
            if bool(difference.any()):
                share = float((difference > 0).double().mean())
                found[point.name] = Divergence(point.name, int(difference.max()), share)

    with tapped(points_of(model), compare):
        model(model.preprocessing.normalize(images.to(model.device)).to(model.dtype))
    return [found[name] for name in names if name in found], len(names)


def codes_at(point: Point, x: Tensor) -> Tensor:
    """The codes behind the real numbers that a point passed on, int64."""
    if isinstance(point, IntSoftmax):
        codes = point.weights(x).long()
        return codes if point.params is None else codes + point.params.zero_point.long()
    grid = point.require_params()
    return (x / grid.scale).round().long() + grid.zero_point.long()
