"""``--fail-under``: a command fails if the quality of the quantized model is below a limit, for use in CI."""

from __future__ import annotations

import argparse
import math
from typing import TYPE_CHECKING

from vitquant.errors import ConfigError, QualityError
from vitquant.results import IDENTICAL_DB

if TYPE_CHECKING:
    from vitquant.adapters.adapt import FloatModel
    from vitquant.data import ImagesLike
    from vitquant.results import Evaluation


def add_quality_options(parser: argparse.ArgumentParser) -> None:
    """Limits for the integer program, or for the simulated model if there is no program."""
    about = "exit with code 1 if a result is below its limit; results are still written"
    limits = parser.add_argument_group("limits", about)
    limits.add_argument("--fail-under", type=decibels, metavar="DB", help="minimum SQNR of the output")
    limits.add_argument("--fail-under-top1", type=percent, metavar="PERCENT", help="minimum top-1 accuracy")


def decibels(text: str) -> float:
    """A finite number."""
    value = float(text)
    if not math.isfinite(value):
        raise argparse.ArgumentTypeError(f"{value} is not a finite number")
    return value


def percent(text: str) -> float:
    """A number from 0 to 100."""
    value = float(text)
    if not 0 <= value <= 100:
        raise argparse.ArgumentTypeError(f"{value:g} is not between 0 and 100")
    return value


def require_answerable(args: argparse.Namespace, model: FloatModel, images: ImagesLike) -> None:
    """Check before the long computation that a limit on top-1 accuracy can be evaluated.

    Raises:
        ConfigError: the model has no classes, or the images have no labels or their labels are ignored.
        DataError: there are no images.
    """
    if args.fail_under_top1 is None:
        return
    from vitquant.data import open_images

    if getattr(args, "ignore_labels", False):
        raise unanswerable("--ignore-labels is set")
    if model.vit.spec.num_classes == 0:
        raise unanswerable("the model has no classes")
    if next(open_images(images, model.preprocessing).batches(1)).labels is None:
        raise unanswerable("the images have no labels")


def unanswerable(reason: str) -> ConfigError:
    """The error for a limit on an accuracy that is not computed."""
    return ConfigError(f"top-1 accuracy is not available: {reason}", where="--fail-under-top1", fix="omit it")


def require_quality(found: Evaluation, args: argparse.Namespace) -> None:
    """Compare the result with the limits.

    Raises:
        QualityError: the result is below a limit.
        ConfigError: there is no top-1 accuracy.
    """
    simulated = found.integer is None
    sqnr, top1 = (
        (found.sqnr_db, found.quantized_top1) if found.integer is None else (found.integer.sqnr_db, found.integer.top1)
    )
    if sqnr >= IDENTICAL_DB:
        sqnr = math.inf
    if args.fail_under_top1 is not None and top1 is None:
        raise unanswerable("the images have no labels")
    limits = [
        ("--fail-under", "SQNR", "dB", sqnr, args.fail_under),
        ("--fail-under-top1", "top-1 accuracy", "%", top1, args.fail_under_top1),
    ]
    for option, name, unit, value, limit in limits:
        if limit is not None and not (value is not None and value >= limit):  # NaN must fail as well
            raise QualityError(
                f"the {name} of the {'simulated model' if simulated else 'integer program'} is below the limit",
                where=option,
                got=f"{value:.6g} {unit}",
                expected=f"at least {limit:.6g} {unit}",
            )
