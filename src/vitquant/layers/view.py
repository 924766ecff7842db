"""What one thread sees of a model's points while it computes: overrides of their modes, hooks, clocks.

Several threads may use one model at once, so what holds for one of them only is not kept on the points.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from enum import Enum
from typing import Any, TypeAlias

from torch import Tensor, nn

from vitquant.numerics.quantized import Value


class Mode(Enum):
    """What the points of a model do with the tensors that pass them."""

    FP32 = "fp32"
    CALIBRATE = "calibrate"
    QUANTIZED = "quantized"


Hook: TypeAlias = Callable[[Any, Callable[[], Tensor], Value], None]
"""Called with a point, a function that gives the real tensor that came, and the value that went on, once per forward.

The tensor is made when it is asked for: from accumulators that takes longer than the point itself.
"""


@dataclass
class Clock:
    """Seconds that the forwards of one layer took."""

    seconds: float = 0.0


@dataclass(frozen=True)
class View:
    """Overrides by point or layer; ``inside`` is true from the first layer that is called to its return."""

    modes: Mapping[nn.Module, Mode] = field(default_factory=dict)
    hooks: Mapping[nn.Module, Hook] = field(default_factory=dict)
    clocks: Mapping[nn.Module, Clock] = field(default_factory=dict)
    inside: bool = False


VIEW: ContextVar[View] = ContextVar("view", default=View())  # noqa: B039 - it is frozen


@contextmanager
def seeing(view: View) -> Iterator[None]:
    """Within the block, this thread sees the points so."""
    token = VIEW.set(view)
    try:
        yield
    finally:
        VIEW.reset(token)


@contextmanager
def timed(layer: nn.Module) -> Iterator[Clock]:
    """Measure the time that this thread spends in the forward of one layer within the block."""
    view, clock = VIEW.get(), Clock()
    with seeing(replace(view, clocks={**view.clocks, layer: clock})):
        yield clock
