"""The families of architectures: what one has to name to be quantized, saved, compiled and exported.

Nothing else in vitquant knows which families there are. Another one is a file with its float module and its
:class:`~vitquant.architectures.model.QuantModel`, and a call of :func:`register`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Protocol

import torch
from torch import nn

from vitquant.architectures.float_vit import VisionTransformer, ViTSpec
from vitquant.architectures.model import QuantModel
from vitquant.architectures.vit import QuantViT
from vitquant.bounds import FLAG, Check, number, one_of, pair, whole
from vitquant.config import LayerSection, ModelConfig, add_layers
from vitquant.data.preprocessing import Preprocessing
from vitquant.errors import ModelError


class Spec(Protocol):
    """What fixes the shape of a model: a frozen dataclass, whose constructor refuses fields that do not fit."""

    @property
    def img_size(self) -> tuple[int, int]:
        """Height and width of an image."""

    @property
    def in_chans(self) -> int:
        """Colours of an image."""

    @property
    def num_classes(self) -> int:
        """Classes among the logits; 0 without a head."""

    @property
    def depth(self) -> int:
        """Blocks: no model of so many has fewer tensors."""

    @property
    def least_bytes(self) -> int:
        """No saved model of this shape has fewer bytes."""


@dataclass(frozen=True)
class Family:
    """A family of architectures.

    Args:
        name: in the manifests of saved models.
        spec: the class of its specifications.
        float_model: builds the float model of a specification, its parameters undefined; the model has it as ``spec``.
        quantized: builds the quantized model of a float model, settings and preprocessing.
        bounds: what each field of a saved specification may be.
        layers: sections of the configuration that other families do not have.
    """

    name: str
    spec: type[Any]
    float_model: type[nn.Module]
    quantized: type[QuantModel]
    bounds: Mapping[str, Check]
    layers: tuple[LayerSection, ...] = ()

    def shapes_only(self, spec: Spec, config: ModelConfig, preprocessing: Preprocessing | None = None) -> QuantModel:
        """A model that is not calibrated, without numbers: its tensors are on torch's meta device.

        Raises:
            ConfigError: the settings do not fit the architecture.
        """
        anything = Preprocessing(spec.img_size, (0.5,) * spec.in_chans, (0.5,) * spec.in_chans)
        with torch.device("meta"):
            return self.quantized(self.float_model(spec).float(), config, preprocessing or anything)


VIT_BOUNDS: Mapping[str, Check] = {
    "img_size": pair(2**14),
    "patch_size": pair(2**10),
    "in_chans": one_of(1, 3),
    "embed_dim": whole(1, 2**15),
    "depth": whole(1, 2**10),
    "num_heads": whole(1, 2**10),
    "mlp_hidden": whole(1, 2**18),
    "num_classes": whole(0, 2**20),
    "qkv_bias": FLAG,
    "class_token": FLAG,
    "dist_token": FLAG,
    "reg_tokens": whole(0, 2**10),
    "pos_covers_prefix": FLAG,
    "layer_scale": FLAG,
    "pool": one_of("token", "avg"),
    "norm_eps": number(1e-30, 1),
}
"""What a saved :class:`ViTSpec` may hold, far beyond any architecture that there is."""

VIT = Family("vit", ViTSpec, VisionTransformer, QuantViT, VIT_BOUNDS)

_FAMILIES = {VIT.name: VIT}

FAMILIES: Mapping[str, Family] = MappingProxyType(_FAMILIES)


def register(family: Family) -> None:
    """Make a family known.

    Raises:
        ModelError: another family has its name.
        ConfigError: another family has one of its layers, described otherwise.
    """
    if _FAMILIES.setdefault(family.name, family) is not family:
        raise ModelError("two families have the same name", where="family", got=family.name)
    add_layers(family.layers)


def family_of(model: nn.Module) -> Family | None:
    """The family of a float or quantized model; ``None`` for modules of others."""
    kinds = ((family, (family.float_model, family.quantized)) for family in _FAMILIES.values())
    return next((family for family, known in kinds if isinstance(model, known)), None)


def require_family(model: nn.Module) -> Family:
    """The family of a model.

    Raises:
        ModelError: it is of none.
    """
    family = family_of(model)
    if family is None:
        raise ModelError(
            "not a model of a known family", where="model", got=type(model).__name__, expected=" or ".join(_FAMILIES)
        )
    return family
