"""Repair steps by the names that a configuration uses."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from vitquant.calibration.repair.bias_correction import BiasCorrection
from vitquant.calibration.repair.gptq import Gptq
from vitquant.calibration.repair.step import RepairStep
from vitquant.config import BiasCorrectionSettings, GptqSettings, RepairSettings, repair_settings
from vitquant.errors import ConfigError

REPAIR_STEPS: dict[str, type[RepairStep]] = {BiasCorrectionSettings.name: BiasCorrection, GptqSettings.name: Gptq}
"""What each step does; its settings are in ``vitquant.config.repair`` under the same name."""


def make_steps(steps: object) -> list[RepairStep]:
    """Steps from a list of names, of mappings as in a file, of settings, or of steps.

    Raises:
        ConfigError: not such a list, an unknown step or setting, or a value that is not allowed.
    """
    if isinstance(steps, str | bytes | Mapping) or not isinstance(steps, Iterable):
        expected = "a list, such as ['bias_correction']"
        raise ConfigError("not a list of steps", where="steps", got=type(steps).__name__, expected=expected)
    return [step if isinstance(step, RepairStep) else make_step(repair_settings(step)) for step in steps]


def make_step(settings: RepairSettings) -> RepairStep:
    """The step that has these settings."""
    return REPAIR_STEPS[settings.name](settings)
