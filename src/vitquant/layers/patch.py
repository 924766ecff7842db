"""The patch embedding, whose input are pixels."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from vitquant.config import QuantConfig
from vitquant.errors import DataError
from vitquant.layers.layer import Layer, entrance, require_kind
from vitquant.layers.linear import QuantLinear
from vitquant.layers.point import Mode
from vitquant.numerics.affine import QuantParams
from vitquant.numerics.tokens import patchify


class QuantPatchEmbed(Layer):
    """Normalised images ``[B, C, H, W]`` to patch tokens ``[B, P, D]``.

    A pixel is an integer already: ``x = (pixel / 255 - mean) / std`` is an affine grid with a scale per colour and
    a zero point of ``255 * mean``. Folded like any other grid, the device starts from the pixels themselves.

    Args:
        proj: the float convolution whose stride is its kernel.
        mean, std: what the images are normalised with, one number a colour.
        out_config, weight_config, layer_name: as for :class:`QuantLinear`.
    """

    def __init__(
        self,
        proj: nn.Conv2d,
        mean: tuple[float, ...],
        std: tuple[float, ...],
        out_config: QuantConfig | None,
        weight_config: QuantConfig | None,
        layer_name: str,
    ) -> None:
        super().__init__()
        height, width = (int(k) for k in proj.kernel_size)
        self.patch_size = height, width
        self.linear = QuantLinear(proj, out_config, weight_config, layer_name)
        self.mean, self.std = tuple(mean), tuple(std)
        self.pixel_scale: Tensor
        self.pixel_zero: Tensor
        for name in ("pixel_scale", "pixel_zero"):
            self.register_buffer(name, torch.empty(0, dtype=torch.float32, device="cpu"), persistent=False)
        self._grid: QuantParams | None = None
        self.reset_pixels()
        self.linear.fold(self.pixel_grid())

    def reset_pixels(self) -> None:
        """Make the grid of the pixels from mean and standard deviation, in place of what a saved model left open."""
        scale, zero = ([1 / (255 * s) for s in self.std], [255 * m for m in self.mean])
        self.pixel_scale, self.pixel_zero = (torch.tensor(v, dtype=torch.float32, device="cpu") for v in (scale, zero))
        self._grid = None

    def pixel_grid(self) -> QuantParams:
        """The grid of flattened patches ``[C * patch_h * patch_w]``; the same one until the pixels' grid moves."""
        kept = self._grid  # read once: another thread may replace it
        if kept is None:
            area = self.patch_size[0] * self.patch_size[1]
            scale, zero_point = (t.repeat_interleave(area) for t in (self.pixel_scale, self.pixel_zero))
            kept = self._grid = QuantParams(scale, zero_point, 0, 255)
        return kept

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        self._grid = None
        return super()._apply(fn, recurse)

    @property
    def label(self) -> str:
        return self.linear.label

    def check_input(self, x: Tensor) -> None:
        require_kind(x, self.linear.reference, self.label)

    @entrance
    def forward(self, images: Tensor, target: QuantParams | None = None) -> Tensor:
        """Embed the patches. ``target`` is the grid that they are rounded to next."""
        weight = self.linear.weight
        if weight.active and weight.mode is not Mode.FP32:
            images = self.snap(images)
        return self.linear(patchify(images, self.patch_size), self.pixel_grid(), (target,))  # type: ignore[no-any-return]

    def snap(self, images: Tensor) -> Tensor:
        """Images on the grid of their pixels; those that were pixels stay what they were.

        Raises:
            DataError: values lie outside what pixels can be: the images are normalised in another way.
        """
        scale, zero = self.pixel_scale[:, None, None], self.pixel_zero[:, None, None]
        pixels = images / scale + zero
        low, high = (float(v) for v in torch.aminmax(pixels))
        if low < -1 or high > 256:
            raise DataError(
                "images are not normalised as the model expects",
                got=f"values that stand for pixels from {low:.0f} to {high:.0f}",
                expected=f"0 to 255 after mean {_per_colour(zero / 255)}, std {_per_colour(1 / (255 * scale))}",
                fix="pass uint8 pixels, or normalise with this mean and std",
            )
        return (pixels.round_().clamp_(0, 255) - zero) * scale


def _per_colour(x: Tensor) -> str:
    return "(" + ", ".join(f"{v:.4g}" for v in x.flatten().tolist()) + ")"
