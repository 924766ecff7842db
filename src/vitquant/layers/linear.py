"""A linear layer with quantized weights, and a quantized output where the config asks for it."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vitquant.config import QuantConfig
from vitquant.errors import LifecycleError
from vitquant.layers.act import QAct
from vitquant.layers.point import Mode, Point
from vitquant.numerics.affine import QuantParams, quantize


class WeightPoint(Point):
    """The weights ``[out, in]`` of a linear layer: observed when they are folded, not when images pass."""

    def set_mode(self, mode: Mode) -> None:
        self.mode = mode

    def broadcast(self, per_channel: Tensor) -> Tensor:
        return self.layout.broadcast(per_channel, 2)  # no batch before them


class QuantLinear(nn.Module):
    """``y = x W^T + b`` with integer weights.

    The weights are rounded at construction, and once more by :meth:`fold` when the calibrated grid of the input is
    known: a scale per input channel must leave the sum over these channels, so it is multiplied into the weights
    before they are rounded, and the bias is rounded to the scale of the accumulators.

    Args:
        input_module: ``nn.Linear``, or a ``nn.Conv2d`` whose stride is its kernel (applied to flattened patches).
        out_config: settings of the point ``<layer_name>.output``.
        weight_config: settings of the point ``<layer_name>.weight``.
        layer_name: full name in the model.
        head_dim: channels of one attention head, for ``head_wise``.
        gain: LayerScale that follows the layer, ``[out]``; folded into the weights.
    """

    def __init__(
        self,
        input_module: nn.Linear | nn.Conv2d,
        out_config: QuantConfig | None,
        weight_config: QuantConfig | None,
        layer_name: str,
        *,
        head_dim: int | None = None,
        gain: Tensor | None = None,
    ) -> None:
        super().__init__()
        self.float_weight: Tensor
        self.float_bias: Tensor | None
        self.gain: Tensor | None
        bias = input_module.bias
        self.register_buffer("float_weight", input_module.weight.detach().flatten(1))
        self.register_buffer("float_bias", None if bias is None else bias.detach())
        self.register_buffer("gain", None if gain is None else gain.detach())
        self.weight = WeightPoint(f"{layer_name}.weight", weight_config, head_dim=head_dim, narrow=True)
        self.weight.shape = tuple(self.float_weight.shape)
        self.output = QAct(out_config, None, f"{layer_name}.output", head_dim=head_dim)
        self.weight_codes: Tensor
        self.weight_hat: Tensor
        self.bias_hat: Tensor
        self.input_scale: Tensor | None
        self.register_buffer("input_scale", None, persistent=False)
        for name in ("weight_codes", "weight_hat", "bias_hat"):
            self.register_buffer(name, torch.empty(0), persistent=False)
        self.fold(None)

    def forward(self, x: Tensor) -> Tensor:
        if self.weight.rounding:
            y = F.linear(x, self.weight_hat, self.bias_hat)
        else:
            self.require_float(x)
            y = F.linear(x, self.float_weight, self.float_bias)
            y = y if self.gain is None else y * self.gain
        return self.output(self.weight.emit(y, y))  # type: ignore[no-any-return]

    def require_float(self, x: Tensor) -> None:
        """Refuse to compute with float weights that are not there, unless the input is not there either.

        Raises:
            LifecycleError: the layer belongs to a saved model, which has only its integers.
        """
        if self.float_weight.is_meta and not x.is_meta:
            raise LifecycleError(
                f"{self.layer_name} was loaded with its integer weights only",
                expected="mode QUANTIZED",
                fix="quantize the float model again",
            )

    def effective(self) -> tuple[Tensor, Tensor]:
        """Float weight ``[out, in]`` and bias ``[out]`` with the gain multiplied in."""
        weight, bias = self.float_weight, self.float_bias
        bias = weight.new_zeros(len(weight)) if bias is None else bias
        return (weight, bias) if self.gain is None else (weight * self.gain[:, None], bias * self.gain)

    def fold(self, input_grid: QuantParams | None) -> None:
        """Round the weights for an input on this grid (``None``: a float input, or one that is not known yet)."""
        if not self.weight.active or self.float_weight.is_meta:  # shapes only: a saved model fills them in
            return
        weight, bias = self.effective()
        per_channel = input_grid is not None and not input_grid.is_scalar
        input_scale = input_grid.scale.expand(weight.shape[1]) if input_grid is not None and per_channel else None
        scaled = weight if input_scale is None else weight * input_scale
        self.weight.observer = self.weight.new_observer()
        with self.weight.named():
            self.weight.observer.observe(scaled)
        self.weight.finish()
        params = self.weight.require_params()
        codes = quantize(scaled, params)
        if input_grid is not None:
            acc_scale = params.scale.double().reshape(-1)
            if input_scale is None:
                acc_scale = acc_scale * input_grid.scale.double()
            zero = (codes - params.zero_point).double() @ input_grid.zero_point.double().expand(weight.shape[1])
            bias = (((bias / acc_scale - zero).round() + zero) * acc_scale).to(bias.dtype)
        self.realize(codes.to(code_dtype(params)), bias, input_scale)

    def realize(self, codes: Tensor, bias: Tensor, input_scale: Tensor | None) -> None:
        """Take integer weights ``[out, in]``, the bias that goes with them, and what was folded into them.

        ``input_scale`` is the scale per input channel, ``[in]``, or ``None`` where nothing was folded.
        """
        params = self.weight.require_params()
        self.weight_codes, self.bias_hat, self.input_scale = codes, bias, input_scale
        weight = (codes.to(bias.dtype) - params.zero_point) * params.scale
        self.weight_hat = weight if input_scale is None else weight / input_scale

    def folded_weights(self) -> tuple[Tensor, Tensor]:
        """The weights ``[out, in]`` that were rounded, the input's scales multiplied in, and what rounding left."""
        weight, _ = self.effective()
        if self.input_scale is None:
            return weight, self.weight_hat
        return weight * self.input_scale, self.weight_hat * self.input_scale

    @property
    def layer_name(self) -> str:
        """Name of the layer; its points are ``<layer_name>.weight`` and ``<layer_name>.output``."""
        return self.weight.name.rsplit(".", 1)[0]


def code_dtype(params: QuantParams) -> torch.dtype:
    """The narrowest integer type that holds the codes of a grid."""
    for dtype in (torch.int8, torch.uint8, torch.int16):
        info = torch.iinfo(dtype)
        if info.min <= params.qmin and params.qmax <= info.max:
            return dtype
    return torch.int32
