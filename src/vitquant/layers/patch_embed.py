"""The patch embedding, whose input are pixels."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from vitquant.config import QuantConfig
from vitquant.layers.layer import Layer, Shape, entrance, require_finite, require_kind
from vitquant.layers.linear import QuantLinear
from vitquant.layers.point import Mode
from vitquant.numerics.affine import QuantParams
from vitquant.numerics.pixels import denormalize, nearest, normalize, require_pixels
from vitquant.numerics.quantized import QuantizedTensor, Value
from vitquant.numerics.tokens import patchify


class QuantPatchEmbed(Layer):
    """Images ``[B, C, H, W]``, ``uint8`` pixels or normalised floats, to patch tokens ``[B, P, D]``.

    A pixel is an integer already: ``x = (pixel / 255 - mean) / std`` is affine quantization with a scale per colour
    and a zero point of ``255 * mean``. Folded like any other input's, it lets the device start from the pixels.

    Args:
        proj: the float convolution whose stride is its kernel.
        mean, std: what the images are normalised with, one number per colour.
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
        self._params: QuantParams | None = None
        self.reset_pixels()
        self.linear.fold(self.pixel_params())

    def reset_pixels(self) -> None:
        """The pixels' parameters from mean and standard deviation, in place of what a saved model left open."""
        scale, zero = ([1 / (255 * s) for s in self.std], [255 * m for m in self.mean])
        self.pixel_scale, self.pixel_zero = (torch.tensor(v, dtype=torch.float32, device="cpu") for v in (scale, zero))
        self._params = None

    def pixel_params(self) -> QuantParams:
        """Parameters of flattened patches ``[C * patch_h * patch_w]``; the same object until the model moves."""
        kept = self._params  # read once: another thread may replace it
        if kept is None:
            area = self.patch_size[0] * self.patch_size[1]
            scale, zero_point = (t.repeat_interleave(area) for t in (self.pixel_scale, self.pixel_zero))
            kept = self._params = QuantParams(scale, zero_point, 0, 255)
        return kept

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        self._params = None
        return super()._apply(fn, recurse)

    @property
    def label(self) -> str:
        return self.linear.label

    def check_input(self, x: Tensor) -> None:
        if x.dtype != torch.uint8:
            require_kind(x, self.linear.reference, self.label)

    @entrance
    def forward(self, images: Tensor) -> Value:
        """Embed the patches."""
        weight = self.linear.weight
        if not weight.active or weight.mode is Mode.FP32:
            return self.linear(patchify(self.normalized(images), self.patch_size))  # type: ignore[no-any-return]
        return self.linear(QuantizedTensor(patchify(self.pixels(images), self.patch_size), self.pixel_params()))  # type: ignore[no-any-return]

    def shape_after(self, *shapes: Shape) -> Shape:
        (_, height, width), (patch_height, patch_width) = shapes[0], self.patch_size
        return (height // patch_height) * (width // patch_width), len(self.linear.float_weight)

    def params_after(self, *params: QuantParams | None) -> QuantParams | None:
        return self.linear.output.params

    def finish(self, *params: QuantParams | None) -> None:
        """The pixels are folded into the weights already, unless a repair step changed these."""
        if self.linear.revised:
            self.linear.fold(self.pixel_params())
        self.linear.output.finish()

    def pixels(self, images: Tensor) -> Tensor:
        """What integers compute with."""
        if images.dtype == torch.uint8:
            return images
        require_finite(images, self.label)
        values = denormalize(images, self.mean, self.std)
        low, high = (float(end) for end in torch.aminmax(values))
        require_pixels(low, high, self.mean, self.std, overshoot=1)
        return nearest(values)

    def normalized(self, images: Tensor) -> Tensor:
        """What the float model computes with."""
        if images.dtype != torch.uint8:
            return images
        return normalize(images, self.mean, self.std).to(self.linear.reference.dtype)
