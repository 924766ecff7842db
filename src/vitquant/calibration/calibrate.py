"""Calibration: one pass of float forwards that every active point watches."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import TypeVar

from torch import Tensor, nn

from vitquant.data.images import Batch
from vitquant.errors import DataError, NumericsError, OutOfMemoryError, VitquantError
from vitquant.layers import Mode, QuantLinear, QuantNorm, points_of, set_mode
from vitquant.layers.graph import graph_of
from vitquant.layers.memory import memory_named
from vitquant.layers.plain_torch import plain_torch
from vitquant.layers.usage import using


class RangeWarning(UserWarning):
    """Channels that were zero throughout the calibration."""


M = TypeVar("M", bound=nn.Module)


def calibrate_batches(module: M, batches: Iterable[Tensor | Batch]) -> M:
    """Observe the tensors that ``batches`` cause, choose all quantization parameters, and switch to ``QUANTIZED``.

    Memory does not depend on the number of batches: observers keep statistics, not tensors. No repair steps are run.

    Args:
        module: a quantized model, a part of one such as :class:`QuantAttention`, or any module composed of layers.
        batches: inputs of its ``forward``: tensors, or batches of images.

    Warns:
        RangeWarning: once, with count and layers, if channels were zero throughout.

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
            graph_of(module).finish()
        set_mode(module, Mode.QUANTIZED)
    flat = {point.name: point.no_range for point in points_of(module) if point.no_range}
    if flat:
        warnings.warn(no_range_message(flat), RangeWarning, stacklevel=3)
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
        images = batch.pixels if isinstance(batch, Batch) else batch
        try:
            with memory_named("images", images):
                module(images.to(reference.device))
        except (NumericsError, OutOfMemoryError) as error:
            raise in_batch(error, count, batch) from error


@contextmanager
def unchanged_if_it_fails(module: nn.Module) -> Iterator[None]:
    """If the block raises, the module's points and weights are what they were: calibrated, if they were."""
    points = [(point, point.state) for point in points_of(module)]
    linears = [(m, m.state) for m in module.modules() if isinstance(m, QuantLinear)]
    norms = [(m.norm, m.norm.weight, m.norm.bias) for m in module.modules() if isinstance(m, QuantNorm)]
    rewrites = getattr(module, "rewrites", None)
    try:
        yield
    except BaseException:
        for point, point_state in points:
            point.state = point_state
        for linear, linear_state in linears:
            linear.state = linear_state
        for norm, weight, bias in norms:
            norm.weight, norm.bias = weight, bias
        if rewrites is not None:
            module.rewrites = rewrites
        raise


def in_batch(error: NumericsError | OutOfMemoryError, number: int, batch: Tensor | Batch) -> VitquantError:
    """The same error, saying in which batch, and which file where that is known."""
    where = f"{error.where}, batch {number}" if error.where else f"batch {number}"
    if isinstance(batch, Batch) and batch.names:
        where += f" ({batch.names[0]} ... {batch.names[-1]})"
    return error.located(where)


def no_range_message(channels: Mapping[str, int]) -> str:
    """What the warning says: how many channels had no range, by the name of their point.

    >>> no_range_message({"head.weight": 1})
    '1 channel had no range during calibration, at 1 point (head.weight); its scale is 1 and it stays exactly 0'
    """
    count, points = sum(channels.values()), len(channels)
    names = ", ".join(list(channels)[:5]) + (", ..." if points > 5 else "")
    end = "its scale is 1 and it stays exactly 0" if count == 1 else "their scale is 1 and they stay exactly 0"
    subject, places = (f"{n} {noun}{'' if n == 1 else 's'}" for n, noun in ((count, "channel"), (points, "point")))
    return f"{subject} had no range during calibration, at {places} ({names}); {end}"
