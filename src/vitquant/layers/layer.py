"""What all quantized layers have in common: they own their tensors, and are entered through one door."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import wraps
from time import perf_counter
from typing import Any, TypeAlias, TypeVar

import torch
from torch import Tensor, nn
from torch.fx import Proxy

from vitquant.errors import DataError, ModelError, NumericsError
from vitquant.layers.memory import MEMORY_ERRORS, is_out_of_memory, out_of_memory
from vitquant.layers.plain_torch import plain_torch
from vitquant.layers.usage import LOCK, using
from vitquant.layers.view import VIEW, Mode, seeing
from vitquant.numerics.affine import QuantParams
from vitquant.numerics.quantized import Accumulators, QuantizedTensor, real

F = TypeVar("F", bound=Callable[..., Any])

FLOATS = (torch.float32, torch.float64)
"""Types in which the simulation computes."""


Shape: TypeAlias = tuple[int, ...]
"""Of a tensor without its batch."""


class Layer(nn.Module):
    """A step of a quantized model: its ``forward`` takes the values of earlier steps, and returns one.

    What is known of a step without running it is told by :meth:`shape_after` and :meth:`params_after`.
    """

    is_point = False
    is_step = True
    """Whether a graph shows the layer as one step; otherwise the steps inside it."""

    @property
    def label(self) -> str:
        """What messages call the layer, such as ``blocks.3.attn``."""
        return type(self).__name__

    def points_inside(self) -> list[nn.Module]:
        """The points of the layer, itself included."""
        return [m for m in self.modules() if isinstance(m, Layer) and m.is_point]

    def check_input(self, x: Tensor) -> None:
        """Refuse a type or shape that the layer cannot take; called once per forward, on the outermost layer.

        Raises:
            DataError: it is another one.
        """

    def check_output(self, y: Tensor) -> None:
        """Refuse a result that must not be; called once per forward, on the outermost layer.

        Raises:
            NumericsError: NaN or Inf in the output of a model.
        """

    def shape_after(self, *shapes: Shape) -> Shape:
        """Shape of the result for inputs of these shapes."""
        return shapes[0]

    def params_after(self, *params: QuantParams | None) -> QuantParams | None:
        """Calibrated quantization parameters of the result for inputs with these; ``None`` where it has none."""
        return None

    def finish(self, *params: QuantParams | None) -> None:
        """Turn the statistics of a calibration into quantization parameters, knowing those of the inputs."""

    def pair(self, *layers: Layer) -> list[Layer]:
        """Before :meth:`finish`: finish those of the layers that feed this one whose parameters depend on each other.

        Returns:
            The layers that are finished now.
        """
        return []

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        require_simulable(fn)
        with using(self.points_inside(), alone=True):
            return super()._apply(fn, recurse)  # type: ignore[no-untyped-call]


@dataclass(frozen=True, eq=False)
class AppliedRewrite:
    """A rewrite of float weights, such as ``centring``, and the tensors with which it can be done again."""

    name: str
    measured: Mapping[str, Tensor]


class Composite(Layer):
    """A module whose ``forward`` does nothing but call layers: what a graph is traced from."""

    is_step = False

    rewrites: tuple[AppliedRewrite, ...] = ()
    """What was done to the float weights, in order; in float, the module computes what it computed before."""


def entrance(forward: F) -> F:
    """Decorates the ``forward`` of a layer.

    The outermost layer that is called sees to what the whole forward relies on (:func:`entered`), and returns real
    numbers. Inner layers pass values on as they are. Running out of memory is told by the innermost layer.
    """

    @wraps(forward)
    def enter(self: Layer, *inputs: Any) -> Any:
        if inputs and isinstance(inputs[0], Proxy):  # a graph is being traced
            return forward(self, *inputs)
        try:
            if VIEW.get().inside:
                return run(self, forward, inputs)
            with entered(self, *inputs):
                y = real(run(self, forward, inputs))
            self.check_output(y)
            return y
        except MEMORY_ERRORS as error:
            if not is_out_of_memory(error):
                raise
            raise out_of_memory(error, self.label, tensor_of(inputs[0]) if inputs else None) from error

    return enter  # type: ignore[return-value]


@contextmanager
def entered(layer: Layer, *inputs: Any) -> Iterator[None]:
    """Within the block, layers compute with each other's values, as inside a forward of ``layer``.

    The inputs are checked, torch's settings are put aside (:func:`plain_torch`), no other thread may calibrate the
    points meanwhile, and their modes stay what they were at the start.
    """
    view = VIEW.get()
    given = [x for x in inputs if not isinstance(x, QuantizedTensor | Accumulators)]  # layers make these themselves
    for x in given:
        require_tensor(x, layer.label)
    points = layer.points_inside()
    with ExitStack() as stack:
        with LOCK:
            modes: dict[nn.Module, Mode] = {point: point.mode for point in points}  # type: ignore[misc]
            calibrating = Mode.CALIBRATE in modes.values()
            stack.enter_context(using(points, alone=calibrating))
        if len(given) == 1:
            layer.check_input(given[0])
        if not any(x.is_meta for x in given):  # of shapes alone, nothing is computed
            stack.enter_context(plain_torch())
            if not calibrating:  # observers say at which point and in which batch
                for x in given:
                    require_finite(x, layer.label)
        stack.enter_context(seeing(replace(view, modes={**view.modes, **modes}, inside=True)))
        yield


def run(layer: Layer, forward: Callable[..., Any], inputs: tuple[Any, ...]) -> Any:
    """The forward itself, its time noted where somebody asked for it."""
    clock = VIEW.get().clocks.get(layer)
    if clock is None:
        return forward(layer, *inputs)
    start = perf_counter()
    y = forward(layer, *inputs)
    clock.seconds += perf_counter() - start
    return y


def tensor_of(value: object) -> Tensor | None:
    """The tensor inside a value."""
    inner = getattr(value, "codes", getattr(value, "sums", value))
    return inner if isinstance(inner, Tensor) else None


def owned(tensor: Tensor) -> Tensor:
    """A copy that nobody else has, in a type that the simulation computes in."""
    kind = tensor.dtype if tensor.dtype in FLOATS else torch.float32
    return tensor.detach().to(kind, copy=True, memory_format=torch.contiguous_format)


def require_tensor(x: object, where: str) -> None:
    """Refuse what is no tensor.

    Raises:
        DataError: it is none.
    """
    if not isinstance(x, Tensor):
        raise DataError("the input is no tensor", where=where, got=type(x).__name__, expected="a tensor of floats")


def require_kind(x: Tensor, like: Tensor, where: str) -> None:
    """Refuse numbers of another type, or on another device, than a tensor of the layer.

    Raises:
        DataError: they are.
    """
    if x.dtype != like.dtype or x.device != like.device:
        got, expected = (f"{str(t.dtype).removeprefix('torch.')} on {t.device}" for t in (x, like))
        raise DataError("an input of the wrong type", where=where, got=got, expected=expected)


def require_width(x: Tensor, width: int, where: str) -> None:
    """Refuse tensors of another number of channels in the last dimension, and empty ones.

    Raises:
        DataError: it is another one.
    """
    if not x.ndim or x.shape[-1] != width or not x.numel():
        raise DataError(
            "an input of the wrong shape", where=where, got=f"{list(x.shape)}", expected=f"[..., {width}], not empty"
        )


def require_tokens(x: Tensor, width: int, where: str) -> None:
    """Refuse what is no ``[B, N, D]``, or is empty.

    Raises:
        DataError: it is of another shape.
    """
    if x.ndim != 3 or x.shape[-1] != width or not x.numel():
        raise DataError(
            "tokens of the wrong shape",
            where=where,
            got=f"{list(x.shape)}",
            expected=f"[B, N, {width}], at least one image and one token",
        )


def require_finite(x: Tensor, where: str, problem: str = "NaN or Inf in the input", fix: str | None = None) -> None:
    """Refuse NaN and Inf, which integers cannot represent: a cast makes some number of them.

    Raises:
        NumericsError: naming the first image, and how many such values it has.
    """
    if not x.numel() or not x.is_floating_point():
        return
    if all(math.isfinite(float(end)) for end in torch.aminmax(x)):
        return
    bad = ~x.isfinite().reshape(x.shape[0] if x.ndim else 1, -1)
    first = int(bad.any(1).nonzero()[0])
    raise NumericsError(
        problem,
        where=f"{where}, image {first}",
        got=f"{int(bad[first].sum())} values that are NaN or Inf",
        expected="finite numbers",
        fix=fix,
    )


def require_simulable(fn: Callable[[Tensor], Tensor]) -> None:
    """Refuse a conversion to numbers too short to simulate integers with.

    Raises:
        ModelError: ``half``, ``bfloat16`` and the like.
    """
    kind = fn(torch.empty(0, dtype=torch.float32, device="cpu")).dtype
    if kind not in FLOATS:
        raise ModelError(
            "a quantized model cannot be converted to this type",
            where="model",
            got=str(kind).removeprefix("torch."),
            expected="float32 or float64, in which integers are simulated exactly",
            fix="leave the model as it is; vitquant.compile(model) gives the integers",
        )
