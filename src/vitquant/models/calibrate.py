"""Calibration: one pass of float forwards that every active point watches."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol, TypeVar

import torch
from torch import Tensor, nn

from vitquant.data.images import Batch
from vitquant.errors import DataError, NumericsError, VitquantError
from vitquant.layers import Mode, set_mode


class Calibratable(Protocol):
    """A quantized module: it computes, and turns statistics into grids when asked."""

    def __call__(self, x: Tensor, /) -> Tensor: ...

    def finish(self) -> None: ...


M = TypeVar("M", bound=nn.Module)


def calibrate_batches(module: M, batches: Iterable[Tensor | Batch]) -> M:
    """Observe the tensors that ``batches`` cause, choose all grids, and put the module into mode ``QUANTIZED``.

    Memory does not depend on the number of batches: observers keep statistics, not tensors.

    Args:
        module: a :class:`QuantViT`, :class:`QuantBlock`, :class:`QuantAttention` or :class:`QuantMlp`.
        batches: inputs of its ``forward``: tensors, or batches of images.

    Raises:
        DataError: there was no batch.
        NumericsError: a tensor held NaN or Inf; names point, batch and image.
    """
    device = next(module.buffers()).device
    count = 0
    set_mode(module, Mode.CALIBRATE)
    try:
        with torch.no_grad():
            for count, batch in enumerate(batches, start=1):
                images = batch.images if isinstance(batch, Batch) else batch
                try:
                    module(images.to(device))
                except NumericsError as error:
                    raise in_batch(error, count, batch) from error
            if not count:
                raise DataError("calibration got no images", fix="pass at least one batch")
            module.finish()  # type: ignore[operator]
    except BaseException:
        set_mode(module, Mode.FP32)
        raise
    set_mode(module, Mode.QUANTIZED)
    return module


def in_batch(error: NumericsError, number: int, batch: Tensor | Batch) -> VitquantError:
    """The same error, saying in which batch, and which file where that is known."""
    where = f"{error.where}, batch {number}" if error.where else f"batch {number}"
    if isinstance(batch, Batch) and batch.names:
        where += f" ({batch.names[0]} ... {batch.names[-1]})"
    return error.located(where)
