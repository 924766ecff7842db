"""``load_config_from_yaml``: a file as a plain dict of :class:`QuantConfig`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from vitquant.config.catalogue import LAYERS, LayerSection
from vitquant.config.document import Document, unflatten
from vitquant.config.model_config import ModelConfig
from vitquant.config.quant_config import QuantConfig
from vitquant.config.resolve import resolve_default, resolve_section
from vitquant.errors import ConfigError

LayerConfig = QuantConfig | dict[str, QuantConfig | None] | None


def load_config_from_yaml(path: str | Path) -> dict[str, object]:
    """Read a configuration file; its format is recognised by its keys.

    Args:
        path: a file, or the name of a shipped one (``attn_config.yaml``, ``configs/attn_config.yaml``).

    Returns:
        *Global format*: ``'weight'``, ``'output'``, ``'activation'``, ``'norm'``, ``'intsoft'`` (those that the file
        has) -> :class:`QuantConfig`. *Per-layer format*: layer -> :class:`QuantConfig`, or for a linear layer a dict
        with ``'weight'`` and ``'output'`` (``None`` if no rule covers it: it stays in floating point); then the
        global sections of the file. *Model format*: every layer that the file configures, with the defaults merged in,
        and ``'overrides'`` -> {pattern: {field: value}}. A file with repair steps also gives ``'repair'`` -> list of
        :class:`StepSettings`.

    Raises:
        ConfigError: the file or something in it is wrong; the message gives the line and the key.
    """
    document = ModelConfig.from_yaml(path).document
    repair: dict[str, object] = {"repair": list(document.repair)} if document.repair else {}
    configs: dict[str, object] = {}
    for layer in LAYERS.values():
        configured = any(point in document.layers for point in layer.points)
        config = _layer(document, layer) if configured or document.form == "model" else None
        if config is not None:
            configs[layer.name] = config
    if document.form == "model":
        overrides = {rule.pattern.text: unflatten(rule.section.fields) for rule in document.overrides}
        return {**configs, **({"overrides": overrides} if overrides else {}), **repair}
    return {
        **configs,
        **{kind.value: resolve_default(section) for kind, section in document.defaults.items()},
        **repair,
    }


def get_layer_config(configs: Mapping[str, object], layer_name: str) -> LayerConfig:
    """The settings of one layer from what :func:`load_config_from_yaml` returned, in any format.

    A layer without a section falls back to the global sections. Overrides refer to points of a whole model and are
    not used.

    Returns:
        A :class:`QuantConfig`; for a linear layer a dict with ``'weight'`` and ``'output'``, either of which may be
        ``None``; ``None`` if no rule covers the layer.

    Raises:
        ConfigError: no such layer, or the settings do not fit it.
    """
    if layer_name not in LAYERS:
        raise ConfigError("no such layer", where=layer_name, expected=f"one of {', '.join(LAYERS)}")
    return _layer(ModelConfig.from_dict(configs).document, LAYERS[layer_name])


def _layer(document: Document, layer: LayerSection) -> LayerConfig:
    configs = {point: resolve_section(document, point).config for point in layer.points}
    if not layer.linear:
        return configs[layer.name]
    if not any(configs.values()):
        return None
    return {part: configs[f"{layer.name}.{part}"] for part in ("weight", "output")}
