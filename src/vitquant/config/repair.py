"""The section ``repair``: methods that change a calibrated model block by block, in the order of the file.

Each method has a class of settings here, which needs no torch. What it does is in ``vitquant.calibration.repair``,
under the same name.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import ClassVar

from pydantic import Field

from vitquant.config.catalogue import closest
from vitquant.config.explain import FieldError, brief, show
from vitquant.config.quant_config import Settings
from vitquant.config.source import Items, Leaf, Location, Node, Table, plain, tree
from vitquant.errors import ConfigError

EXAMPLE = "write a list, such as repair: [bias_correction]"


class RepairSettings(Settings):
    """The settings that all repair steps have.

    Raises:
        FieldError: a :class:`vitquant.errors.ConfigError`; an unknown setting, or a value that is not allowed.
    """

    name: ClassVar[str]
    """What a file calls the step."""

    images: int = Field(
        64,
        ge=1,
        le=100_000,
        description="Use at most this many of the calibration images, evenly spaced. Memory grows with this number.",
    )


class BiasCorrectionSettings(RepairSettings):
    """Add the mean error of each output channel of the linear layers to their biases.

    >>> BiasCorrectionSettings(images=16)
    BiasCorrectionSettings(images=16)
    """

    name: ClassVar[str] = "bias_correction"
    owner: ClassVar[str] = name


REPAIR_SETTINGS: dict[str, type[RepairSettings]] = {kind.name: kind for kind in (BiasCorrectionSettings,)}
"""The settings of each repair step by its name in a file."""


def read_repair(node: Node, name: str = "repair") -> tuple[RepairSettings, ...]:
    """The settings of the steps in a list, in order.

    An item is the name of a step, or a mapping with one entry: the name, and the settings that differ from their
    defaults. In Python, an item may also be a :class:`RepairSettings`.

    Raises:
        ConfigError: not such a list, an unknown step or setting, or a value that is not allowed.
    """
    if not isinstance(node, Items):
        got = show(plain(node))
        raise ConfigError("not a list of steps", where=f"{node.location} {name}", got=got, fix=EXAMPLE)
    return tuple(_read_steps(node.items, name))


def repair_settings(steps: object, name: str = "steps") -> tuple[RepairSettings, ...]:
    """The same for a Python list."""
    return read_repair(tree(steps, Location(name)), name)


def _read_steps(items: Sequence[Node], name: str) -> Iterator[RepairSettings]:
    for item in items:
        where = f"{item.location} {name}"
        if isinstance(item, Table) and len(item.entries) == 1:
            ((step, settings),) = item.entries.items()
            yield _settings(step, settings, f"{settings.location} {name}")
        elif isinstance(item, Leaf) and isinstance(item.value, RepairSettings):
            yield item.value
        elif isinstance(item, Leaf) and isinstance(item.value, str):
            yield _settings(item.value, Table({}, item.location), where)
        else:
            names = ", ".join(item.entries) if isinstance(item, Table) else ""
            expected = "the name of one step, or one name with its settings"
            fix = "write each step as an item of its own" if names else None
            raise ConfigError(
                "not a repair step", where=where, got=names or show(plain(item)), expected=expected, fix=fix
            )


def _settings(step: str, node: Node, where: str) -> RepairSettings:
    if step not in REPAIR_SETTINGS:
        near = closest(step, REPAIR_SETTINGS)
        near = near and near.split(", ")[0]
        raise ConfigError(
            f"unknown repair step `{brief(step)}`" + (f", did you mean `{near}`" if near else ""),
            where=where,
            expected=f"one of {', '.join(REPAIR_SETTINGS)}",
            fix=f"write {near}" if near else None,
        )
    if not isinstance(node, Table):
        fix = "remove the colon for the defaults" if plain(node) is None else None
        got = show(plain(node))
        raise ConfigError("not a mapping of settings", where=f"{where}.{step}", got=got, expected="a mapping", fix=fix)
    try:
        return REPAIR_SETTINGS[step].model_validate({key: plain(child) for key, child in node.entries.items()})
    except FieldError as error:
        location = node.entries[error.key].location if error.key in node.entries else None
        field_where = where if location is None else f"{location} {where.rpartition(' ')[2]}"
        raise error.at(f"{field_where}.{step}.{error.key}") from error


def repair_section(steps: Sequence[RepairSettings]) -> dict[str, object]:
    """The section as plain values, for a file; nothing without steps."""
    return {"repair": [{step.name: step.model_dump()} for step in steps]} if steps else {}


def repair_text(steps: Sequence[RepairSettings]) -> str:
    """The steps on one line, for people.

    >>> repair_text([BiasCorrectionSettings(images=16)])
    'bias_correction (images 16)'
    """
    return ", ".join(f"{step.name} ({_values(step.model_dump())})" for step in steps)


def _values(settings: Mapping[str, object]) -> str:
    return ", ".join(f"{key} {value}" for key, value in settings.items())
