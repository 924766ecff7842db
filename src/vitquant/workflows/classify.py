"""Run an integer program over images from anywhere."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from vitquant.arguments import require_count, require_kind
from vitquant.data import ImagesLike, Preprocessing, model_batches, open_images
from vitquant.errors import ConfigError, ProgramError
from vitquant.executors.choose import Executor, open_executor
from vitquant.program.program import IntegerProgram


@dataclass(frozen=True)
class Outcome:
    """What a program gives for one image: the chosen outputs by name, ``[C]`` or ``[N, C]``, as integers and as the
    real numbers that these stand for.
    """

    name: str
    codes: Mapping[str, Tensor]
    real: Mapping[str, Tensor]

    @property
    def logits(self) -> Tensor:
        """The first of the outputs."""
        return next(iter(self.real.values()))

    def top(self, count: int) -> list[tuple[int, float]]:
        """The classes with the largest logits, and these."""
        values, classes = self.logits.topk(min(count, len(self.logits)))
        return list(zip(classes.tolist(), values.tolist(), strict=True))


def preprocessing_of(program: IntegerProgram) -> Preprocessing:
    """How a picture becomes the program's input, as its metadata tells.

    Raises:
        ProgramError: it does not, or for images of another shape.
    """
    try:
        preprocessing = Preprocessing.from_dict(program.metadata["preprocessing"])
    except (KeyError, TypeError, ValueError, AttributeError, ConfigError) as error:
        raise ProgramError(
            f"the program has no valid preprocessing ({error})",
            where="metadata",
            fix="pass uint8 tensors to an executor instead",
        ) from error
    if preprocessing.shape != program.image.shape:
        raise ProgramError(
            "the program's preprocessing does not match its input shape",
            where="metadata",
            got=preprocessing.shape,
            expected=str(program.image.shape),
        )
    return preprocessing


@torch.no_grad()
def classify(
    program: IntegerProgram,
    images: ImagesLike,
    *,
    limit: int | None = None,
    batch_size: int = 8,
    executor: Executor | None = None,
) -> Iterator[Outcome]:
    """Run a program over images, as :func:`vitquant.data.open_images` takes them; without an executor, by the quickest,
    and to the program's first output.

    Raises:
        DataError: there are none, or they cannot be read.
        ProgramError: the program does not say how a picture becomes its input.
    """
    require_count(batch_size, "batch_size")
    preprocessing = preprocessing_of(require_kind(program, IntegerProgram, "program"))
    executor = executor or open_executor(program)
    for batch in model_batches(open_images(images, preprocessing, limit=limit, ignore_labels=True), batch_size):
        found = executor.all(batch.pixels)
        codes = {name: output.codes.cpu() for name, output in found.items()}
        real = {name: output.real().cpu() for name, output in found.items()}
        for i, image in enumerate(batch.names):
            yield Outcome(image, *({name: x[i] for name, x in part.items()} for part in (codes, real)))
