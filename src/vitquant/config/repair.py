"""The section ``repair``: methods that make a model lose less, in the order of the file.

Some add calibration images, some rewrite the float model without changing what it computes, and some change the
integers of the calibrated model: :class:`Phase`. Each method has a class of settings here, which needs no torch. What
it does is in ``vitquant.calibration``, under the same name.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from enum import IntEnum
from typing import Annotated, ClassVar

from pydantic import BeforeValidator, Field

from vitquant.config.catalogue import closest
from vitquant.config.explain import FieldError, brief, show
from vitquant.config.quant_config import Settings
from vitquant.config.source import Items, Leaf, Location, Node, Table, plain, tree
from vitquant.errors import ConfigError


def _tuple(value: object) -> object:
    return tuple(value) if isinstance(value, list) else value


EXAMPLE = "write a list, such as repair: [bias_correction]"


class Phase(IntEnum):
    """When a step runs. The steps of a file are in this order."""

    IMAGES = 0
    """Before the calibration: it adds images."""
    FLOAT = 1
    """Before the calibration: it rewrites float weights, and the float model computes the same as before."""
    INTEGERS = 2
    """After the calibration: it changes scales, biases and integer weights."""


class StepSettings(Settings):
    """What the settings of all steps have in common.

    Raises:
        FieldError: a :class:`vitquant.errors.ConfigError`; an unknown setting, or a value that is not allowed.
    """

    name: ClassVar[str]
    """What a file calls the step."""

    phase: ClassVar[Phase]
    """When it runs."""


class AugmentationSettings(StepSettings):
    """Calibrate also on changed copies of the images, so that ranges hold for images that were not seen.

    >>> AugmentationSettings(copies=2)
    AugmentationSettings(copies=2, seed=0)
    """

    name: ClassVar[str] = "augmentation"
    owner: ClassVar[str] = name
    phase: ClassVar[Phase] = Phase.IMAGES

    copies: int = Field(1, ge=1, le=100, description="Changed copies of each image.")
    seed: int = Field(0, ge=0, le=2**32 - 1, description="Another number gives other copies.")


class CanonicalFormSettings(StepSettings):
    """Fold the gains and offsets of LayerNorms, and LayerScale, into the linear layers beside them.

    >>> CanonicalFormSettings()
    CanonicalFormSettings()
    """

    name: ClassVar[str] = "canonical_form"
    owner: ClassVar[str] = name
    phase: ClassVar[Phase] = Phase.FLOAT


class RepairSettings(StepSettings):
    """The settings of steps that compute with some of the calibration images."""

    phase: ClassVar[Phase] = Phase.INTEGERS

    images: int = Field(
        64,
        ge=1,
        le=100_000,
        description="Use at most this many of the calibration images, evenly spaced. Memory grows with this number.",
    )


class CentringSettings(RepairSettings):
    """Subtract from keys and values their mean, which attention does not need.

    >>> CentringSettings(images=32)
    CentringSettings(images=32)
    """

    name: ClassVar[str] = "centring"
    owner: ClassVar[str] = name
    phase: ClassVar[Phase] = Phase.FLOAT


class SortedChannelsSettings(RepairSettings):
    """Sort the hidden channels of each MLP by their range, so that neighbours, which share a scale, are alike.

    >>> SortedChannelsSettings(images=32)
    SortedChannelsSettings(images=32)
    """

    name: ClassVar[str] = "sorted_channels"
    owner: ClassVar[str] = name
    phase: ClassVar[Phase] = Phase.FLOAT


class MigrationSettings(RepairSettings):
    """Widen the finer scales of each linear layer's input, where its weights lose less by it than the input does.

    >>> MigrationSettings(alphas=(0.0, 0.5)).alphas
    (0.0, 0.5)
    """

    name: ClassVar[str] = "migration"
    owner: ClassVar[str] = name

    alphas: Annotated[tuple[Annotated[float, Field(ge=0, le=1)], ...], BeforeValidator(_tuple)] = Field(
        (0.3, 0.45, 0.6, 1.0),
        min_length=1,
        description="Exponents to choose from: a scale s becomes s^(1 - alpha) S^alpha, with S the widest one of the "
        "input. 0 keeps the scales, 1 gives all channels one scale. Finer scales than 0.3 leaves fit the images of the "
        "calibration, and clip others.",
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


REPAIR_SETTINGS: dict[str, type[StepSettings]] = {
    kind.name: kind
    for kind in (
        AugmentationSettings,
        CanonicalFormSettings,
        CentringSettings,
        SortedChannelsSettings,
        MigrationSettings,
        GptqSettings,
        BiasCorrectionSettings,
    )
}
"""The settings of each repair step by its name in a file, in an order in which they can stand there."""


def read_repair(node: Node, name: str = "repair") -> tuple[StepSettings, ...]:
    """The settings of the steps in a list, in order.

    An item is the name of a step, or a mapping with one entry: the name, and the settings that differ from their
    defaults. In Python, an item may also be a :class:`StepSettings`. ``name`` is what messages call the list.

    Raises:
        ConfigError: not such a list, an unknown step or setting, a value that is not allowed, or an order of steps in
            which they cannot run.
    """
    if not isinstance(node, Items):
        where, got = f"{node.location} {name}", show(plain(node))
        raise ConfigError("not a list of steps", where=where, got=got, fix=EXAMPLE)
    steps = tuple(_read_step(item, name) for item in node.items)
    for earlier, later, item in zip(steps, steps[1:], node.items[1:], strict=False):
        if later.phase < earlier.phase:
            raise ConfigError(
                f"{later.name} runs before {earlier.name}",
                where=_where(item.location, name, later.name),
                fix=f"move it before {earlier.name}",
            )
    return steps


def repair_settings(step: object) -> StepSettings:
    """The same for one step in Python."""
    return _read_step(tree(step, Location("step")), "")


def _read_step(item: Node, name: str) -> StepSettings:
    if isinstance(item, Table) and len(item.entries) == 1:
        ((step, settings),) = item.entries.items()
        return _settings(step, settings, name)
    if isinstance(item, Leaf) and isinstance(item.value, StepSettings):
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


def _settings(step: str, node: Node, name: str) -> StepSettings:
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


def repair_section(steps: Sequence[StepSettings]) -> dict[str, object]:
    """The section as plain values, for a file; nothing without steps."""
    return {"repair": [{step.name: step.model_dump(mode="json")} for step in steps]} if steps else {}


def repair_text(steps: Sequence[StepSettings]) -> str:
    """The steps on one line, for people.

    >>> repair_text([BiasCorrectionSettings(images=16)])
    'bias_correction (images 16)'
    """
    return ", ".join(f"{step.name}{_values(step.model_dump())}" for step in steps)


def _values(settings: Mapping[str, object]) -> str:
    return f" ({', '.join(f'{key} {_value(value)}' for key, value in settings.items())})" if settings else ""


def _value(value: object) -> str:
    return " ".join(f"{part:g}" for part in value) if isinstance(value, tuple) else str(value)
