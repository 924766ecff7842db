"""A point: a named place where a tensor becomes integers."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from vitquant.config import QuantConfig, is_per_head
from vitquant.errors import ConfigError, LifecycleError, NumericsError
from vitquant.layers.layer import Layer
from vitquant.layers.usage import LOCK, using
from vitquant.layers.view import VIEW, Hook, Mode, seeing
from vitquant.numerics.affine import QuantParams, params_from_scale, scale_from_range
from vitquant.numerics.quantized import Value, on, real
from vitquant.observers import Observer, make_observer
from vitquant.observers.layout import ChannelLayout

__all__ = ["Hook", "Mode", "Point", "PointState", "hooked", "only", "points_of", "set_mode", "watch_float"]


@dataclass(frozen=True)
class PointState:
    """What calibration changes about a point."""

    mode: Mode
    params: QuantParams | None
    observer: Observer | None
    no_range: int
    shape: tuple[int, ...] | None


class Point(Layer):
    """State and life of one point; the layers that own a point say in their ``forward`` when it acts.

    Calibration feeds an observer, :meth:`finish` turns its statistics into :attr:`params`, and in mode ``QUANTIZED``
    the point rounds to them. A point whose config is ``None`` or has ``output_quant_enable: false`` is not
    :attr:`active`: it lets everything pass in every mode.

    Args:
        name: full name in the model, such as ``blocks.3.attn_kv_out``.
        config: settings, or ``None`` to leave the tensor float.
        head_dim: channels of one attention head, for ``head_wise``.
        narrow: leave out the most negative code, as weights do.

    Raises:
        ConfigError: ``head_wise`` without ``head_dim``.
    """

    is_point = True

    observes = True
    """Whether the point's quantization parameters come from statistics."""

    channel_dim: int
    """The dimension that ``channel_wise`` gives a scale per place. Tokens never are: their number changes."""

    def __init__(
        self, name: str, config: QuantConfig | None, *, head_dim: int | None = None, narrow: bool = False
    ) -> None:
        super().__init__()
        self.name, self.config, self.narrow, self.head_dim = name, config, narrow, head_dim
        self.channel_dim = self.find_channels()
        self.layout = self.layout_for(head_dim)
        self._mode = Mode.FP32
        self.params: QuantParams | None = None
        self.observer: Observer | None = None
        self.no_range = 0
        self.shape: tuple[int, ...] | None = None
        self.hook: Hook | None = None

    def find_channels(self) -> int:
        """The dimension of the channels: heads of scores, else the last one."""
        return 1 if is_per_head(self.name) else -1

    def layout_for(self, head_dim: int | None) -> ChannelLayout:
        """Which elements of the tensor share a scale: the table in ``docs/numerics.md``."""
        if self.config is None or self.config.calibration_mode == "layer_wise":
            return ChannelLayout(None)
        if self.config.calibration_mode == "channel_wise" or self.channel_dim == 1:  # the channels of scores are heads
            return ChannelLayout(self.channel_dim)
        if head_dim is None:
            raise ConfigError(
                "head_wise needs to know how wide a head is",
                where=self.name,
                expected="a layer inside a transformer block",
                fix="use channel_wise or layer_wise here, or pass head_dim=",
            )
        return ChannelLayout(self.channel_dim, group=head_dim)

    @property
    def label(self) -> str:
        return self.name

    @property
    def mode(self) -> Mode:
        """The mode that the point is in for this thread: the one that was set, unless :func:`only` says another."""
        return VIEW.get().modes.get(self, self._mode)

    @mode.setter
    def mode(self, mode: Mode) -> None:
        self._mode = mode

    @property
    def state(self) -> PointState:
        """What calibration changes, to go back to."""
        return PointState(self._mode, self.params, self.observer, self.no_range, self.shape)

    @state.setter
    def state(self, state: PointState) -> None:
        self._mode, self.params, self.observer = state.mode, state.params, state.observer
        self.no_range, self.shape = state.no_range, state.shape

    @property
    def watched_by(self) -> Hook | None:
        """The hook that sees the point's tensor in this thread."""
        return VIEW.get().hooks.get(self, self.hook)

    @property
    def active(self) -> bool:
        """Whether the config wants this tensor to become integers."""
        return self.config is not None and self.config.output_quant_enable

    @property
    def rounding(self) -> bool:
        """Whether the point is rounding now: it is active and its mode is ``QUANTIZED``."""
        return self.mode is Mode.QUANTIZED and self.active

    @property
    def acting(self) -> QuantParams | None:
        """The quantization parameters that the point rounds to now; ``None`` while it lets real numbers pass."""
        return self.require_params() if self.rounding and self.observes else None

    def require_params(self) -> QuantParams:
        """The calibrated quantization parameters.

        Raises:
            LifecycleError: the point was never observed. There is no default scale.
        """
        if self.params is None:
            raise LifecycleError(
                f"no statistics for {self.name}",
                expected="a calibration that reaches this point",
                fix="call vitquant.calibrate(model, images) before quantizing",
            )
        return self.params

    def set_mode(self, mode: Mode) -> None:
        """Enter a mode, for all threads; entering ``CALIBRATE`` starts with fresh statistics."""
        if mode is Mode.CALIBRATE and self.active and self.observes:
            self.observer = self.new_observer()
        self.mode = mode

    def new_observer(self) -> Observer:
        """An empty observer as the config names it."""
        config = self.require_config()
        return make_observer(
            config.observer_type,
            self.layout,
            percentile_alpha=config.percentile_alpha,
            percentile_sigma=config.percentile_sigma,
            kl_bins=config.kl_bins,
        )

    def require_config(self) -> QuantConfig:
        """The config of an active point.

        Raises:
            LifecycleError: the point has none.
        """
        if self.config is None:
            raise LifecycleError(f"{self.name} has no configuration", fix="add a section for it, or a global one")
        return self.config

    def settle(self, x: Value) -> Value:
        """What passes the point: observed while it calibrates, requantized while it rounds, else real numbers."""
        self.observe(x)
        params = self.acting
        return self.show(x, real(x) if params is None else on(x, params))

    def observe(self, x: Value) -> None:
        """In mode ``CALIBRATE``: note the tensor's shape and add it to the statistics."""
        if self.mode is not Mode.CALIBRATE:
            return
        x = real(x)
        self.shape = tuple(x.shape[1:])
        if self.observer is not None:
            with self.named():
                self.observer.observe(x)

    def show(self, before: Value | Callable[[], Tensor], after: Value) -> Value:
        """Show the value before and after the point to its hook, if it has one, and pass the second on."""
        hook = self.watched_by
        if hook is not None:
            hook(self, before if callable(before) else lambda: real(before), after)
        return after

    @contextmanager
    def named(self) -> Iterator[None]:
        """Put the point's name before an error of its numbers."""
        try:
            yield
        except NumericsError as error:
            raise error.located(self.name) from error

    @property
    def range_bits(self) -> int:
        """The width for which the observer chooses a range."""
        return self.require_config().bit_type.bits

    def tight_scale(self) -> tuple[Tensor, Tensor]:
        """From the statistics: the finest scale that covers the chosen range (0: no range), and its low end.

        Both have one value per channel, ``[channels]``, float64.
        """
        config = self.require_config()
        if self.observer is None or not self.observer.observed:
            self.require_params()
            raise LifecycleError(f"the statistics of {self.name} were used up", fix="calibrate again")
        bits, signed = config.bit_type.bits, config.bit_type.signed
        low, high = widened(
            *self.observer.range(bits=self.range_bits, signed=signed, narrow=self.narrow), config.range_margin
        )
        power_of_two = config.quantization_method == "power_of_two"
        return scale_from_range(low, high, bits=bits, signed=signed, power_of_two=power_of_two), low

    def params_after(self, *params: QuantParams | None) -> QuantParams | None:
        return self.params

    def finish(self, *params: QuantParams | None) -> None:
        """Turn the statistics into quantization parameters; does nothing for a point that needs none."""
        if self.active and self.observes:
            self.adopt(*self.tight_scale())

    def adopt(self, scale: Tensor, low: Tensor) -> None:
        """Take quantization parameters from a scale per channel and the low ends of the ranges; drop the statistics."""
        self.no_range = int((scale == 0).sum())
        self.params = self.params_of(scale, low)
        self.observer = None

    def params_of(self, scale: Tensor, low: Tensor) -> QuantParams:
        """Those with these scales and low ends, ``[channels]`` each, in the form that meets the point's tensor."""
        bits = self.require_config().bit_type
        params = params_from_scale(scale, low, bits=bits.bits, signed=bits.signed, narrow=self.narrow)
        return QuantParams(self.broadcast(params.scale), self.broadcast(params.zero_point), params.qmin, params.qmax)

    def broadcast(self, per_channel: Tensor) -> Tensor:
        """One value per channel to the form that meets the point's tensor."""
        return self.layout.broadcast(per_channel, 1 + len(self.shape or ()))

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        super()._apply(fn, recurse)
        if self.params is not None:
            p = self.params
            self.params = QuantParams(fn(p.scale), fn(p.zero_point), p.qmin, p.qmax)
        return self

    def extra_repr(self) -> str:
        if self.config is None:
            return f"{self.name}: float"
        bits = self.config.bit_type
        return f"{self.name}: {'int' if bits.signed else 'uint'}{bits.bits} {self.config.calibration_mode}"


