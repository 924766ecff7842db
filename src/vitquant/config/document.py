"""A configuration file as sections: which of the three formats it has, and the settings in each section.

*Global*: ``outputs / weight / activation / norm / intsoft``. *Per-layer*: one section per layer, with global
sections as a fallback. *Model*: ``defaults`` (the global sections), layer sections, and ``overrides`` by point.
Each of them may have a list of steps in ``repair``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from vitquant.config.catalogue import LAYERS, PointKind, closest
from vitquant.config.explain import FieldError, show, unknown_field
from vitquant.config.pattern import Pattern
from vitquant.config.quant_config import ONLY_FOR, PARTIAL, BitType, QuantConfig
from vitquant.config.repair import StepSettings, read_repair
from vitquant.config.source import Leaf, Location, Node, Table, plain
from vitquant.errors import ConfigError

GLOBAL_KEYS: Mapping[str, PointKind] = {"outputs": PointKind.OUTPUT, **{kind.value: kind for kind in PointKind}}
"""Keys of the global sections; ``output`` is another spelling of ``outputs``."""

_LINEAR_PARTS = ("weight", "output")


@dataclass(frozen=True)
class Section:
    """The settings in one section: some fields of a :class:`QuantConfig`.

    ``name`` is its dotted key in the file; ``fields`` maps dotted fields (``bit_type.bits``) to values, ``locations``
    the same fields to where they were written.
    """

    name: str
    location: Location
    fields: Mapping[str, object]
    locations: Mapping[str, Location]

    def where(self, field: str) -> str:
        """``FILE:LINE KEY`` of one field."""
        return f"{self.locations.get(field, self.location)} {self.name}.{field}"


@dataclass(frozen=True)
class Override:
    """A section for the points whose full name matches ``pattern``."""

    pattern: Pattern
    section: Section


@dataclass(frozen=True)
class Document:
    """One configuration. ``layers`` is keyed by the section name of a point (``attn_qkv.weight``)."""

    form: str
    name: str
    defaults: Mapping[PointKind, Section]
    layers: Mapping[str, Section]
    overrides: tuple[Override, ...]
    repair: tuple[StepSettings, ...]

    def sections_of(self, section: str, kind: PointKind) -> tuple[Section, ...]:
        """The sections that apply to a point, least specific first: at most one global section and one of its layer."""
        base = next((self.defaults[key] for key in kind.fallbacks if key in self.defaults), None)
        return tuple(found for found in (base, self.layers.get(section)) if found is not None)


def read_document(root: Table) -> Document:
    """Read the entries of a file into sections.

    Raises:
        ConfigError: an unknown or misplaced key, an empty section, or a value that is not allowed.
    """
    form = form_of(root)
    top = {key: node for key, node in root.entries.items() if key in GLOBAL_KEYS}
    nested = _entries(root.entries["defaults"], "defaults") if "defaults" in root.entries else {}
    sections = [(key, key, node) for key, node in top.items()]
    sections += [(key, f"defaults.{key}", node) for key, node in nested.items()]
    return Document(
        form=form,
        name=root.location.file,
        defaults=_read_defaults(sections),
        layers={k: v for key, node in root.entries.items() if key in LAYERS for k, v in _read_layer(key, node)},
        overrides=_read_overrides(root.entries["overrides"]) if "overrides" in root.entries else (),
        repair=read_repair(root.entries["repair"]) if "repair" in root.entries else (),
    )


def form_of(root: Table) -> str:
    """``"global"``, ``"per-layer"`` or ``"model"``.

    Raises:
        ConfigError: a top-level key belongs to none of the formats.
    """
    known = (*LAYERS, *GLOBAL_KEYS, "defaults", "overrides", "repair")
    for key, node in root.entries.items():
        if key not in known:
            near = closest(key, known)
            if any(char in key for char in ".*?[{"):
                raise ConfigError(
                    f"unknown layer or section `{key}`",
                    where=f"{node.location} {key}",
                    fix="put point names and patterns under overrides",
                )
            raise ConfigError(
                f"unknown layer or section `{key}`" + (f", did you mean `{near.split(', ')[0]}`" if near else ""),
                where=f"{node.location} {key}",
                expected=near or "a layer, a global section, defaults, overrides or repair",
                fix=f"the layers are {', '.join(LAYERS)}; the global sections are {', '.join(GLOBAL_KEYS)}",
            )
    if "defaults" in root.entries or "overrides" in root.entries:
        return "model"
    return "per-layer" if any(key in LAYERS for key in root.entries) else "global"


def _read_defaults(sections: list[tuple[str, str, Node]]) -> Mapping[PointKind, Section]:
    found: dict[PointKind, Section] = {}
    for key, name, node in sections:
        if key not in GLOBAL_KEYS:
            raise unknown_field(key, key, tuple(GLOBAL_KEYS)).at(f"{node.location} {name}")
        kind = GLOBAL_KEYS[key]
        if kind in found:
            other = f"`{found[kind].name}` ({found[kind].location})"
            raise ConfigError(f"duplicates {other}", where=f"{node.location} {name}", fix="remove one of them")
        found[kind] = read_section(node, name, kind)
    return found


def _read_layer(name: str, node: Node) -> Iterator[tuple[str, Section]]:
    layer = LAYERS[name]
    if layer.kind is not None:
        yield name, read_section(node, name, layer.kind)
        return
    parts = _entries(node, name)
    for part, child in parts.items():
        if part not in _LINEAR_PARTS:
            raise ConfigError(
                f"unknown key `{part}`",
                where=f"{child.location} {name}.{part}",
                expected="weight or output, since this is a linear layer",
                fix=f"nest the settings under {name}: weight: or output:",
            )
        if not (isinstance(child, Leaf) and child.value is None and child.location.line is None):
            yield f"{name}.{part}", read_section(child, f"{name}.{part}", PointKind(part))
    if not parts:
        raise ConfigError("empty section", where=f"{node.location} {name}", expected="weight, output or both")


def _read_overrides(node: Node) -> tuple[Override, ...]:
    found: dict[str, Override] = {}
    for override in _each_override(node):
        first = found.setdefault(override.pattern.text, override)
        if first is not override:
            raise ConfigError(
                f"duplicates {first.section.name} ({first.section.location})",
                where=f"{override.section.location} {override.section.name}",
                fix="merge the two",
            )
    return tuple(found.values())


def _each_override(node: Node) -> Iterator[Override]:
    for pattern, child in _entries(node, "overrides").items():
        name = f"overrides.{pattern}"
        if isinstance(child, Table) and any(key in _LINEAR_PARTS for key in child.entries):
            for part, settings in child.entries.items():
                if part not in _LINEAR_PARTS:
                    raise unknown_field(part, part, _LINEAR_PARTS).at(f"{settings.location} {name}.{part}")
                whole = _pattern(f"{pattern}.{part}", child.location, name)
                yield Override(whole, read_section(settings, f"{name}.{part}", None))
        else:
            yield Override(_pattern(pattern, child.location, name), read_section(child, name, None))


def _pattern(text: str, location: Location, name: str) -> Pattern:
    try:
        return Pattern.parse(text)
    except ConfigError as error:
        raise error.located(f"{location} {name}") from error


def read_section(node: Node, name: str, kind: PointKind | None) -> Section:
    """The settings of one section, checked field by field.

    ``kind`` is that of the points it applies to, ``None`` where their names alone tell.
    """
    if isinstance(node, Leaf) and isinstance(node.value, QuantConfig):
        return Section(name, node.location, flatten(node.value), {})
    entries = _entries(node, name)
    locations = dict(_locations(entries))
    section = Section(name, node.location, {}, locations)
    data = {key: plain(child) for key, child in entries.items()}
    try:
        config = QuantConfig.model_validate(data, context=PARTIAL)
    except FieldError as error:
        raise error.at(section.where(error.key)) from error
    stray = next((field for field, only in ONLY_FOR.items() if field in data and kind not in (only, None)), None)
    if stray:
        problem = f"`{stray}` applies to {ONLY_FOR[stray].points} only"
        raise ConfigError(problem, where=section.where(stray), fix="remove it")
    given = {path for path in locations if "." in path or path != "bit_type"}
    fields = {path: value for path, value in flatten(config).items() if path in given}
    return Section(name, node.location, fields, locations)


def flatten(config: QuantConfig) -> dict[str, object]:
    """All fields of a config by dotted name."""
    fields: dict[str, object] = {}
    for name in QuantConfig.model_fields:
        value = getattr(config, name)
        if isinstance(value, BitType):
            fields.update({f"{name}.{inner}": getattr(value, inner) for inner in BitType.model_fields})
        else:
            fields[name] = value
    return fields


def unflatten(fields: Mapping[str, object]) -> dict[str, object]:
    """The inverse of :func:`flatten`, as nested plain mappings."""
    nested: dict[str, object] = {}
    bit_type: dict[str, object] = {}
    for path, value in fields.items():
        if path.startswith(BitType.key_prefix):
            nested["bit_type"] = bit_type
            bit_type[path.removeprefix(BitType.key_prefix)] = value
        else:
            nested[path] = value
    return nested


def _entries(node: Node, name: str) -> Mapping[str, Node]:
    if isinstance(node, Table):
        return node.entries
    fix = "write {} for the built-in defaults, or remove the key" if node.value is None else None
    raise ConfigError(
        "not a section", where=f"{node.location} {name}", got=show(node.value), expected="a mapping", fix=fix
    )


def _locations(entries: Mapping[str, Node], prefix: str = "") -> Iterator[tuple[str, Location]]:
    for key, node in entries.items():
        yield f"{prefix}{key}", node.location
        if isinstance(node, Table):
            yield from _locations(node.entries, f"{prefix}{key}.")
