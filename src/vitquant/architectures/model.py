"""What every quantized model has, whatever its family: points and their life, settings, images at its door."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.fx import Proxy

from vitquant.config import OpenConfig, QuantConfig, ResolvedConfig
from vitquant.data.preprocessing import Preprocessing
from vitquant.errors import DataError, LifecycleError
from vitquant.layers import Mode, Point, QuantLinear, points_of, set_mode
from vitquant.layers.graph import Graph, graph_of
from vitquant.layers.layer import Composite, entered, entrance, require_finite
from vitquant.layers.usage import using
from vitquant.numerics.affine import QuantParams
from vitquant.numerics.quantized import real


@dataclass(frozen=True)
class PointInfo:
    """What there is to know about one point: settings, parameters, shape (of activations without the batch)."""

    name: str
    config: QuantConfig | None
    active: bool
    params: QuantParams | None
    shape: tuple[int, ...] | None


class QuantModel(Composite):
    """A model whose tensors become integers at named points.

    A family's class builds its layers with ``settings[point]`` and composes them in ``compose``, which begins with
    ``uint8`` or normalised images and does nothing but call layers: the graph is traced from it.
    """

    spec: Any
    """What fixes the model's shape: a frozen dataclass of the family."""

    config: ResolvedConfig
    preprocessing: Preprocessing

    output: str | None = None
    """The name of the main output: what a call gives, and what is measured. ``None`` is the family's first."""

    if TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any:
            """The layers of the family, such as ``blocks``."""

    def close(self, settings: OpenConfig, preprocessing: Preprocessing) -> None:
        """End the construction: every point has its settings now.

        Raises:
            ConfigError: an override matches no point.
        """
        self.config, self.preprocessing = settings.close(), own_preprocessing(preprocessing)
        self.eval()

    def compose(self, images: Tensor) -> dict[str, Any]:
        """The composition of the family: everything that the model gives, by name, the main output first.

        A main output that is called ``logits`` is ``[B, num_classes]``, or pooled features ``[B, D]`` of a model
        without a head; ``class_token`` is ``[B, D]``, and ``tokens`` are ``[B, N, D]``.
        """
        raise NotImplementedError

    @entrance
    def forward(self, images: Tensor) -> Any:
        """Images ``[B, C, H, W]``, ``uint8`` pixels or floats that were normalised, to the main output.

        No gradients are recorded, and autocast does not apply.

        Raises:
            DataError: images of another shape or type, or normalised in another way.
            NumericsError: NaN or Inf in the images, or in what came out.
            LifecycleError: an active point was never observed, or another thread calibrates the model.
            OutOfMemoryError: naming the point at which memory ran out.
        """
        found = self.compose(images)
        main = self.output or next(iter(found))
        return {main: found[main], **found} if isinstance(images, Proxy) else found[main]

    def outputs(self, images: Tensor, names: Sequence[str] = ()) -> dict[str, Tensor]:
        """Outputs by name, such as ``tokens`` for dense features; all of them, if none is named.

        Raises:
            ConfigError: the model has no such output.
            DataError, NumericsError, LifecycleError, OutOfMemoryError: as the forward.
        """
        names = list(self.graph.choose(names or list(self.graph.outputs)).outputs)
        with entered(self, images):
            found = self.compose(images)
            made = {name: real(found[name]) for name in names}
        for y in made.values():
            self.check_output(y)
        return made

    def choose_output(self, name: str | None) -> None:
        """Make another output the main one, such as ``tokens`` for dense features.

        Raises:
            ConfigError: the model has no such output.
        """
        self.output = None if name is None else next(iter(self.graph.choose([name]).outputs))
        self.__dict__.pop("_graph", None)  # whose first output is the main one

    @property
    def num_classes(self) -> int:
        """Classes among the main output; 0 for a model that gives features."""
        return self.spec.num_classes if next(iter(self.graph.outputs)) == "logits" else 0

    @property
    def graph(self) -> Graph:
        """The steps of the forward, to all outputs."""
        return graph_of(self)

    @property
    def label(self) -> str:
        return "images"

    def check_input(self, x: Tensor) -> None:
        """Refuse images that are neither pixels nor as :meth:`Preprocessing.normalize` makes them.

        Raises:
            DataError: another shape, type or device, or no image.
        """
        shape, like = self.preprocessing.shape, self.reference
        fits = x.dtype in (torch.uint8, like.dtype) and x.device == like.device
        if tuple(x.shape[1:]) == shape and fits and len(x):
            return
        kinds = (x.dtype, x.device), (like.dtype, like.device)
        got, expected = (f"{str(dtype).removeprefix('torch.')} on {device}" for dtype, device in kinds)
        raise DataError(
            "images that the model does not take",
            where="images",
            got=f"{got}, {list(x.shape)}",
            expected=f"{expected}, [N, {', '.join(map(str, shape))}], at least one image",
            fix="make them from uint8 pixels of this size with model.preprocessing.normalize"
            + ("" if like.dtype == torch.float32 else " and .to(model.dtype)"),
        )

    def check_output(self, y: Tensor) -> None:
        if not y.is_meta:
            require_finite(y, "output", "the model's output is not finite", "check the images and the weights")

    def points(self) -> list[PointInfo]:
        """Every point in order, with its config, parameters and shape."""
        return [PointInfo(p.name, p.config, p.active, p.params, p.shape) for p in self.point_modules().values()]

    def point_modules(self) -> dict[str, Point]:
        """The points themselves, by name, in order."""
        found = {p.name: p for p in points_of(self)}
        return {name: found[name] for name in self.config}

    def linears(self) -> list[QuantLinear]:
        """The linear layers, in the order in which they were built."""
        return [m for m in self.modules() if isinstance(m, QuantLinear)]

    @property
    def mode(self) -> Mode:
        """The mode that the points are in."""
        return next(iter(points_of(self))).mode

    def set_mode(self, mode: Mode) -> None:
        """Put all points into one mode.

        Raises:
            LifecycleError: ``QUANTIZED``, and an active point was never observed.
        """
        if mode is Mode.QUANTIZED:
            self.require_calibrated()
        set_mode(self, mode)

    def require_calibrated(self) -> None:
        """Refuse to go on while an active point has no quantization parameters.

        Raises:
            LifecycleError: naming the first such point, and how many there are.
        """
        with using(self.points_inside()):  # not while another thread calibrates
            modules = self.point_modules().values()
        blank = [p.name for p in modules if p.active and p.observes and p.params is None]
        if blank:
            more = f" (and {len(blank) - 1} more points)" if len(blank) > 1 else ""
            raise LifecycleError(
                f"no statistics for {blank[0]}{more}",
                expected="a calibration that reaches every active point",
                fix="call vitquant.calibrate(model, images) first, or set output_quant_enable: false for these points",
            )

    @property
    def reference(self) -> Tensor:
        """A tensor of the type and on the device that the model computes with."""
        return next(m for m in self.modules() if isinstance(m, QuantLinear)).reference

    @property
    def dtype(self) -> torch.dtype:
        """What the model computes in: float32, or float64 after ``model.double()``."""
        return self.reference.dtype

    @property
    def device(self) -> torch.device:
        """Where the model computes."""
        return self.reference.device


def own_preprocessing(given: Preprocessing) -> Preprocessing:
    """The same values, none of which the caller can change, should they be lists."""
    return replace(given, img_size=pair(given.img_size), mean=tuple(given.mean), std=tuple(given.std))


def pair(size: Sequence[int]) -> tuple[int, int]:
    """Height and width."""
    height, width = size
    return height, width
