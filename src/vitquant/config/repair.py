"""The section ``repair``: methods that change a calibrated model block by block, in the order of the file.

Each method has a class of settings here, which needs no torch. What it does is in ``vitquant.calibration.repair``,
under the same name.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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


class GptqSettings(RepairSettings):
    """Round the weights of the linear layers so that rounding errors cancel in their outputs.

    >>> GptqSettings(damping=0.05)
    GptqSettings(images=64, damping=0.05)
    """

    name: ClassVar[str] = "gptq"
    owner: ClassVar[str] = name

    damping: float = Field(
        0.01,
        gt=0,
        le=1,
        description="What is added to the diagonal of the inputs' second moments, as a share of its mean. With more "
        "damping, weights come closer to rounding to nearest.",
    )


REPAIR_SETTINGS: dict[str, type[RepairSettings]] = {kind.name: kind for kind in (BiasCorrectionSettings, GptqSettings)}
"""The settings of each repair step by its name in a file."""


def read_repair(node: Node, name: str = "repair") -> tuple[RepairSettings, ...]:
    """The settings of the steps in a list, in order.

    An item is the name of a step, or a mapping with one entry: the name, and the settings that differ from their
    defaults. In Python, an item may also be a :class:`RepairSettings`. ``name`` is what messages call the list.

    Raises:
        ConfigError: not such a list, an unknown step or setting, or a value that is not allowed.
    """
    if not isinstance(node, Items):
        where, got = f"{node.location} {name}", show(plain(node))
        raise ConfigError("not a list of steps", where=where, got=got, fix=EXAMPLE)
    return tuple(_read_step(item, name) for item in node.items)


def repair_settings(step: object) -> RepairSettings:
    """The same for one step in Python."""
    return _read_step(tree(step, Location("step")), "")


def _read_step(item: Node, name: str) -> RepairSettings:
    if isinstance(item, Table) and len(item.entries) == 1:
        ((step, settings),) = item.entries.items()
        return _settings(step, settings, name)
    if isinstance(item, Leaf) and isinstance(item.value, RepairSettings):
        return item.value
    if isinstance(item, Leaf) and isinstance(item.value, str):
        return _settings(item.value, Table({}, item.location), name)
    names = ", ".join(item.entries) if isinstance(item, Table) else ""
    raise ConfigError(
        "not a repair step",
        where=_where(item.location, name),
        got=names or show(plain(item)),
        expected="the name of one step, or one name with its settings",
        fix="write each step as an item of its own" if names else None,
    )


def _settings(step: str, node: Node, name: str) -> RepairSettings:
    if step not in REPAIR_SETTINGS:
        near = closest(step, REPAIR_SETTINGS)
        near = near and near.split(", ")[0]
        raise ConfigError(
            f"unknown repair step `{brief(step)}`" + (f", did you mean `{near}`" if near else ""),
            where=_where(node.location, name),
            expected=f"one of {', '.join(REPAIR_SETTINGS)}",
            fix=f"write {near}" if near else None,
        )
    if not isinstance(node, Table):
        fix = "remove the colon for the defaults" if plain(node) is None else None
        where, got = _where(node.location, name, step), show(plain(node))
        raise ConfigError("not a mapping of settings", where=where, got=got, expected="a mapping", fix=fix)
    try:
        return REPAIR_SETTINGS[step].model_validate({key: plain(child) for key, child in node.entries.items()})
    except FieldError as error:
        location = node.entries[error.key].location if error.key in node.entries else node.location
        raise error.at(_where(location, name, step, error.key)) from error


def _where(location: Location, *keys: str) -> str:
    return f"{location} {'.'.join(filter(None, keys))}".rstrip()


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
