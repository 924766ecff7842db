"""What a rewrite is, and how rewrites are run."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from vitquant.config import StepSettings
from vitquant.errors import NumericsError
from vitquant.layers import only
from vitquant.layers.layer import AppliedRewrite, Composite
from vitquant.layers.plain_torch import plain_torch
from vitquant.numerics.quantized import real
from vitquant.numerics.sqnr import SqnrMeter

SAME_DB = 80.0
"""The outputs of the float model before and after a rewrite agree at least so far; float32 rounds at about 110 dB."""


class Rewrite(ABC):
    """A change of float weights after which the model computes the same, and loses less when it is quantized.

    It has two parts, so that it can be done again on the same float weights, without images: :meth:`measure` gives a
    few tensors, by the names of layers, and :meth:`apply` rewrites the weights with them. A rewrite gives layers other
    tensors, and does not write into those that they have.
    """

    def __init__(self, settings: StepSettings) -> None:
        self.settings = settings

    @abstractmethod
    def measure(self, model: Composite, batches: Sequence[Tensor]) -> dict[str, Tensor]:
        """What :meth:`apply` needs to know of the float model, from images ``uint8 [B, C, h, w]``.

        There are none, if the settings do not ask for ``images``.
        """

    @abstractmethod
    def apply(self, model: Composite, measured: Mapping[str, Tensor]) -> None:
        """Rewrite the float weights.

        Raises:
            ModelError: the tensors are not those of this model.
        """


def rewrite_model(model: Composite, rewrites: Sequence[Rewrite], images: Tensor, *, batch_size: int = 8) -> None:
    """Run rewrites on a model, one after the other.

    Args:
        model: with its float weights; it needs no calibration, and needs one afterwards.
        rewrites: in order.
        images: ``uint8 [N, C, h, w]``, evenly spaced ones of which are measured.
        batch_size: images in one forward.

    Raises:
        NumericsError: the float model computes something else afterwards.
    """
    images = images.to(next(model.buffers()).device)
    with torch.no_grad(), plain_torch():
        before = float_output(model, images[:batch_size])
        for rewrite in rewrites:
            measured = rewrite.measure(model, images.split(batch_size))
            rewrite.apply(model, measured)
            model.rewrites = (*model.rewrites, AppliedRewrite(rewrite.settings.name, measured))
        agreement = SqnrMeter()
        agreement.add(before, float_output(model, images[:batch_size]))
    if agreement.db < SAME_DB:
        names = ", ".join(rewrite.settings.name for rewrite in rewrites)
        got, expected = f"{agreement.db:.1f} dB", f"at least {SAME_DB:.0f} dB"
        raise NumericsError(
            "the rewritten float model computes something else", where=names, got=got, expected=expected
        )


def float_output(model: Composite, images: Tensor) -> Tensor:
    """The main output of the float model."""
    with only([], model):
        return real(model(images))
