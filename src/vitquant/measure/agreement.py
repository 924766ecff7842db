"""Simulation and integers side by side, point by point."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import TypeAlias

import torch
from torch import Tensor

from vitquant.architectures.model import QuantModel
from vitquant.layers import Point, hooked, points_of
from vitquant.numerics.quantized import QuantizedTensor, Value, on
from vitquant.program.program import IntegerProgram
from vitquant.results import Divergence

Values: TypeAlias = Callable[[Tensor, Collection[str]], dict[str, Tensor]]
"""Images ``uint8`` and names to the codes of these values: what :meth:`Reference.run` does."""


@torch.no_grad()
def divergences(
    model: QuantModel, program: IntegerProgram, run: Values, images: Tensor
) -> tuple[list[Divergence], int]:
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

    def compare(point: Point, _: object, after: Value) -> None:
        if point.name in integer:
            expected = integer.pop(point.name)
            simulated = on(after, point.require_params()) if isinstance(after, Tensor) else after
            assert isinstance(simulated, QuantizedTensor)  # a point that rounds passes nothing else
            codes = simulated.codes
            difference = (codes.long() - expected.to(codes.device).reshape(codes.shape).long()).abs()
            if bool(difference.any()):
                share = float((difference > 0).double().mean())
                found[point.name] = Divergence(point.name, int(difference.max()), share)

    with hooked(points_of(model), compare):
        model(images.to(model.device))
    return [found[name] for name in names if name in found], len(names)
