"""Float, simulated and integer model side by side: top-1, SQNR, and the first point at which two of them part."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from vitquant.adapters.adapt import FloatModel
from vitquant.architectures.model import QuantModel
from vitquant.arguments import require_count, require_kind, require_path
from vitquant.artifact.storage import load
from vitquant.data import ImagesLike, ImageSource, model_batches, open_images
from vitquant.device import require_device
from vitquant.errors import AgreementError
from vitquant.executors.choose import Executor, ExecutorName, open_executor
from vitquant.executors.reference import Reference
from vitquant.measure.agreement import divergences
from vitquant.measure.evaluate import evaluate
from vitquant.program.program import IntegerProgram
from vitquant.program.storage import load_program
from vitquant.results import Divergence, Evaluation, agreement_sentence

MIN_AGREEMENT_DB = 40.0
AGREEMENT_IMAGES = 4
"""Images on which the codes are compared, of those that are evaluated."""


@dataclass(frozen=True)
class Comparison:
    """What was measured, by which executor, and where program and simulation differ on the first images."""

    evaluation: Evaluation
    executor: str
    compared: int
    divergences: tuple[Divergence, ...]

    def agreement(self) -> str:
        """One sentence about the agreement."""
        return agreement_sentence(self.compared, self.divergences[0] if self.divergences else None)

    def require_agreement(self) -> None:
        """Refuse a program that is not what was simulated.

        Raises:
            AgreementError: they agree to less than 40 dB.
        """
        integer = self.evaluation.integer
        if integer is not None and integer.to_simulated_db < MIN_AGREEMENT_DB:
            first = f" {self.agreement()}" if self.divergences else ""
            raise AgreementError(
                f"the integer program is not the model that was simulated.{first}".removesuffix("."),
                got=f"an SQNR of {integer.to_simulated_db:.1f} dB between them",
                expected=f"at least {MIN_AGREEMENT_DB:.0f} dB",
                fix="compile the model again",
            )


def compare_models(
    model: QuantModel,
    program: IntegerProgram,
    images: ImageSource,
    *,
    batch_size: int = 8,
    executor: Executor | None = None,
) -> Comparison:
    """Evaluate a calibrated model in float, simulated, and as integers.

    The logits come from ``executor`` (the quickest one if not given), the codes at the points from the reference.
    """
    executor = executor or open_executor(program, device=model.device)
    evaluation = evaluate(model, images, batch_size=batch_size, integers=executor)
    reference = Reference(program, model.device)
    first = next(model_batches(images, AGREEMENT_IMAGES)).pixels
    found, count = divergences(model, program, reference.run, first)
    return Comparison(evaluation, executor.name, count, tuple(found))


def compare(
    folder: str | Path,
    original: FloatModel,
    images: ImagesLike,
    *,
    limit: int | None = None,
    batch_size: int = 8,
    device: str | torch.device = "cpu",
    kind: ExecutorName = "auto",
    ignore_labels: bool = False,
) -> Comparison:
    """The same for what lies in a folder: a saved model and its integer program.

    Args:
        folder: what ``vitquant quantize`` wrote.
        original: the float model that it was made from.
        images: as for :func:`vitquant.quantize`; labels give top-1.
        limit: at most so many images.
        batch_size: images in one forward.
        device: where to compute: any device of PyTorch that is there.
        kind: of the executor, as for :func:`open_executor`.
        ignore_labels: evaluate without the labels of the images.

    Raises:
        ArtifactError: the folder holds no such model, or one of another architecture.
        ProgramError: the folder holds no program, or a damaged one.
    """
    folder = require_path(folder, "folder")
    require_kind(original, FloatModel, "original")
    require_count(batch_size, "batch_size")
    place = require_device(device)
    model = load(folder, vit=original.vit).to(place)
    program = load_program(folder)
    executor = open_executor(program, kind, device=place)
    source = open_images(images, model.preprocessing, limit=limit, ignore_labels=ignore_labels)
    return compare_models(model, program, source, batch_size=batch_size, executor=executor)
