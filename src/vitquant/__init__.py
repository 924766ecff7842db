"""Post-training quantization of Vision Transformers, layer by layer, from one readable YAML file.

The names below are imported when they are first used, so that ``import vitquant`` and the command line's help cost
nothing of torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from vitquant.version import __version__

if TYPE_CHECKING:
    from vitquant.adapters.adapt import adapt
    from vitquant.adapters.fashion import load_fashion, load_fashion_images
    from vitquant.architectures.model import QuantModel
    from vitquant.architectures.vit import QuantAttention, QuantViT
    from vitquant.artifact.storage import load, save
    from vitquant.calibration.calibrate import calibrate_batches
    from vitquant.compiler.lowering import compile  # noqa: A004
    from vitquant.config import ModelConfig, QuantConfig, load_config_from_yaml
    from vitquant.config.candidates import Candidates
    from vitquant.data import Preprocessing, open_images
    from vitquant.errors import VitquantError
    from vitquant.executors.reference import Reference
    from vitquant.layers import IntSoftmax, Mode, QAct, QuantLinear
    from vitquant.measure import evaluate, profile
    from vitquant.program.program import IntegerProgram
    from vitquant.program.storage import load_program, save_program
    from vitquant.report.files import load_run
    from vitquant.report.record import RunRecord
    from vitquant.report.sensitivity import SensitivityTable, load_sensitivity
    from vitquant.workflows.quantize import calibrate, prepare, quantize, repair
    from vitquant.workflows.sensitivity import sensitivity

_HOMES = {
    "vitquant.workflows.quantize": ("calibrate", "prepare", "quantize", "repair"),
    "vitquant.config": ("ModelConfig", "QuantConfig", "load_config_from_yaml"),
    "vitquant.data": ("Preprocessing", "open_images"),
    "vitquant.errors": ("VitquantError",),
    "vitquant.compiler.lowering": ("compile",),
    "vitquant.program.program": ("IntegerProgram",),
    "vitquant.executors.reference": ("Reference",),
    "vitquant.program.storage": ("load_program", "save_program"),
    "vitquant.config.candidates": ("Candidates",),
    "vitquant.workflows.sensitivity": ("sensitivity",),
    "vitquant.report.files": ("load_run",),
    "vitquant.report.sensitivity": ("SensitivityTable", "load_sensitivity"),
    "vitquant.report.record": ("RunRecord",),
    "vitquant.layers": ("IntSoftmax", "Mode", "QAct", "QuantLinear"),
    "vitquant.adapters.adapt": ("adapt",),
    "vitquant.artifact.storage": ("load", "save"),
    "vitquant.calibration.calibrate": ("calibrate_batches",),
    "vitquant.adapters.fashion": ("load_fashion", "load_fashion_images"),
    "vitquant.architectures.model": ("QuantModel",),
    "vitquant.architectures.vit": ("QuantAttention", "QuantViT"),
    "vitquant.measure": ("evaluate", "profile"),
}
_HOME = {name: module for module, names in _HOMES.items() for name in names}

__all__ = [
    "Candidates",
    "IntSoftmax",
    "IntegerProgram",
    "Mode",
    "ModelConfig",
    "Preprocessing",
    "QAct",
    "QuantAttention",
    "QuantConfig",
    "QuantLinear",
    "QuantModel",
    "QuantViT",
    "Reference",
    "RunRecord",
    "SensitivityTable",
    "VitquantError",
    "__version__",
    "adapt",
    "calibrate",
    "calibrate_batches",
    "compile",
    "evaluate",
    "load",
    "load_config_from_yaml",
    "load_fashion",
    "load_fashion_images",
    "load_program",
    "load_run",
    "load_sensitivity",
    "open_images",
    "prepare",
    "profile",
    "quantize",
    "repair",
    "save",
    "save_program",
    "sensitivity",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'vitquant' has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOME[name]), name)
    globals()[name] = value
    return value
