"""Float and quantized model side by side on the same images."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from vitquant.data import ImagesLike, open_images
from vitquant.errors import DataError, NumericsError
from vitquant.layers import only
from vitquant.models.quant_vit import QuantViT
from vitquant.profiling.meters import SqnrMeter
from vitquant.progress import track


@dataclass(frozen=True)
class Evaluation:
    """How much of the float model is left.

    ``sqnr_db`` is the SQNR of the logits (of the final norm without a head), ``sqnr_final_norm_db`` that of all tokens
    after the final norm. ``top1`` and ``agreement`` (share of images to which both models give the same class) are in
    percent; ``top1`` is ``None`` without labels, ``agreement`` without a head.
    """

    images: int
    sqnr_db: float
    sqnr_final_norm_db: float
    fp32_top1: float | None
    quantized_top1: float | None
    agreement: float | None


def evaluate(model: QuantViT, images: ImagesLike, *, limit: int | None = None, batch_size: int = 8) -> Evaluation:
    """Run a calibrated model in float and quantized over the images.

    Raises:
        LifecycleError: the model is not calibrated.
        DataError: a label is not one of the model's classes.
        NumericsError: the quantized model gave NaN or Inf.
    """
    model.require_calibrated()
    source = open_images(images, model.preprocessing, limit=limit)
    total = None if source.count is None else math.ceil(source.count / batch_size)
    points = list(model.point_modules().values())
    logits, norm = SqnrMeter(), SqnrMeter()
    count = labelled = hits_float = hits_quantized = same = 0
    with torch.no_grad():
        for number, batch in enumerate(track(source.batches(batch_size), "evaluating", total), start=1):
            x = batch.images.to(model.device)
            with only([], model):
                exact_norm, exact = outputs(model, x)
            with only(points, model):
                rounded_norm, rounded = outputs(model, x)
            if not bool(rounded.isfinite().all()):
                raise NumericsError(
                    "the model's output is not finite", where=f"batch {number}", fix="check the images and the weights"
                )
            logits.add(exact, rounded)
            norm.add(exact_norm, rounded_norm)
            count += len(batch)
            a, b = exact.argmax(-1), rounded.argmax(-1)
            if model.head is not None:
                same += int((a == b).sum())
            if batch.labels is not None and model.head is not None:
                labels = check_labels(batch.labels.to(a.device), model.spec.num_classes)
                labelled += len(labels)
                hits_float += int((a == labels).sum())
                hits_quantized += int((b == labels).sum())
    return Evaluation(
        images=count,
        sqnr_db=logits.db,
        sqnr_final_norm_db=norm.db,
        fp32_top1=100 * hits_float / labelled if labelled else None,
        quantized_top1=100 * hits_quantized / labelled if labelled else None,
        agreement=100 * same / count if model.head is not None else None,
    )


def outputs(model: QuantViT, images: Tensor) -> tuple[Tensor, Tensor]:
    """The final norm, and the logits (or the final norm again, where there is no head)."""
    tokens = model.forward_features(images)
    return tokens, tokens if model.head is None else model.classify(tokens)


def check_labels(labels: Tensor, classes: int) -> Tensor:
    """The labels, if the model has a class for each."""
    if bool((labels < 0).any() | (labels >= classes).any()):
        raise DataError(
            "a label is not one of the model's classes",
            got=f"{int(labels.min())} to {int(labels.max())}",
            expected=f"0 to {classes - 1}",
            fix="the subfolders of the images must be the model's classes, in their order",
        )
    return labels
