"""Calibration: one pass of float forwards that every active point watches."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Protocol, TypeVar

from torch import Tensor, nn

from vitquant.data.images import Batch
from vitquant.errors import DataError, NumericsError, OutOfMemoryError, VitquantError
from vitquant.layers import Mode, QuantLinear, points_of, set_mode
from vitquant.layers.memory import memory_named
from vitquant.layers.plain_torch import plain_torch
from vitquant.layers.usage import using


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
        LifecycleError: another thread computes with the module.
        OutOfMemoryError: names point and batch.

    Whatever is raised, also by ``batches``, the module is as it was before.
    """
    reference = next(module.buffers())
    with using(points_of(module), alone=True), plain_torch(), unchanged_if_it_fails(module):
        set_mode(module, Mode.CALIBRATE)
        count = observe(module, batches, reference)
        if not count:
            raise DataError("calibration got no images", fix="pass at least one batch")
        with memory_named("folding the weights"):
            module.finish()  # type: ignore[operator]
        set_mode(module, Mode.QUANTIZED)
    return module


def observe(module: nn.Module, batches: Iterable[Tensor | Batch], reference: Tensor) -> int:
    """Let the points observe what the batches cause; returns how many there were.

    ``reference`` is a tensor of the module, for type and device.
    """
    count, iterator = 0, iter(batches)
    while True:
        with memory_named(f"batch {count + 1}"):
            batch = next(iterator, None)
        if batch is None:
            return count
        count += 1
        # Images of a source are float32, whatever the module computes in.
        images = batch.images.to(reference.dtype) if isinstance(batch, Batch) else batch
        try:
            with memory_named("images", images):
                module(images.to(reference.device))
        except (NumericsError, OutOfMemoryError) as error:
            raise in_batch(error, count, batch) from error


@contextmanager
def unchanged_if_it_fails(module: nn.Module) -> Iterator[None]:
    """If the block raises, the module's points and rounded weights are what they were: calibrated, if they were."""
    points = [(point, point.state) for point in points_of(module)]
    linears = [(m, m.state) for m in module.modules() if isinstance(m, QuantLinear)]
    try:
        yield
    except BaseException:
        for point, point_state in points:
            point.state = point_state
        for linear, linear_state in linears:
            linear.state = linear_state
        raise


def in_batch(error: NumericsError | OutOfMemoryError, number: int, batch: Tensor | Batch) -> VitquantError:
    """The same error, saying in which batch, and which file where that is known."""
    where = f"{error.where}, batch {number}" if error.where else f"batch {number}"
    if isinstance(batch, Batch) and batch.names:
        where += f" ({batch.names[0]} ... {batch.names[-1]})"
    return error.located(where)
