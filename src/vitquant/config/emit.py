"""Configurations as YAML text."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

import yaml

from vitquant.config.catalogue import LAYERS, POINT_KINDS, PointKind, section_of
from vitquant.config.document import flatten, unflatten
from vitquant.config.quant_config import QuantConfig

_ALWAYS = ("calibration_mode", "bit_type.bits", "bit_type.signed", "observer_type")
_SOFTMAX = ("softmax", "approximation")
_DEFAULTS = flatten(QuantConfig())


def settings(config: QuantConfig, kind: PointKind) -> dict[str, object]:
    """The fields to write for a config: the most important fields, and all that differ from the defaults."""
    always = (*_ALWAYS, *_SOFTMAX) if kind is PointKind.INTSOFT else _ALWAYS
    return unflatten({k: v for k, v in flatten(config).items() if k in always or v != _DEFAULTS[k]})


def difference(config: QuantConfig, base: QuantConfig) -> dict[str, object]:
    """The fields in which ``config`` differs from ``base``."""
    other = flatten(base)
    return unflatten({k: v for k, v in flatten(config).items() if v != other[k]})


def layer_sections(configs: Mapping[str, QuantConfig]) -> dict[str, object]:
    """Nested layer sections from configs keyed by section name (``attn_qkv.weight``), in model order."""
    nested: dict[str, object] = {}
    for layer in LAYERS.values():
        given = {name: settings(configs[name], kind) for name, kind in layer.points.items() if name in configs}
        if given:
            parts: dict[str, object] = {name.removeprefix(f"{layer.name}."): value for name, value in given.items()}
            nested[layer.name] = parts if layer.linear else parts[layer.name]
    return nested


def model_sections(table: Mapping[str, QuantConfig | None]) -> dict[str, object]:
    """A resolved table as layer sections with the most common settings, and overrides for the exceptions.

    A layer that stays in floating point in some block gets no section, since a section applies to all blocks.
    """
    by_section: dict[str, list[QuantConfig | None]] = {section: [] for section in POINT_KINDS}
    for point, config in table.items():
        by_section[section_of(point)].append(config)
    common: dict[str, QuantConfig] = {}
    for section, found in by_section.items():
        present = [config for config in found if config is not None]
        if present and len(present) == len(found):
            common[section] = Counter(present).most_common(1)[0][0]
    overrides = {}
    for point, config in table.items():
        base = common.get(section_of(point))
        if config is not None and config != base:
            overrides[point] = difference(config, base) if base else settings(config, POINT_KINDS[section_of(point)])
    document = layer_sections(common)
    if overrides:
        document["overrides"] = overrides
    return document or {"defaults": {}}


def dump(sections: Mapping[str, object]) -> str:
    """YAML text, in the given order; innermost mappings on one line."""
    return yaml.safe_dump(dict(sections), sort_keys=False, default_flow_style=None, width=120)
