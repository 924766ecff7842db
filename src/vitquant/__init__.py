"""Post-training quantization of Vision Transformers, layer by layer, from one readable YAML file.

The names below are imported when they are first used, so that ``import vitquant`` and the command line's help cost
nothing of torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from vitquant.version import __version__

if TYPE_CHECKING:
    from vitquant.api import calibrate, prepare, quantize
    from vitquant.config import ModelConfig, QuantConfig, load_config_from_yaml
    from vitquant.data import Preprocessing, open_images
    from vitquant.errors import VitquantError
    from vitquant.integer.lowering import compile  # noqa: A004
    from vitquant.integer.program import IntegerProgram
    from vitquant.integer.reference import Reference
    from vitquant.integer.storage import load_program, save_program
    from vitquant.layers import IntSoftmax, Mode, QAct, QuantLinear
    from vitquant.models.adapt import adapt
    from vitquant.models.artifact import load, save
    from vitquant.models.calibrate import calibrate_batches
    from vitquant.models.fashion import load_fashion, load_fashion_images
    from vitquant.models.quant_attn import QuantAttention
    from vitquant.models.quant_vit import QuantViT
    from vitquant.profiling import evaluate, profile

_HOMES = {
    "vitquant.api": ("calibrate", "prepare", "quantize"),
    "vitquant.config": ("ModelConfig", "QuantConfig", "load_config_from_yaml"),
    "vitquant.data": ("Preprocessing", "open_images"),
    "vitquant.errors": ("VitquantError",),
    "vitquant.integer.lowering": ("compile",),
    "vitquant.integer.program": ("IntegerProgram",),
    "vitquant.integer.reference": ("Reference",),
    "vitquant.integer.storage": ("load_program", "save_program"),
    "vitquant.layers": ("IntSoftmax", "Mode", "QAct", "QuantLinear"),
    "vitquant.models.adapt": ("adapt",),
    "vitquant.models.artifact": ("load", "save"),
    "vitquant.models.calibrate": ("calibrate_batches",),
    "vitquant.models.fashion": ("load_fashion", "load_fashion_images"),
    "vitquant.models.quant_attn": ("QuantAttention",),
    "vitquant.models.quant_vit": ("QuantViT",),
    "vitquant.profiling": ("evaluate", "profile"),
}
_HOME = {name: module for module, names in _HOMES.items() for name in names}

__all__ = [
    "IntSoftmax",
    "IntegerProgram",
    "Mode",
    "ModelConfig",
    "Preprocessing",
    "QAct",
    "QuantAttention",
    "QuantConfig",
    "QuantLinear",
    "QuantViT",
    "Reference",
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
    "open_images",
    "prepare",
    "profile",
    "quantize",
    "save",
    "save_program",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'vitquant' has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOME[name]), name)
    globals()[name] = value
    return value
