"""How one point is quantized."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    model_validator,
)
from pydantic.functional_validators import ModelWrapValidatorHandler

from vitquant.config.catalogue import PointKind
from vitquant.config.explain import FieldError, brief, explain

if TYPE_CHECKING:
    from typing_extensions import Self

CalibrationMode = Literal["layer_wise", "channel_wise", "head_wise"]
ObserverType = Literal["MinmaxObserver", "PercentileObserver", "KLObserver", "OmseObserver"]
QuantizationMethod = Literal["uniform", "power_of_two"]
SoftmaxForm = Literal["uniform", "row", "diffusion", "log2"]
SoftmaxApproximation = Literal["table", "ibert", "shiftmax"]

MAX_GROUPED_BITS = 4
"""The widest weights that can have groups: a group multiplies them by up to 16, and 8 bits must hold the product."""

PARTIAL = "partial"
"""Validation context of a section in a file: combinations of fields are checked after merging."""


def _lower(value: object) -> object:
    return value.lower() if isinstance(value, str) else value


def _builtin(value: object) -> object:
    """A NumPy scalar as the equivalent Python number or text; any other value unchanged."""
    numpy = sys.modules.get("numpy")  # a NumPy value can exist only if NumPy was imported
    return value.item() if numpy is not None and isinstance(value, numpy.generic) else value


class Settings(BaseModel):
    """Frozen, strict settings; an invalid value raises a :class:`FieldError`."""

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid")
    key_prefix: ClassVar[str] = ""
    owner: ClassVar[str] = "QuantConfig"
    """What messages call the settings."""

    @model_validator(mode="wrap")
    @classmethod
    def _explain(cls, data: Any, handler: ModelWrapValidatorHandler[Self]) -> Self:
        if isinstance(data, Mapping):
            data = {key: _builtin(value) for key, value in data.items()}
        try:
            return handler(data)
        except ValidationError as error:
            found = explain(error, cls.model_json_schema(), cls.key_prefix)
            raise found.located(f"{cls.owner} {brief(found.key)}") from error


class BitType(Settings):
    """The integer type of quantized values.

    >>> BitType(bits=4, signed=False)
    BitType(bits=4, signed=False)
    """

    key_prefix: ClassVar[str] = "bit_type."

    bits: int = Field(8, ge=2, le=16, description="Width of a quantized value in bits, 2 to 16.")
    signed: bool = Field(
        True,
        description="true: symmetric around zero, zero_point 0. false: unsigned affine, with a zero point.",
    )


class QuantConfig(Settings):
    """How one point is quantized. Every field has a default, so ``QuantConfig()`` is 8-bit, signed, per tensor.

    Raises:
        FieldError: a :class:`vitquant.errors.ConfigError`; an unknown field, a value of the wrong type or out of
            range, or a softmax form that the bit type does not support.

    >>> QuantConfig(calibration_mode="channel_wise", bit_type=BitType(bits=4)).bit_type.bits
    4
    """

    calibration_mode: CalibrationMode = Field(
        "layer_wise",
        description="Granularity: layer_wise is per-tensor, channel_wise per-channel (for scores and probabilities the "
        "channel is the head), head_wise per-head, or per-group with groups as wide as a head.",
    )
    bit_type: BitType = Field(default_factory=BitType, description="Width and sign of the quantized values.")
    observer_type: ObserverType = Field(
        "MinmaxObserver",
        description="How the range is computed from the calibration images: extremes, percentile, minimal "
        "Kullback-Leibler divergence, or minimal squared error.",
    )
    quantization_method: Annotated[QuantizationMethod, BeforeValidator(_lower)] = Field(
        "uniform",
        description="uniform: any scale. power_of_two: each scale is rounded up to a power of two, so that "
        "requantization is a shift. Case-insensitive.",
    )
    percentile_alpha: float = Field(
        0.99999,
        gt=0.5,
        le=1,
        description="PercentileObserver: the range spans the quantiles 1 - alpha and alpha of a batch.",
    )
    percentile_sigma: float = Field(
        0.01,
        gt=0,
        le=1,
        description="PercentileObserver: weight of the latest batch in the moving average over batches.",
    )
    kl_bins: int = Field(
        2048,
        ge=64,
        le=65536,
        multiple_of=2,
        description="Number of histogram bins of KLObserver and OmseObserver.",
    )
    range_margin: float = Field(
        1.0,
        ge=1,
        le=4,
        description="Widen the range around its middle by this factor, to hold values larger than those of the "
        "calibration images.",
    )
    enable_profiler: bool = Field(
        False, description="Record detailed metrics of this point in a profile: SQNR, range, clipping and others."
    )
    output_quant_enable: bool = Field(True, description="false: this point stays in floating point.")
    softmax: SoftmaxForm = Field(
        "uniform",
        description="intSoft only: quantization of the probabilities. uniform: scales from the observer. row: each row "
        "is scaled by its own maximum. diffusion: as row, with rounding errors passed on to the next token. log2: "
        "powers of two. All but uniform need an unsigned bit_type and ignore the observer.",
    )
    approximation: SoftmaxApproximation = Field(
        "table",
        description="intSoft only: the integer exponential. table: exact values; ibert: polynomial of I-BERT (Kim et "
        "al., 2021); shiftmax: Shiftmax of I-ViT (Li and Gu, 2023).",
    )
    weight_groups: int = Field(
        0,
        ge=0,
        le=4096,
        description="Weights only: number of neighbouring inputs that share a whole multiplier from 1 to 16 of the "
        "row's scale (QServe, Lin et al., 2024). 0: no groups. Needs a signed bit_type of at most 4 bits.",
    )

    @model_validator(mode="after")
    def _combination(self, info: ValidationInfo) -> Self:
        if info.context != PARTIAL and self.softmax != "uniform" and self.bit_type.signed:
            raise FieldError(
                "softmax",
                f"softmax: {self.softmax} needs an unsigned bit_type",
                got="bit_type.signed: true",
                expected="bit_type.signed: false",
                fix="set bit_type: {signed: false}, or softmax: uniform",
            )
        bits, signed = self.bit_type.bits, self.bit_type.signed
        if info.context != PARTIAL and self.weight_groups and not (signed and bits <= MAX_GROUPED_BITS):
            raise FieldError(
                "weight_groups",
                "weight_groups needs a signed bit_type of few bits",
                got=f"bit_type: {{bits: {bits}, signed: {str(signed).lower()}}}",
                expected=f"at most {MAX_GROUPED_BITS} bits and signed: true, so that 8 bits hold a weight times 16",
                fix="set weight_groups: 0, or another bit_type",
            )
        return self


ONLY_FOR: Mapping[str, PointKind] = MappingProxyType(
    {"softmax": PointKind.INTSOFT, "approximation": PointKind.INTSOFT, "weight_groups": PointKind.WEIGHT}
)
"""Fields that apply to points of one kind only."""
