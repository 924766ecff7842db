"""Repair steps by the names that a configuration uses."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from vitquant.calibration.repair.bias_correction import BiasCorrection
from vitquant.calibration.repair.gptq import Gptq
from vitquant.calibration.repair.migration import Migration
from vitquant.calibration.repair.step import RepairStep
from vitquant.config import Phase, RepairSettings, StepSettings, repair_settings
from vitquant.config.repair import BiasCorrectionSettings, GptqSettings, MigrationSettings
from vitquant.errors import ConfigError

REPAIR_STEPS: dict[str, type[RepairStep]] = {
    MigrationSettings.name: Migration,
    GptqSettings.name: Gptq,
    BiasCorrectionSettings.name: BiasCorrection,
}
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


def make_step(settings: StepSettings) -> RepairStep:
    """The step that has these settings.

    Raises:
        ConfigError: the step runs before the calibration.
    """
    if not isinstance(settings, RepairSettings) or settings.phase is not Phase.INTEGERS:
        raise ConfigError(
            "this step runs before the calibration",
            where=settings.name,
            expected=f"one of {', '.join(REPAIR_STEPS)}",
            fix="put it into the section repair of the configuration, and quantize the float model again",
        )
    return REPAIR_STEPS[settings.name](settings)
