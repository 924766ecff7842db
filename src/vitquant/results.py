"""What is measured of a quantized model, as plain numbers. Needs no torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

IDENTICAL_DB = 300.0
"""The SQNR of equal tensors, which is infinite: JSON has no infinity."""


@dataclass(frozen=True)
class IntegerEvaluation:
    """What an executor of the integer program gave.

    ``sqnr_db`` is against the float model. ``to_simulated_db`` is against the simulation, both outputs as integers on
    the program's scale. The rest is as in :class:`Evaluation`.
    """

    sqnr_db: float
    to_simulated_db: float
    top1: float | None
    agreement: float | None


@dataclass(frozen=True)
class Evaluation:
    """How much of the float model is left.

    ``sqnr_db`` is the SQNR of the logits (of the pooled features without a head), ``sqnr_final_norm_db`` that of all
    tokens after the final norm. ``top1`` and ``agreement`` (share of images to which both models give the same class)
    are in percent; ``top1`` is ``None`` without labels, ``agreement`` without a head. ``integer`` is there if an
    executor was given.
    """

    images: int
    sqnr_db: float
    sqnr_final_norm_db: float
    fp32_top1: float | None
    quantized_top1: float | None
    agreement: float | None
    integer: IntegerEvaluation | None = None


@dataclass(frozen=True)
class PointMetrics:
    """What one point does to its own tensor, everything before it being float.

    ``outlier_ratio`` is the largest magnitude over its 99.9th percentile; ``clipped`` the share of values outside the
    range of the integers by more than half a step; ``kl_divergence`` that of the two histograms over the tensor's
    range, in nats; ``histogram`` counts the float values in equal bins between ``low`` and ``high``; ``seconds`` is the
    time that the layer took per image.
    """

    sqnr_db: float
    mse: float
    cosine: float
    low: float
    high: float
    outlier_ratio: float
    clipped: float
    kl_divergence: float
    histogram: tuple[int, ...]
    seconds: float


@dataclass(frozen=True)
class Divergence:
    """A point at which the codes of two executions differ: by how much at most, and the share that differs."""

    point: str
    largest: int
    share: float

    def __str__(self) -> str:
        return f"{self.point}: {self.share:.2%} of the codes differ, by up to {self.largest}"


def agreement_sentence(compared: int, first: Divergence | None) -> str:
    """How far an integer program agrees with the simulation, of the points that were compared."""
    if first is not None:
        return f"The integer program first differs from the simulation at {first}."
    return f"The integer program equals the simulation at all {compared} points, to the last code."


def float_phrase(points: Sequence[str], share: float) -> str:
    """What stays in floating point, with its share of the multiplications.

    >>> float_phrase((), 0.0)
    'no point stays in floating point'
    >>> float_phrase(("head.weight", "head_dist.weight"), 0.0312)
    '2 points stay in floating point, with 3.1% of the multiplications: head.weight, head_dist.weight'
    """
    if not points:
        return "no point stays in floating point"
    count = f"{len(points)} points stay" if len(points) > 1 else "1 point stays"
    return f"{count} in floating point, with {share:.1%} of the multiplications: {first_names(points)}"


def first_names(points: Sequence[str]) -> str:
    """The first five points, and the number of further points."""
    more = len(points) - 5
    return ", ".join(points[:5]) + (f" and {more} more" if more > 0 else "")