def watch_float(
    module: nn.Module, points: Sequence[Point], batches: Iterable[Tensor], see: Callable[[Point, Tensor], None]
) -> None:
    """Run a module in float, and show what passes these points to ``see``."""

    def hook(point: Point, _: Callable[[], Tensor], after: Value) -> None:
        see(point, real(after))

    with torch.no_grad(), only([], module), hooked(list(points), hook):
        for batch in batches:
            module(batch)


def widened(low: Tensor, high: Tensor, margin: float) -> tuple[Tensor, Tensor]:
    """The range around the same middle that is ``margin`` times as wide."""
    more = (high - low) * (margin - 1) / 2
    return low - more, high + more


def points_of(module: nn.Module) -> list[Point]:
    """All points of a module, in the order in which they were built."""
    return [m for m in module.modules() if isinstance(m, Point)]


def set_mode(module: nn.Module, mode: Mode) -> None:
    """Put all points of a module into one mode, together: a forward in another thread sees all or none of it.

    Raises:
        LifecycleError: another thread calibrates the module.
    """
    points = points_of(module)
    with LOCK, using(points):
        for point in points:
            point.set_mode(mode)


@contextmanager
def only(points: list[Point], module: nn.Module) -> Iterator[None]:
    """Within the block, and for this thread, just these points of the module round."""
    modes: dict[nn.Module, Mode] = dict.fromkeys(points_of(module), Mode.FP32)
    modes |= dict.fromkeys(points, Mode.QUANTIZED)
    view = VIEW.get()
    with seeing(replace(view, modes={**view.modes, **modes})):
        yield


@contextmanager
def hooked(points: list[Point], hook: Hook) -> Iterator[None]:
    """Within the block, show the tensors of these points that this thread computes to ``hook``."""
    view = VIEW.get()
    with seeing(replace(view, hooks={**view.hooks, **dict.fromkeys(points, hook)})):
        yield
