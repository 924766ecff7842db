"""The settings of each point, and the rules that set them.

Fields are merged; the more specific rule wins: built-in defaults, then the global section of the point's kind, then its
layer's section, then the overrides that match its name (a pattern with more literal characters overrides one
with fewer, and the exact name overrides all).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from vitquant.config.catalogue import LAYERS, POINT_KINDS, PointKind, closest, section_of
from vitquant.config.document import Document, Override, Section, unflatten
from vitquant.config.explain import FieldError, brief
from vitquant.config.quant_config import ONLY_FOR, QuantConfig
from vitquant.errors import ConfigError

FLOAT_SOURCE = "no rule, stays float"


@dataclass(frozen=True)
class Resolution:
    """The settings of one point, and the rules that set them; ``None`` if no rule covers the point."""

    config: QuantConfig | None
    source: str


def resolve_section(document: Document, section: str) -> Resolution:
    """The settings of a layer in all blocks, without overrides. ``section`` is as in the catalogue."""
    return _merge(section, section, document.sections_of(section, POINT_KINDS[section]), ())


def resolve_default(section: Section) -> QuantConfig:
    """The settings of a global section on its own."""
    return _build(dict.fromkeys(section.fields, section), section.name)


def resolve_point(document: Document, point: str) -> Resolution:
    """The settings of one point of a model.

    Raises:
        ConfigError: equally specific overrides conflict, or the merged settings are incompatible.
    """
    section = section_of(point)
    overrides = [rule for rule in document.overrides if rule.pattern.matches(point)]
    return _merge(point, section, document.sections_of(section, POINT_KINDS[section]), overrides)


def require_matching(document: Document, points: Sequence[str]) -> None:
    """Check that every override matches a point of a model.

    Raises:
        ConfigError: an override, or an item of its pattern, matches no point.
    """
    for override in document.overrides:
        if not any(map(override.pattern.matches, points)):
            raise _no_match(override, points)
        for idle in override.pattern.idle(points):
            raise _partly_idle(override, *idle)


def _merge(point: str, section: str, base: Sequence[Section], overrides: Sequence[Override]) -> Resolution:
    rules = [*base, *(rule.section for rule in sorted(overrides, key=lambda rule: rule.pattern.specificity))]
    if not rules:
        return Resolution(None, FLOAT_SOURCE)
    _refuse_ties(point, overrides)
    winners = {field: rule for rule in rules for field in rule.fields}
    _refuse_strays(point, POINT_KINDS[section], winners)
    config = _build(winners, point)
    _check_point(point, section, winners, config)
    return Resolution(config, _source(rules, winners))


def _build(winners: Mapping[str, Section], name: str) -> QuantConfig:
    """The merged config. ``winners`` maps each given field to the rule whose value is used."""
    try:
        return QuantConfig.model_validate(unflatten({field: rule.fields[field] for field, rule in winners.items()}))
    except FieldError as error:
        raise error.at(f"{winners[error.key].where(error.key)}, for {name}") from error


def _refuse_ties(point: str, overrides: Sequence[Override]) -> None:
    strongest: dict[str, Override] = {}
    rivals: dict[str, Override] = {}
    for rule in overrides:
        for field, value in rule.section.fields.items():
            held = strongest.get(field)
            rank = rule.pattern.specificity
            if held is None or rank > held.pattern.specificity:
                strongest[field] = rule
                rivals.pop(field, None)
            elif rank == held.pattern.specificity and value != held.section.fields[field]:
                rivals[field] = rule
    for field, rule in rivals.items():
        held = strongest[field]
        other = f"{held.section.name} ({held.section.locations.get(field, held.section.location)})"
        raise ConfigError(
            f"conflicts with {other} at {point}; neither is more specific",
            where=rule.section.where(field),
            got=f"{rule.section.fields[field]} and {held.section.fields[field]}",
            fix=f"use the exact name {point}, or narrow one of the patterns",
        )


def _refuse_strays(point: str, kind: PointKind, winners: Mapping[str, Section]) -> None:
    others = [field for field, only in ONLY_FOR.items() if only is not kind and field in winners]
    stray = next((field for field in others if _deliberate(field, winners[field])), None)
    if stray:
        only = ONLY_FOR[stray]
        raise ConfigError(
            f"`{stray}` applies to {only.points} only, but the rule matches {point}",
            where=winners[stray].where(stray),
            fix=f"use {'blocks.*.intSoft' if only is PointKind.INTSOFT else '*.weight'}",
        )


def _check_point(point: str, section: str, winners: Mapping[str, Section], config: QuantConfig) -> None:
    kind, layer = POINT_KINDS[section], LAYERS[section.partition(".")[0]]
    if kind is PointKind.WEIGHT and config.calibration_mode == "head_wise" and not layer.head_rows:
        with_heads = " and ".join(f"{name}.weight" for name, layer in LAYERS.items() if layer.head_rows)
        raise ConfigError(
            f"the rows of {point} do not belong to attention heads",
            where=winners["calibration_mode"].where("calibration_mode"),
            got="head_wise",
            expected="layer_wise or channel_wise",
            fix=f"use head_wise for {with_heads} only",
        )


def _deliberate(field: str, rule: Section) -> bool:
    """Whether a rule sets a field on purpose. A QuantConfig from Python sets all fields, unused ones included."""
    return field in rule.locations or rule.fields[field] != QuantConfig.model_fields[field].default


def _source(rules: Sequence[Section], winners: Mapping[str, Section]) -> str:
    """The rules that set at least one field, each but the first with the fields that it set."""
    parts: list[str] = []
    for rule in rules:
        fields = [field.removeprefix("bit_type.") for field, winner in winners.items() if winner is rule]
        if fields or not winners:
            line = f":{rule.location.line}" if rule.location.line is not None else ""
            parts.append(f"{rule.name}{line}" + (f" ({', '.join(fields)})" if parts else ""))
    return ", ".join(parts)


def _no_match(override: Override, points: Sequence[str]) -> ConfigError:
    pattern = override.pattern.text
    globs = [f"blocks.*.{section_of(point)}" for point in points if point.startswith("blocks.")]
    layer = LAYERS.get(pattern.split(".")[-1])
    if layer is not None and layer.linear:
        near: str | None = f"{pattern}.weight, {pattern}.output"
    else:
        known = [*globs, *points] if override.pattern.is_glob else [*points, *globs]
        near = closest(pattern, list(dict.fromkeys(known)))
        near = f"blocks.*.{pattern}" if f"blocks.*.{pattern}" in globs else near
    return ConfigError(
        f"`{pattern}` matches no point of the model",
        where=f"{override.section.location} {override.section.name}",
        expected=near and f"a name such as {near}",
        fix="list the points with `vitquant config show`",
    )


def _partly_idle(override: Override, written: str, idle: Sequence[str], kept: str) -> ConfigError:
    parts = ", ".join(idle[:5]) + (", ..." if len(idle) > 5 else "")
    return ConfigError(
        f"part of `{brief(written)}` matches no point of the model",
        where=f"{override.section.location} {override.section.name}",
        got=parts,
        fix=f"write {override.pattern.text.replace(written, kept)}; list the points with `vitquant config show`",
    )
