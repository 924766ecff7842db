"""A linear layer with quantized weights, and a quantized output where the config asks for it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vitquant.config import QuantConfig
from vitquant.errors import LifecycleError, ModelError
from vitquant.layers.act import QAct
from vitquant.layers.layer import Layer, Shape, entrance, owned, require_kind, require_width
from vitquant.layers.point import Mode, Point
from vitquant.numerics.affine import QuantParams, quantize
from vitquant.numerics.limits import INT32_MAX
from vitquant.numerics.matmul import int_matmul
from vitquant.numerics.packing import MAX_MULTIPLIER, MULTIPLIER_BITS, Packing, multipliers
from vitquant.numerics.quantized import Accumulators, QuantizedTensor, Value, integer_type, real
from vitquant.numerics.weight_groups import best_multipliers, quantize_grouped


class WeightPoint(Point):
    """The weights ``[out, in]`` of a linear layer: observed when they are folded, not when images pass.

    With ``weight_groups`` the codes are products ``q * m``, on a scale that is finer by the largest ``m``.
    """

    @property
    def group(self) -> int:
        """Number of neighbouring inputs that share a multiplier; 0 without multipliers."""
        return 0 if self.config is None else self.config.weight_groups

    @property
    def limit(self) -> int:
        """The largest ``q`` of weights with groups."""
        return self.require_params().qmax // MAX_MULTIPLIER

    @property
    def range_bits(self) -> int:
        return super().range_bits + (MULTIPLIER_BITS if self.group else 0)

    def params_of(self, scale: Tensor, low: Tensor) -> QuantParams:
        if not self.group:
            return super().params_of(scale, low)
        tiny = torch.finfo(torch.float32).tiny
        finer = torch.where(scale == 0, 0.0, (scale / MAX_MULTIPLIER).clamp(min=tiny))
        params = super().params_of(finer, low)
        return replace(params, qmin=params.qmin * MAX_MULTIPLIER, qmax=params.qmax * MAX_MULTIPLIER)

    def find_channels(self) -> int:
        return 0

    def set_mode(self, mode: Mode) -> None:
        self.mode = mode

    def broadcast(self, per_channel: Tensor) -> Tensor:
        return self.layout.broadcast(per_channel, 2)  # no batch before them


@dataclass(frozen=True)
class IntegerForm:
    """A linear layer as a device holds it: ``(weight q + bias) * scale`` for codes ``q`` of the input.

    ``weight`` ``[out, in]`` less its zero point, in the narrowest type; ``bias`` int64 ``[out]``, the zero points of
    the input included; ``scale`` float64 ``[out]``; ``limit`` int64 ``[out]``, which no sum can pass, in any order.
    ``fits``: whether 32 bits hold all sums.
    """

    weight: Tensor
    bias: Tensor
    scale: Tensor
    limit: Tensor
    fits: bool


@dataclass(frozen=True)
class LinearState:
    """The tensors of a linear layer that calibration and repair change."""

    float_weight: Tensor
    float_bias: Tensor | None
    gain: Tensor | None
    weight_codes: Tensor
    weight_hat: Tensor
    bias_hat: Tensor
    input_scale: Tensor | None
    revised: bool


class QuantLinear(Layer):
    """``y = x W^T + b`` with integer weights.

    The weights are rounded at construction, and once more by :meth:`fold` when the calibrated parameters of the input
    are known: a scale per input channel must leave the sum over these channels, so it is multiplied into the weights
    before they are rounded, and the bias is rounded to the scale of the accumulators. A repair step gives the layer
    other integers with :meth:`revise`; folding starts again from the float weights.

    Args:
        input_module: ``nn.Linear``, or a ``nn.Conv2d`` whose stride is its kernel (applied to flattened patches). Its
            tensors are copied.
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
        self.register_buffer("float_weight", owned(input_module.weight).flatten(1))
        self.register_buffer("float_bias", None if bias is None else owned(bias))
        self.register_buffer("gain", None if gain is None else owned(gain))
        self.weight = WeightPoint(f"{layer_name}.weight", weight_config, head_dim=head_dim, narrow=True)
        self.weight.shape = tuple(self.float_weight.shape)
        self.output = QAct(out_config, None, f"{layer_name}.output", head_dim=head_dim)
        self.weight_codes: Tensor
        self.weight_hat: Tensor
        self.bias_hat: Tensor
        self.input_scale: Tensor | None
        self.register_buffer("input_scale", None, persistent=False)
        self.revised = False  # whether the integers are others than fold() makes
        self._form: tuple[QuantParams, IntegerForm] | None = None
        for name in ("weight_codes", "weight_hat", "bias_hat"):
            self.register_buffer(name, self.float_weight.new_empty(0), persistent=False)
        self.fold(None)

    def check_input(self, x: Tensor) -> None:
        require_kind(x, self.reference, self.label)
        require_width(x, self.float_weight.shape[1], self.label)

    @entrance
    def forward(self, x: Value) -> Value:
        """Apply the layer to ``[..., in]``.

        Where the weights and the input are integers, accumulators leave the layer, unless it quantizes its own output.
        """
        y = self.product(x)
        return self.output(self.weight.show(y, y))  # type: ignore[no-any-return]

    def product(self, x: Value) -> Value:
        """The layer without its output's point."""
        if not self.weight.rounding:
            x = real(x)
            self.require_float(x)
            y = F.linear(x, self.float_weight, self.float_bias)
            return y if self.gain is None else y * self.gain
        form = self.integer_form(x.params) if isinstance(x, QuantizedTensor) else None
        if form is None or not form.fits:
            return F.linear(real(x), self.weight_hat, self.bias_hat)
        assert isinstance(x, QuantizedTensor)
        sums = int_matmul(x.codes, form.weight.t()).add_(form.bias.to(torch.int32))
        return Accumulators(sums, form.scale, self.bias_hat.dtype, form.limit)

    def shape_after(self, *shapes: Shape) -> Shape:
        return (*shapes[0][:-1], len(self.float_weight))

    def params_after(self, *params: QuantParams | None) -> QuantParams | None:
        return self.output.params

    def finish(self, *params: QuantParams | None) -> None:
        """Fold the input's parameters into the weights, and choose those of the output."""
        self.fold(params[0])
        self.output.finish()

    def integer_form(self, input_params: QuantParams) -> IntegerForm:
        """What a device holds of this layer for an input with these parameters; kept until weights or these change."""
        kept = self._form  # read once: another thread may replace it
        if kept is None or kept[0] is not input_params:
            kept = self._form = input_params, self._integer_form(input_params)
        return kept[1]

    def _integer_form(self, input_params: QuantParams) -> IntegerForm:
        centred = self.weight_codes.long() - self.weight.require_params().zero_point.long()
        scale, zero = self.accumulators(centred, input_params)
        bias = (self.bias_hat.double() / scale - zero).round().long()
        largest = max(abs(input_params.qmin), abs(input_params.qmax))
        limit = centred.abs().sum(1) * largest + bias.abs()
        low, high = (int(v) for v in torch.aminmax(centred))
        fits = int(limit.max()) <= INT32_MAX
        return IntegerForm(centred.to(integer_type(low, high)), bias, scale, limit, fits)

    def accumulators(self, centred: Tensor, input_params: QuantParams) -> tuple[Tensor, Tensor]:
        """The unit of the sums of products with codes with these parameters, and what its zero points add to them.

        ``centred`` are the weights' codes less their zero point, ``[out, in]``. Both are float64 ``[out]``. A scale per
        input channel is in the weights already.
        """
        scale = self.weight.require_params().scale.double().reshape(-1).expand(len(centred))
        if input_params.is_scalar:
            scale = scale * input_params.scale.double()
        return scale, centred.double() @ input_params.zero_point.double().expand(centred.shape[1])

    @property
    def state(self) -> LinearState:
        """What calibration changes, to go back to; the points of the layer have theirs."""
        return LinearState(
            self.float_weight,
            self.float_bias,
            self.gain,
            self.weight_codes,
            self.weight_hat,
            self.bias_hat,
            self.input_scale,
            self.revised,
        )

    @state.setter
    def state(self, state: LinearState) -> None:
        self.float_weight, self.float_bias, self.gain = state.float_weight, state.float_bias, state.gain
        self.weight_codes, self.weight_hat, self.bias_hat = state.weight_codes, state.weight_hat, state.bias_hat
        self.input_scale, self.revised, self._form = state.input_scale, state.revised, None

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        self._form = None
        return super()._apply(fn, recurse)

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

    def rewrite(self, weight: Tensor, bias: Tensor) -> None:
        """Take other float weights ``[out, in]`` and biases ``[out]``, the gain included.

        A rewrite of the model gives them; the model computes the same. The integers follow with the next :meth:`fold`.
        """
        kind = self.float_weight.dtype
        self.float_weight, self.float_bias, self.gain = weight.to(kind), bias.to(kind), None
        self.revised = True

    def fold(self, input_params: QuantParams | None) -> None:
        """Round the weights for an input with these parameters (``None``: a float input, or not known yet)."""
        if not self.weight.active or self.float_weight.is_meta:  # shapes only: a saved model fills them in
            return
        weight, bias = self.effective()
        per_channel = input_params is not None and not input_params.is_scalar
        input_scale = input_params.scale.expand(weight.shape[1]) if input_params is not None and per_channel else None
        folded = input_scale is not None or self.input_scale is not None
        if self.weight.params is None or folded or self.revised:
            codes = self.rounded(weight if input_scale is None else weight * input_scale)
        else:
            codes = self.weight_codes
        self.realize(codes, self.rounded_bias(bias, codes, input_params), input_scale)
        self.revised = False

    def revise(
        self,
        input_params: QuantParams | None,
        *,
        codes: Tensor | None = None,
        bias: Tensor | None = None,
        weight_params: QuantParams | None = None,
    ) -> None:
        """Take other integers than rounding gave, for an input with these parameters (``None``: a float input).

        What the simulation, the saved model, the integer program and the exported graphs hold follows from it. The next
        :meth:`fold`, such as that of another calibration, starts again from the float weights.

        Args:
            input_params: those that the input has when the layer computes, as :meth:`fold` had them.
            codes: integer weights ``[out, in]`` on ``weight_params``, in the basis of :meth:`folded_weights`: the
                scales per input channel multiplied in. ``None`` keeps them.
            bias: real numbers ``[out]``, rounded here to the scale of the accumulators. ``None`` keeps it.
            weight_params: scale and zero point of the weights, of the shapes that they have. ``None`` keeps them.

        Raises:
            LifecycleError: the weights stay in floating point.
            ModelError: codes or a bias of another shape, codes out of range, or codes that are no products of the
                groups' multipliers.
        """
        own = self.weight.require_params()
        given = {"codes": (codes, self.weight_codes), "bias": (bias, self.bias_hat)}
        for name, (tensor, like) in given.items():
            if tensor is not None and tensor.shape != like.shape:
                shapes = [f"{list(t.shape)}" for t in (tensor, like)]
                raise ModelError(f"{name} of another shape", where=self.layer_name, got=shapes[0], expected=shapes[1])
        if codes is not None:
            low, high = (int(v) for v in torch.aminmax(codes))
            if low < own.qmin or high > own.qmax:
                got, expected = f"{low} to {high}", f"{own.qmin} to {own.qmax}"
                raise ModelError("codes out of range", where=self.layer_name, got=got, expected=expected)
            codes = codes.to(self.weight_codes.dtype)
            self.require_groups(codes)
        if weight_params is not None:
            self.weight.params = weight_params
        codes = self.weight_codes if codes is None else codes
        bias = self.rounded_bias(self.bias_hat if bias is None else bias, codes, input_params)
        self.realize(codes, bias.to(self.bias_hat.dtype), self.input_scale)

    def require_groups(self, codes: Tensor) -> None:
        """Refuse integer weights ``[out, in]`` that the weights' groups cannot make.

        Raises:
            ModelError: there is a group without a multiplier that divides its codes and leaves few enough bits.
        """
        if self.weight.group:
            try:
                multipliers(codes.cpu().numpy(), self.packing)
            except ValueError as error:
                raise ModelError(f"codes that do not fit their groups: {error}", where=self.layer_name) from error

    @property
    def packing(self) -> Packing:
        """How the integer weights are stored where they have fewer than 8 bits."""
        columns = self.float_weight.shape[1]
        return Packing(self.weight.require_config().bit_type.bits, columns, min(self.weight.group, columns))

    def rounded_bias(self, bias: Tensor, codes: Tensor, input_params: QuantParams | None) -> Tensor:
        """A bias ``[out]`` on the scale of the accumulators, as far as that is known.

        ``codes`` are the weights ``[out, in]`` whose products with the zero points of the input go into it.
        """
        if input_params is None:
            return bias
        scale, zero = self.accumulators(codes - self.weight.require_params().zero_point, input_params)
        return (((bias / scale - zero).round() + zero) * scale).to(bias.dtype)

    def rounded(self, weight: Tensor) -> Tensor:
        """Choose the grid for these weights ``[out, in]``, and give their codes on it."""
        self.weight.observer = self.weight.new_observer()
        with self.weight.named():
            self.weight.observer.observe(weight)
        self.weight.finish()
        params, group = self.weight.require_params(), self.weight.group
        if not group:
            return quantize(weight, params).to(integer_type(params.qmin, params.qmax))
        found = best_multipliers(weight, params.scale, self.weight.limit, group)
        codes = quantize_grouped(weight, params.scale, found, self.weight.limit, group)
        return codes.to(integer_type(params.qmin, params.qmax))

    def realize(self, codes: Tensor, bias: Tensor, input_scale: Tensor | None) -> None:
        """Take integer weights ``[out, in]``, the bias that goes with them, and what was folded into them.

        ``input_scale`` is the scale per input channel, ``[in]``, or ``None`` where nothing was folded.
        """
        params = self.weight.require_params()
        self.weight_codes, self.bias_hat, self.input_scale, self._form = codes, bias, input_scale, None
        self.revised = True
        weight = (codes.to(bias.dtype) - params.zero_point) * params.scale
        self.weight_hat = weight if input_scale is None else weight / input_scale

    def folded_weights(self) -> tuple[Tensor, Tensor]:
        """The weights ``[out, in]`` that were rounded, the input's scales multiplied in, and what rounding left."""
        weight, _ = self.effective()
        if self.input_scale is None:
            return weight, self.weight_hat
        return weight * self.input_scale, self.weight_hat * self.input_scale

    @property
    def label(self) -> str:
        return self.layer_name

    @property
    def reference(self) -> Tensor:
        """A tensor of the type and on the device that the layer computes with."""
        return self.bias_hat if self.weight.active else self.float_weight

    @property
    def layer_name(self) -> str:
        """Name of the layer; its points are ``<layer_name>.weight`` and ``<layer_name>.output``."""
        return self.weight.name.rsplit(".", 1)[0]
