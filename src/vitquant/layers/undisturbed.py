"""Long work on a model that it does not change."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import TypeVar

from torch import nn

from vitquant.layers.memory import memory_named
from vitquant.layers.plain_torch import plain_torch
from vitquant.layers.point import points_of
from vitquant.layers.usage import using

F = TypeVar("F", bound=Callable[..., object])


def undisturbed(function: F) -> F:
    """Decorates a function that computes with the model in its first argument, ``model``.

    From its start to its end no other thread may calibrate or convert the model (others may compute with it too), and
    torch's settings are put aside (:func:`plain_torch`). Running out of memory outside of any layer is told too.
    """

    @wraps(function)
    def call(*args: object, **kwargs: object) -> object:
        model = args[0] if args else kwargs.get("model")
        if not isinstance(model, nn.Module):  # the function refuses it
            return function(*args, **kwargs)
        size = kwargs.get("batch_size")
        count = size if isinstance(size, int) else None
        with using(points_of(model)), plain_torch(), memory_named("images", count=count):
            return function(*args, **kwargs)

    return call  # type: ignore[return-value]
