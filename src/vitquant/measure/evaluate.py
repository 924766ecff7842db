"""Float and quantized model side by side on the same images."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor

from vitquant.architectures.model import QuantModel
from vitquant.arguments import require_count, require_kind
from vitquant.data import ImagesLike, ImageSource, model_batches, open_images
from vitquant.errors import DataError, NumericsError
from vitquant.executors.reference import IntegerOutput
from vitquant.layers import Point, QuantNorm, hooked, only
from vitquant.layers.layer import entered
from vitquant.layers.undisturbed import undisturbed
from vitquant.numerics.affine import QuantParams
from vitquant.numerics.limits import ADDEND_LIMIT
from vitquant.numerics.quantized import Value, on, real
from vitquant.numerics.sqnr import SqnrMeter
from vitquant.progress import track
from vitquant.results import Evaluation, IntegerEvaluation

ProgramRun: TypeAlias = Callable[[Tensor], IntegerOutput]
"""Pixels, ``uint8 [B, C, h, w]``, to logits ``[B, K]`` (pooled features without a head) as integers."""

MIN_LABELLED = 10
"""Labelled images below which chance cannot be told from failure."""


class ChanceWarning(UserWarning):
    """The float model classifies no better than chance."""


@undisturbed
def evaluate(
    model: QuantModel,
    images: ImagesLike,
    *,
    limit: int | None = None,
    batch_size: int = 8,
    integers: ProgramRun | None = None,
    ignore_labels: bool = False,
) -> Evaluation:
    """Run a calibrated model in float and quantized over the images, and an executor of its integer program beside it.

    Args:
        model: calibrated.
        images: as for :func:`vitquant.open_images`; labels give top-1.
        limit: at most this many images.
        batch_size: images in one forward.
        integers: an executor of the model's integer program.
        ignore_labels: evaluate without the labels of the images.

    Warns:
        ChanceWarning: the float model's top-1 is no better than chance.

    Raises:
        LifecycleError: the model is not calibrated.
        DataError: there are no images, or the labels or the class folders are not the model's classes.
        NumericsError: one of the models gave NaN or Inf.
        OutOfMemoryError: naming the point, and the batch size that was too large.

    Whatever is raised, the model is as it was before.
    """
    require_kind(model, QuantModel, "model")
    require_count(batch_size, "batch_size")
    model.require_calibrated()
    source = open_images(images, model.preprocessing, limit=limit, ignore_labels=ignore_labels)
    check_classes(source, model)
    total = source.batch_count(batch_size)
    points = list(model.point_modules().values())
    norm_point = [point for point in model.graph.points() if isinstance(point, QuantNorm)][-1]
    logits, norm, integer, to_simulated = (SqnrMeter() for _ in range(4))
    classes: list[Classes] = []
    count = 0
    with torch.no_grad():
        for number, batch in enumerate(track(model_batches(source, batch_size), "evaluating", total), start=1):
            pixels = batch.pixels.to(model.device)
            with only([], model):
                exact_norm, output = outputs(model, norm_point, pixels)
            with only(points, model):
                rounded_norm, simulated = outputs(model, norm_point, pixels)
            exact, rounded = real(output), real(simulated)
            for y, what in ((exact, "the float model's output"), (rounded, "the model's output")):
                require_finite_output(y, what, where=f"batch {number}")
            logits.add(exact, rounded)
            norm.add(exact_norm, rounded_norm)
            count += len(batch)
            given = [exact, rounded]
            if integers is not None:
                answer = integers(pixels)
                third = answer.real().to(pixels.device)
                integer.add(exact, third)
                to_simulated.add(*on_one_scale(simulated, answer, pixels.device))
                given.append(third)
            if model.num_classes:
                labels = None if batch.labels is None else check_labels(batch.labels, model.num_classes, number)
                classes.append(Classes([t.argmax(-1).cpu() for t in given], labels))
    if not count:
        raise DataError("evaluation got no images", where="images")
    warn_of_chance([c.hits(0) for c in classes], model.num_classes)
    top1, agreement = (
        [mean_percent([getattr(c, name)(side) for c in classes]) for side in range(2 + (integers is not None))]
        for name in ("hits", "same")
    )
    return Evaluation(
        images=count,
        sqnr_db=logits.db,
        sqnr_final_norm_db=norm.db,
        fp32_top1=top1[0],
        quantized_top1=top1[1],
        agreement=agreement[1],
        integer=None if integers is None else IntegerEvaluation(integer.db, to_simulated.db, top1[2], agreement[2]),
    )


@dataclass(frozen=True)
class Classes:
    """The classes that several models gave to a batch, ``[B]`` each, the float model first; and the labels."""

    sides: list[Tensor]
    labels: Tensor | None

    def hits(self, side: int) -> Tensor | None:
        """Where a model was right."""
        return None if self.labels is None else self.sides[side] == self.labels

    def same(self, side: int) -> Tensor:
        """Where a model says what the float model says."""
        return self.sides[side] == self.sides[0]


def mean_percent(parts: list[Tensor | None]) -> float | None:
    """Share of true elements, in percent; ``None`` if there are none."""
    known = [part for part in parts if part is not None]
    return 100 * float(torch.cat(known).double().mean()) if known else None


def on_one_scale(simulated: Value, integers: IntegerOutput, device: torch.device) -> tuple[Tensor, Tensor]:
    """The simulation's and the program's logits, both as integers on the program's scale, times this scale.

    As real numbers they would differ by what float32 rounds off. Accumulators are requantized as the program does it.
    Real numbers, such as the mean of two heads, are equal to the program's where they differ by rounding alone.
    """
    codes, scale = (x.to(device) for x in (integers.codes, integers.scale))
    params = QuantParams(scale, torch.zeros_like(scale), -ADDEND_LIMIT, ADDEND_LIMIT)
    wanted = on(simulated, params).codes
    if isinstance(simulated, Tensor):
        rounding = 1 + 4 * torch.finfo(simulated.dtype).eps * wanted.abs().amax(-1, keepdim=True)
        wanted = torch.where((wanted.long() - codes).abs() <= rounding, codes, wanted)
    return wanted * scale.double(), codes * scale.double()


def outputs(model: QuantModel, norm: Point, pixels: Tensor) -> tuple[Tensor, Value]:
    """What the final norm gives, and the logits (or the pooled features, where there is no head)."""
    seen: list[Tensor] = []
    # Entered here, the model leaves it to the caller, who knows which one it is, to refuse what is not finite.
    with entered(model, pixels), hooked([norm], lambda _point, _before, after: seen.append(real(after))):
        y = model(pixels)
    return seen[0], y


def require_finite_output(y: Tensor, what: str, where: str) -> None:
    """Refuse an output that is not finite.

    Raises:
        NumericsError: it is not.
    """
    if not bool(y.isfinite().all()):
        raise NumericsError(f"{what} is not finite", where=where, fix="check the images and the weights")


def check_classes(source: ImageSource, model: QuantModel) -> None:
    """Refuse class folders that cannot be the model's classes. Without a head there are no classes to compare with.

    Raises:
        DataError: their number is not that of the model's classes.
    """
    names, expected = source.class_names, model.num_classes
    if names is None or not expected or len(names) == expected:
        return
    shown = ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")
    fix = f"give a folder with one subfolder of images for each of the {expected} classes, or ignore the labels"
    raise DataError(
        "the class folders are not the model's classes",
        where="images",
        got=f"{_counted(len(names), 'class folder')} ({shown})",
        expected=_counted(expected, "class folder"),
        fix=f"{fix} (--ignore-labels, in Python ignore_labels=True)",
    )


def check_labels(labels: Tensor, classes: int, number: int) -> Tensor:
    """The labels of batch ``number``, if the model has a class for each."""
    if bool((labels < 0).any() | (labels >= classes).any()):
        raise DataError(
            "a label is not one of the model's classes",
            where=f"batch {number}",
            got=f"{int(labels.min())} to {int(labels.max())}",
            expected=f"0 to {classes - 1}",
            fix="number the classes from 0, or ignore the labels (--ignore-labels, in Python ignore_labels=True)",
        )
    return labels


def warn_of_chance(parts: list[Tensor | None], classes: int) -> None:
    """Warn if the float model was right no more often than one that guesses; ``parts`` say where it was right.

    This takes ten labelled images, and no more hits than guessing would give plus one standard deviation.
    """
    known = [part for part in parts if part is not None]
    count = sum(map(len, known))
    if classes < 2 or count < MIN_LABELLED:
        return
    hits = sum(int(part.sum()) for part in known)
    chance = 1 / classes
    if hits > count * chance + math.sqrt(count * chance * (1 - chance)):
        return
    warnings.warn(
        f"images: the float model is right on {hits} of {count} images, where guessing among {classes} classes gives "
        f"{100 * chance:.3g} %: labels or images do not belong to this model. Fix: check the order of the classes "
        "(of class folders, that of their names), the preprocessing, and the weights.",
        ChanceWarning,
        stacklevel=3,
    )


def _counted(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
