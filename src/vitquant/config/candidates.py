"""Which other settings of a point are compared."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from itertools import product
from typing import Any

from vitquant.config.catalogue import POINT_KINDS, PointKind, section_of
from vitquant.config.explain import FieldError
from vitquant.config.pattern import Pattern
from vitquant.config.quant_config import QuantConfig
from vitquant.errors import ConfigError

OBSERVER_NAMES = {
    "minmax": "MinmaxObserver",
    "percentile": "PercentileObserver",
    "kl": "KLObserver",
    "omse": "OmseObserver",
}
GRANULARITY = {"layer_wise": "per-tensor", "channel_wise": "per-channel", "head_wise": "per-head"}


@dataclass(frozen=True)
class Candidates:
    """The settings that are compared at each point: all combinations of the given values.

    A field that is empty leaves what the point has. Values that do not apply to a point are left out: observers and
    granularities at softmax in the forms ``row``, ``diffusion`` and ``log2``, forms of softmax elsewhere.

    Args:
        bits: widths, 2 to 16.
        weight_bits: widths of weights; ``bits`` if there are none.
        observers: ``minmax``, ``percentile``, ``kl``, ``omse``.
        modes: ``layer_wise``, ``channel_wise``, ``head_wise``.
        percentiles: values of ``percentile_alpha`` for ``percentile``.
        softmax: forms, ``uniform``, ``row``, ``diffusion`` or ``log2``.
        points: names or patterns of the points.

    Raises:
        ConfigError: a value is not allowed.

    >>> [c.bit_type.bits for c in Candidates(bits=(4, 6)).of("norm1", QuantConfig())]
    [4, 6]
    """

    bits: tuple[int, ...] = ()
    weight_bits: tuple[int, ...] = ()
    observers: tuple[str, ...] = ()
    modes: tuple[str, ...] = ()
    percentiles: tuple[float, ...] = ()
    softmax: tuple[str, ...] = ()
    points: tuple[str, ...] = ("*",)

    def __post_init__(self) -> None:
        for part in fields(self):
            object.__setattr__(self, part.name, tuple(getattr(self, part.name)))
        for name in self.observers:
            if name not in OBSERVER_NAMES:
                raise ConfigError("unknown observer", where="observer", got=name, expected=", ".join(OBSERVER_NAMES))
        for pattern in self.points:
            Pattern.parse(pattern)
        for option, values in (
            ("bits", [{"bit_type": {"bits": bits}} for bits in (*self.bits, *self.weight_bits)]),
            ("mode", [{"calibration_mode": mode} for mode in self.modes]),
            ("percentile", [{"percentile_alpha": alpha} for alpha in self.percentiles]),
            ("softmax", [{"softmax": form, "bit_type": {"signed": False}} for form in self.softmax]),
        ):
            for value in values:
                try:
                    QuantConfig.model_validate(value)
                except FieldError as error:
                    raise error.at(option) from error

    def replaced(self, **changes: Any) -> Candidates:
        """The same with other values of some fields."""
        return replace(self, **changes)

    def chosen(self, names: Sequence[str]) -> list[str]:
        """Those of the points that a pattern names.

        Raises:
            ConfigError: a pattern matches none of them.
        """
        patterns = [Pattern.parse(text) for text in self.points]
        for pattern in patterns:
            if not any(map(pattern.matches, names)):
                expected = "a quantized point or pattern; `vitquant config show` lists the points"
                raise ConfigError("no quantized point matches", where="point", got=pattern.text, expected=expected)
        return [name for name in names if any(pattern.matches(name) for pattern in patterns)]

    def of(self, point: str, own: QuantConfig) -> list[QuantConfig]:
        """The settings that are compared with those of a point, without the point's own."""
        kind = POINT_KINDS[section_of(point)]
        softmax = kind is PointKind.INTSOFT
        widths = (self.weight_bits if kind is PointKind.WEIGHT else ()) or self.bits or (own.bit_type.bits,)
        found: dict[QuantConfig, None] = {}
        for bits, form in product(widths, (self.softmax if softmax else ()) or (None,)):
            base = changed(own, bits=bits, softmax=form)
            if softmax and base.softmax != "uniform":
                found[base] = None
                continue
            for mode, (observer, alpha) in product(self.modes or (None,), self.observed(own)):
                found[changed(base, mode=mode, observer=observer, alpha=alpha)] = None
        return [config for config in found if config != own]

    def observed(self, own: QuantConfig) -> Iterator[tuple[str | None, float | None]]:
        """The observers with their percentiles."""
        for name in self.observers or (None,):
            kind = own.observer_type if name is None else OBSERVER_NAMES[name]
            for alpha in (self.percentiles if kind == "PercentileObserver" else ()) or (None,):
                yield (None if name is None else kind), alpha


def changed(
    own: QuantConfig,
    *,
    bits: int | None = None,
    softmax: str | None = None,
    mode: str | None = None,
    observer: str | None = None,
    alpha: float | None = None,
) -> QuantConfig:
    """Settings with some fields changed. All forms of softmax but ``uniform`` are unsigned."""
    values = own.model_dump()
    if bits is not None:
        values["bit_type"]["bits"] = bits
    if softmax is not None:
        values["softmax"] = softmax
        if softmax != "uniform":
            values["bit_type"]["signed"] = False
    given = {"calibration_mode": mode, "observer_type": observer, "percentile_alpha": alpha}
    return QuantConfig.model_validate(values | {key: value for key, value in given.items() if value is not None})


def setting_label(config: QuantConfig, point: str) -> str:
    """The settings of a point in a few words.

    >>> setting_label(QuantConfig(), "norm1")
    'int8 per-tensor minmax'
    """
    bits = config.bit_type
    kind = f"{'int' if bits.signed else 'uint'}{bits.bits}"
    if POINT_KINDS[section_of(point)] is PointKind.INTSOFT and config.softmax != "uniform":
        return f"{kind} {config.softmax}"
    observer = next(name for name, kind in OBSERVER_NAMES.items() if kind == config.observer_type)
    alpha = f" {config.percentile_alpha:g}" if observer == "percentile" else ""
    power = " power-of-two" if config.quantization_method == "power_of_two" else ""
    return f"{kind} {GRANULARITY[config.calibration_mode]} {observer}{alpha}{power}"
