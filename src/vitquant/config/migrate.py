"""A global file rewritten in the per-layer form."""

from __future__ import annotations

from itertools import groupby
from pathlib import Path

from vitquant.config.catalogue import KINDS, LAYERS
from vitquant.config.emit import dump, layer_sections
from vitquant.config.model_config import ModelConfig
from vitquant.config.resolve import resolve_section
from vitquant.errors import ConfigError

_HEADER = """\
# Written from {name}, whose global sections are spelled out here layer by layer: the same model results.
# Fields that a section leaves out have their built-in defaults.
"""


def migrate(path: str | Path) -> str:
    """YAML text in the per-layer form that resolves like the global file ``path``, for every model.

    A layer that no global section speaks for stays float and is named in a comment.

    Raises:
        ConfigError: the file is wrong, is not of the global form, or gives head_wise to all weights.
    """
    document = ModelConfig.from_yaml(path).document
    if document.form != "global":
        raise ConfigError(
            "only a file in the global form can be migrated",
            where=str(path),
            got=f"the {document.form} form",
            expected="outputs, weight, activation, norm, intsoft and nothing else",
        )
    resolved = {point: resolve_section(document, point).config for point in KINDS}
    configs = {point: config for point, config in resolved.items() if config is not None}
    parts = [_HEADER.format(name=Path(path).name)]
    for group, layers in groupby(LAYERS, key=lambda layer: layer.group):
        parts.append(f"\n# {group}\n")
        for layer in layers:
            sections = layer_sections({point: configs[point] for point in layer.points if point in configs})
            parts.append(f"\n# {layer.about}\n{dump(sections)}" if sections else f"\n# {layer.name} stays float\n")
    return "".join(parts) if configs else f"{parts[0]}\ndefaults: {{}}\n"
