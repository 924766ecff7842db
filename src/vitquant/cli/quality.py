"""``--fail-under``: a command that fails where the quantized model is not good enough, for automatic checks."""

from __future__ import annotations

import argparse
import math
from typing import TYPE_CHECKING

from vitquant.errors import ConfigError, QualityError

if TYPE_CHECKING:
    from vitquant.adapters.adapt import FloatModel
    from vitquant.data import ImagesLike
    from vitquant.measure import Evaluation


def add_quality_options(parser: argparse.ArgumentParser) -> None:
    """The limits, of the integer program where there is one, else of the simulation."""
    limits = parser.add_argument_group("limits", "exit with code 1 if the result is worse; it is printed and kept")
    limits.add_argument("--fail-under", type=decibels, metavar="DB", help="least SQNR of the output")
    limits.add_argument("--fail-under-top1", type=percent, metavar="PERCENT", help="least top-1 accuracy")


def decibels(text: str) -> float:
    """An option's finite number."""
    value = float(text)
    if not math.isfinite(value):
        raise argparse.ArgumentTypeError(f"{value} is not a finite number")
    return value


def percent(text: str) -> float:
    """An option's number from 0 to 100."""
    value = float(text)
    if not 0 <= value <= 100:
        raise argparse.ArgumentTypeError(f"{value:g} is not from 0 to 100")
    return value


def require_answerable(args: argparse.Namespace, model: FloatModel, images: ImagesLike) -> None:
    """Refuse a limit of the top-1 accuracy where there will be none, before the long work.

    Raises:
        ConfigError: the model has no classes, the images have no labels, or they are left out.
        DataError: there are no images.
    """
    if args.fail_under_top1 is None:
        return
    from vitquant.data import open_images

    if getattr(args, "ignore_labels", False):
        raise unanswerable("--ignore-labels leaves them out")
    if model.vit.spec.num_classes == 0:
        raise unanswerable("the model has no classes")
    if next(open_images(images, model.preprocessing).batches(1)).labels is None:
        raise unanswerable("the images have no labels")


def unanswerable(reason: str) -> ConfigError:
    """The refusal of a limit of an accuracy that there will not be."""
    return ConfigError(f"there is no top-1 accuracy, {reason}", where="--fail-under-top1", fix="leave it out")


def require_quality(found: Evaluation, args: argparse.Namespace) -> None:
    """Hold the result against the limits.

    Raises:
        QualityError: it is worse than one of them.
        ConfigError: there is no top-1 accuracy to compare.
    """
    simulated = found.integer is None
    sqnr, top1 = (
        (found.sqnr_db, found.quantized_top1) if found.integer is None else (found.integer.sqnr_db, found.integer.top1)
    )
    if args.fail_under_top1 is not None and top1 is None:
        raise unanswerable("the images have no labels")
    limits = [
        ("--fail-under", "SQNR", "dB", sqnr, args.fail_under),
        ("--fail-under-top1", "top-1 accuracy", "%", top1, args.fail_under_top1),
    ]
    for option, name, unit, value, limit in limits:
        if limit is not None and not (value is not None and value >= limit):  # NaN must fail as well
            raise QualityError(
                f"the {name} of the {'simulated model' if simulated else 'integer program'} is under the limit",
                where=option,
                got=f"{value:.6g} {unit}",
                expected=f"at least {limit:.6g} {unit}",
            )
