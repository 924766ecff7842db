"""What each runtime can hold, and how a calibrated grid becomes one that it takes.

Fast kernels want one scale and one zero point for a whole activation. A grid with a scale per channel is therefore put
down as ``x / scale + zero_point``, rounded with scale 1: the same codes. Dividing and shifting cost nothing where a
LayerNorm or a linear layer made ``x``; the linear layer that reads the codes has the scales in its weights already.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np

from vitquant.errors import ConfigError
from vitquant.numerics.affine import QuantParams
from vitquant.numerics.packing import Packing
from vitquant.program.values import Array

OPSETS = range(18, 22)
"""Reductions take their axes as an input from 18 on; with 21 everything is there that we use."""

GELU_OPSET, WIDE_OPSET = 20, 21
"""From 20 on there is Gelu, from 21 on codes of 4 and 16 bits."""


@dataclass(frozen=True)
class Target:
    """A runtime.

    Attributes:
        name: as users write it.
        opset: what is written unless they ask for another.
        wide: activations may have more than 8 bits.
        symmetric: activations have zero point 0.
        symmetric_weights: weights have zero point 0.
        wide_weights: weights may have more than 8 bits.
        activations: the type of all 8-bit activations; otherwise int8 or uint8 as they are configured.
        packed: weights of up to 4 bits may be stored as INT4; otherwise they are int8.
        any_blocks: INT4 weights may have one scale per block where a row is a single block or ends with a shorter one.
        integer_bias: biases are int32 on the scale of the accumulators; otherwise float.
    """

    name: str
    opset: int
    wide: bool = False
    symmetric: bool = False
    symmetric_weights: bool = True
    wide_weights: bool = True
    activations: str | None = None
    packed: bool = False
    any_blocks: bool = False
    integer_bias: bool = False


TARGETS: Mapping[str, Target] = MappingProxyType(
    {
        target.name: target
        for target in (
            Target(
                "onnxruntime",
                opset=21,
                wide=True,
                symmetric_weights=False,
                activations="uint8",
                packed=True,
                any_blocks=True,
                integer_bias=True,
            ),
            Target("openvino", opset=21, packed=True),
            Target("tensorrt", opset=20, symmetric=True, wide_weights=False, activations="int8"),
        )
    }
)


@dataclass(frozen=True)
class Runtime:
    """A target, the opset that is written for it, and whether 4-bit weights are stored as INT4 where they can be."""

    target: Target
    opset: int
    packed: bool

    @classmethod
    def of(cls, target: str, opset: int | None = None, packed: bool = True) -> Runtime:
        """By the names that users give.

        Raises:
            ConfigError: there is no such target, or the opset is none that is written.
        """
        if target not in TARGETS:
            raise ConfigError("unknown target", where="target", got=repr(target), expected=" or ".join(TARGETS))
        opset = TARGETS[target].opset if opset is None else opset
        if opset not in OPSETS:
            raise ConfigError(
                "ONNX is not written in this opset",
                where="opset",
                got=opset,
                expected=f"{OPSETS[0]} to {OPSETS[-1]}",
                fix=f"leave it out for {TARGETS[target].opset}, which {target} takes",
            )
        return cls(TARGETS[target], opset, packed and TARGETS[target].packed and opset >= WIDE_OPSET)

    @property
    def too_wide(self) -> str:
        """What is told of a point whose codes have no type."""
        if self.target.wide:
            return f"left float: activations of more than 8 bits need opset {WIDE_OPSET}"
        return f"left float: {self.target.name} takes activations of 8 bits"

    def dtype(self, qmin: int, qmax: int) -> str | None:
        """The type that holds these codes of an activation, moved by 128 if need be; ``None`` if there is none."""
        natural = narrowest_code(qmin, qmax)
        if natural.endswith("16"):
            return natural if self.target.wide and self.opset >= WIDE_OPSET else None
        return self.target.activations or natural

    def weight_dtype(self, qmin: int, qmax: int) -> str | None:
        """The type that holds these codes of weights; ``None`` if there is none."""
        natural = narrowest_code(qmin, qmax)
        if self.packed and natural == "int8" and qmin >= -8 and qmax <= 7:
            return "int4"
        wide, unsigned = natural.endswith("16"), natural.startswith("u")
        takes = self.target.wide_weights and self.opset >= WIDE_OPSET if wide else True
        return natural if takes and not (unsigned and self.target.symmetric_weights) else None

    def takes_blocks(self, packing: Packing) -> bool:
        """Whether weights with groups are stored as INT4 with a scale per group; otherwise they are int8."""
        several = packing.groups > 1 and packing.columns % packing.group == 0
        return self.packed and (several or self.target.any_blocks)


def narrowest_code(qmin: int, qmax: int) -> str:
    """The narrowest type that holds these codes, of those with 8 and 16 bits."""
    kind = "int" if qmin < 0 else "uint"
    info = np.iinfo(f"{kind}8")
    return f"{kind}{8 if info.min <= qmin and qmax <= info.max else 16}"


@dataclass(frozen=True)
class QdqFormat:
    """How a real tensor ``x`` lands on a grid: ``gain * x + offset`` goes through QuantizeLinear and DequantizeLinear.

    ``gain`` and ``offset`` (float64) have one element, or one for each channel; ``scale`` and ``zero_point`` are those
    of both nodes. ``clip`` bounds the tensor in front of them where the codes do not fill ``dtype``.
    """

    gain: Array
    offset: Array
    scale: float
    zero_point: int
    dtype: str
    clip: tuple[float, float] | None

    @property
    def is_8_bit(self) -> bool:
        """Whether integer kernels can read the codes."""
        return self.dtype in ("int8", "uint8")


def qdq_format(grid: QuantParams, runtime: Runtime) -> QdqFormat | None:
    """The grid as a runtime can hold it, codes and rounding unchanged; ``None`` where it cannot."""
    dtype = runtime.dtype(grid.qmin, grid.qmax)
    if dtype is None:
        return None
    real, zero = (t.detach().cpu().double().reshape(-1).numpy() for t in (grid.scale, grid.zero_point))
    info = np.iinfo(dtype)
    moved = 128 * ((grid.qmin < 0) - int(info.min < 0))
    low, high = grid.qmin + moved, grid.qmax + moved
    scalar, symmetric = len(real) == 1, runtime.target.symmetric
    gain, scale = (np.ones(1), float(real[0])) if scalar else (1 / real, 1.0)
    zero_point = 0 if symmetric else int(zero[0]) + moved if scalar else max(moved, 0)
    offset = (zero + moved - zero_point) * scale
    full = low == info.min and high == info.max
    clip = None if full else ((low - zero_point) * scale, (high - zero_point) * scale)
    return QdqFormat(gain, offset, scale, zero_point, dtype, clip)
