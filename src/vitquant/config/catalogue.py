"""The points of a Vision Transformer. Their names, kinds and order are defined here and nowhere else.

A *point* is a named place where a tensor becomes integers. A linear layer has two, ``X.weight`` and ``X.output``;
every other layer has one, with the name of the layer. In a model the points of a block are numbered:
``blocks.3.attn_qkv.weight``. The name without that prefix is the point's *section*, its name in a file.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from enum import Enum
from types import MappingProxyType

from vitquant.errors import ConfigError


class PointKind(Enum):
    """The kind of a point's tensor. The value is the name of its global section."""

    WEIGHT = "weight"
    OUTPUT = "output"
    ACTIVATION = "activation"
    NORM = "norm"
    INTSOFT = "intsoft"

    @property
    def points(self) -> str:
        """What messages call the points of this kind."""
        return {PointKind.INTSOFT: "intSoft", PointKind.WEIGHT: "weights"}.get(self, f"{self.value} points")

    @property
    def fallbacks(self) -> tuple[PointKind, ...]:
        """Global sections for this kind, in the order of lookup; the first section that is present is used."""
        return _FALLBACKS[self]


_FALLBACKS = {
    PointKind.WEIGHT: (PointKind.WEIGHT,),
    PointKind.OUTPUT: (PointKind.OUTPUT,),
    PointKind.ACTIVATION: (PointKind.ACTIVATION, PointKind.OUTPUT),
    PointKind.NORM: (PointKind.NORM, PointKind.ACTIVATION, PointKind.OUTPUT),
    PointKind.INTSOFT: (PointKind.INTSOFT, PointKind.ACTIVATION, PointKind.OUTPUT),
}


@dataclass(frozen=True)
class LayerSection:
    """One layer section of a configuration file.

    ``group`` is the part of the model that the layer belongs to, ``about`` describes its tensor, and ``kind`` is the
    kind of its only point, or ``None`` for a linear layer, which has a weight and an output. ``per_head``: the tensor
    is ``[B, H, N, N]`` and its channels are the heads. ``head_rows``: the rows of the weights belong to heads.
    """

    name: str
    group: str
    kind: PointKind | None
    about: str
    per_head: bool = False
    head_rows: bool = False

    @property
    def linear(self) -> bool:
        """Whether the layer has the two points ``weight`` and ``output``."""
        return self.kind is None

    @property
    def points(self) -> Mapping[str, PointKind]:
        """Section name of each of its points -> kind."""
        if self.kind is not None:
            return {self.name: self.kind}
        return {f"{self.name}.weight": PointKind.WEIGHT, f"{self.name}.output": PointKind.OUTPUT}


VIT_LAYERS: tuple[LayerSection, ...] = (
    LayerSection("patch_embed", "embedding", None, "projection of the flattened patches"),
    LayerSection(
        "pos_embed",
        "embedding",
        PointKind.ACTIVATION,
        "patches + prefix tokens + positions: start of the residual stream",
    ),
    LayerSection("norm1", "attention", PointKind.NORM, "LayerNorm before the attention, input of attn_qkv"),
    LayerSection("attn_qkv", "attention", None, "projection to Q, K and V", head_rows=True),
    LayerSection("attn_q_out", "attention", PointKind.ACTIVATION, "Q after the split"),
    LayerSection("attn_k_out", "attention", PointKind.ACTIVATION, "K after the split"),
    LayerSection(
        "attn_kv_out", "attention", PointKind.ACTIVATION, "attention scores, Q @ K^T * head_dim^-1/2", per_head=True
    ),
    LayerSection("intSoft", "attention", PointKind.INTSOFT, "attention probabilities", per_head=True),
    LayerSection("attn_v_input", "attention", PointKind.ACTIVATION, "V after the split"),
    LayerSection(
        "attn_v_out", "attention", PointKind.ACTIVATION, "attention output: probabilities @ V, input of attn_proj"
    ),
    LayerSection("attn_proj", "attention", None, "output projection of the attention", head_rows=True),
    LayerSection("residual1", "attention", PointKind.ACTIVATION, "residual stream after the attention"),
    LayerSection("norm2", "mlp", PointKind.NORM, "LayerNorm before the MLP, input of mlp_fc1"),
    LayerSection("mlp_fc1", "mlp", None, "first linear layer of the MLP"),
    LayerSection("mlp_gelu", "mlp", PointKind.ACTIVATION, "output of GELU, input of mlp_fc2"),
    LayerSection("mlp_fc2", "mlp", None, "second linear layer of the MLP"),
    LayerSection("residual2", "mlp", PointKind.ACTIVATION, "residual stream after the MLP"),
    LayerSection("final_norm", "head", PointKind.NORM, "last LayerNorm, input of the head"),
    LayerSection("head", "head", None, "classifier; DeiT's second classifier, head_dist, uses this section too"),
)

_LAYERS: dict[str, LayerSection] = {}
_KINDS: dict[str, PointKind] = {}

LAYERS: Mapping[str, LayerSection] = MappingProxyType(_LAYERS)
"""Section name of every layer of every family -> layer, in model order."""

POINT_KINDS: Mapping[str, PointKind] = MappingProxyType(_KINDS)
"""Section name of every point -> kind, in model order."""


def add_layers(layers: Iterable[LayerSection]) -> None:
    """Make the layers of a family known. Families share the layers of the same name.

    Raises:
        ConfigError: a layer of the same name is another one.
    """
    for layer in layers:
        if _LAYERS.setdefault(layer.name, layer) != layer:
            raise ConfigError("two layers have the same name", where=layer.name, got=str(layer))
        _KINDS.update(layer.points)


add_layers(VIT_LAYERS)

BLOCK_GROUPS = ("attention", "mlp")
"""The groups whose layers occur in every block."""


def section_of(point: str) -> str:
    """The section of a point of a model.

    >>> section_of("blocks.3.attn_qkv.weight")
    'attn_qkv.weight'
    >>> section_of("head_dist.output")
    'head.output'

    Raises:
        ConfigError: no such point exists.
    """
    section = re.sub(r"^(?:\w+\.\d+\.)+", "", point)
    section = re.sub(r"^head_dist\.", "head.", section)
    if section not in POINT_KINDS:
        raise ConfigError(
            "not a point of any model", where=point, expected=closest(section, POINT_KINDS) or ", ".join(POINT_KINDS)
        )
    return section


def is_per_head(point: str) -> bool:
    """Whether the channels of a point's tensor are attention heads; false for names of other things."""
    layer = LAYERS.get(point.rpartition(".")[2])
    return layer is not None and layer.per_head


def point_names(depth: int, *, head: bool = True, distilled: bool = False) -> tuple[str, ...]:
    """All points of a model with ``depth`` blocks, in model order; ``distilled`` adds DeiT's second head."""

    def of(*groups: str) -> list[str]:
        return [point for layer in VIT_LAYERS if layer.group in groups for point in layer.points]

    names = of("embedding")
    names += [f"blocks.{index}.{point}" for index in range(depth) for point in of(*BLOCK_GROUPS)]
    names += [point for point in of("head") if head or not point.startswith("head.")]
    return (*names, "head_dist.weight", "head_dist.output") if head and distilled else tuple(names)


def closest(name: str, known: Iterable[str]) -> str | None:
    """Up to three names similar to ``name``, ignoring case, as text for an error; ``None`` if there is none."""
    names = {candidate.lower(): candidate for candidate in known}
    return ", ".join(names[near] for near in get_close_matches(name[:200].lower(), names, n=3, cutoff=0.55)) or None
