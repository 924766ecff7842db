"""A global file rewritten in the per-layer format."""

from __future__ import annotations

from itertools import groupby
from pathlib import Path

from vitquant.config.catalogue import LAYERS, POINT_KINDS
from vitquant.config.emit import dump, layer_sections
from vitquant.config.model_config import ModelConfig
from vitquant.config.repair import repair_section
from vitquant.config.resolve import resolve_section
from vitquant.errors import ConfigError

_HEADER = """\
# Generated from {name}: its global sections, written out per layer. The resulting model is the same.
# Fields that a section omits have their built-in defaults.
"""


def migrate(path: str | Path) -> str:
    """YAML text in the per-layer format that resolves like the global file ``path``, for every model.

    A layer that no global section covers stays in floating point and is listed in a comment.

    Raises:
        ConfigError: the file is wrong, is not in the global format, or gives head_wise to all weights.
    """
    document = ModelConfig.from_yaml(path).document
    if document.form != "global":
        raise ConfigError(
            "only a file in the global format can be migrated",
            where=str(path),
            got=f"the {document.form} format",
            expected="outputs, weight, activation, norm, intsoft, repair and nothing else",
        )
    resolved = {point: resolve_section(document, point).config for point in POINT_KINDS}
    configs = {point: config for point, config in resolved.items() if config is not None}
    parts = [_HEADER.format(name=Path(path).name)]
    for group, layers in groupby(LAYERS.values(), key=lambda layer: layer.group):
        parts.append(f"\n# {group}\n")
        for layer in layers:
            sections = layer_sections({point: configs[point] for point in layer.points if point in configs})
            parts.append(f"\n# {layer.about}\n{dump(sections)}" if sections else f"\n# {layer.name} stays float\n")
    text = "".join(parts) if configs else f"{parts[0]}\ndefaults: {{}}\n"
    steps = repair_section(document.repair)
    return f"{text}\n# repair\n\n{dump(steps)}" if steps else text
