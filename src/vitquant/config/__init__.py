"""Configuration files, parsed into frozen, validated objects. Does not import torch."""

from vitquant.config.catalogue import (
    LAYERS,
    POINT_KINDS,
    LayerSection,
    PointKind,
    add_layers,
    is_per_head,
    point_names,
    section_of,
)
from vitquant.config.explain import FieldError
from vitquant.config.json_schema import json_schema
from vitquant.config.loader import get_layer_config, load_config_from_yaml
from vitquant.config.locate import find_config, recipe_file, recipe_names, shipped_names
from vitquant.config.migrate import migrate
from vitquant.config.model_config import ModelConfig, OpenConfig, ResolvedConfig
from vitquant.config.quant_config import BitType, QuantConfig
from vitquant.config.repair import (
    AugmentationSettings,
    BiasCorrectionSettings,
    GptqSettings,
    Phase,
    RepairSettings,
    StepSettings,
    repair_section,
    repair_settings,
    repair_text,
)
from vitquant.config.show import Row, render_table, rich_table

__all__ = [
    "LAYERS",
    "POINT_KINDS",
    "AugmentationSettings",
    "BiasCorrectionSettings",
    "BitType",
    "FieldError",
    "GptqSettings",
    "LayerSection",
    "ModelConfig",
    "OpenConfig",
    "Phase",
    "PointKind",
    "QuantConfig",
    "RepairSettings",
    "ResolvedConfig",
    "Row",
    "StepSettings",
    "add_layers",
    "find_config",
    "get_layer_config",
    "is_per_head",
    "json_schema",
    "load_config_from_yaml",
    "migrate",
    "point_names",
    "recipe_file",
    "recipe_names",
    "render_table",
    "repair_section",
    "repair_settings",
    "repair_text",
    "rich_table",
    "section_of",
    "shipped_names",
]
