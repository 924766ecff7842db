"""Reading timm's Vision Transformers by duck typing: shape, parameters and unsupported features.

Reading a model object does not import timm.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from vitquant.adapters.checkpoint import require_finite
from vitquant.adapters.foreign import library_of_model
from vitquant.adapters.timm_features import foreign_features, has, require_fit, unsupported
from vitquant.architectures.float_vit import VisionTransformer, ViTSpec
from vitquant.data.preprocessing import IMAGENET_MEAN, IMAGENET_STD, RESAMPLING, Preprocessing
from vitquant.errors import ModelError

INSTALL = "pip install 'vitquant[timm]'"


@dataclass(frozen=True)
class TimmUnavailable:
    """Why a model cannot be compared with timm's, and how to fix it."""

    reason: str
    advice: str

    def note(self, consequence: str) -> str:
        """The reason as a note on a model."""
        return f"{self.reason}, so {consequence}. {self.advice}."


def import_timm() -> ModuleType | TimmUnavailable:
    """The module, or the reason why it is not available.

    timm imports torchvision, which raises various errors if its build does not match torch. These must not prevent
    quantization, since timm is only needed for a comparison.
    """
    if importlib.util.find_spec("timm") is None:
        return TimmUnavailable("timm is not installed", f"Install it with: {INSTALL}")
    try:
        return importlib.import_module("timm")
    except Exception as error:
        return TimmUnavailable(f"timm cannot be imported ({type(error).__name__}: {error})", _advice(error))


def _advice(error: Exception) -> str:
    if "torchvision" in str(error):
        return f"Install the torchvision that belongs to torch {torch.__version__}: https://pytorch.org/get-started"
    if isinstance(error, ModuleNotFoundError):
        return f"Install its dependencies with: {INSTALL}"
    return "To find the cause, run: python -c 'import timm'"


def preprocessing_from_cfg(
    cfg: Mapping[str, Any], img_size: tuple[int, int], channels: int
) -> tuple[Preprocessing, dict[frozenset[str], str]]:
    """The ``pretrained_cfg`` of timm as :class:`Preprocessing`.

    Returns:
        The preprocessing, and notes on assumptions and unsupported settings: fields -> note.
    """
    notes = {}
    mean, std = tuple(cfg.get("mean") or ()), tuple(cfg.get("std") or ())
    if len(mean) != channels or len(std) != channels:
        mean, std = (IMAGENET_MEAN, IMAGENET_STD) if channels == 3 else ((0.5,) * channels, (0.5,) * channels)
        note = f"the model does not specify its normalisation: mean {mean} and std {std} are assumed"
        notes[frozenset({"mean", "std"})] = note
    interpolation = cfg.get("interpolation") or "bicubic"
    if interpolation not in RESAMPLING:
        note = f"the model was evaluated with {interpolation} interpolation: bicubic is used"
        notes[frozenset({"interpolation"})] = note
        interpolation = "bicubic"
    if (crop_mode := cfg.get("crop_mode") or "center") != "center":
        notes[frozenset({"crop_mode"})] = f"the model was evaluated with crop mode {crop_mode}: center is used"
    return Preprocessing(img_size, mean, std, interpolation, cfg.get("crop_pct") or 0.875), notes


def read_timm(model: nn.Module) -> tuple[ViTSpec, dict[str, Tensor]]:
    """Shape and parameters of a timm ``VisionTransformer`` (or ``VisionTransformerDistilled``) for our own.

    Absent biases and an absent position embedding are filled with zeros. With class token pooling, a norm before and a
    norm after the pooling are the same function, so ``fc_norm`` becomes ``norm``.

    Raises:
        ModelError: the model is of another kind, or has unsupported features, all of which are listed.
        NumericsError: a parameter contains NaN or Inf.
    """
    kind = type(model).__name__
    if library := library_of_model(model):
        raise ModelError(
            f"models of {library} are not supported",
            where="model",
            got=kind,
            expected="vitquant's or timm's VisionTransformer, or a model name with its checkpoint",
            fix="load the same weights into a timm model",
        )
    if not all(hasattr(model, part) for part in ("patch_embed", "blocks", "norm", "head", "global_pool")):
        raise ModelError(
            "not a supported Vision Transformer",
            where="model",
            got=kind,
            expected="vitquant's or timm's VisionTransformer, or a model name with its checkpoint",
        )
    if features := foreign_features(model):
        raise unsupported(kind, features)
    spec = _spec(model)
    shapes = {key: value.shape for key, value in model.state_dict().items()}
    renamed = spec.pool == "token" and "norm.weight" not in shapes and "fc_norm.weight" in shapes
    names = {key: key.removeprefix("fc_") if renamed and key.startswith("fc_norm.") else key for key in shapes}
    with torch.device("meta"):
        wanted = {key: value.shape for key, value in VisionTransformer(spec).state_dict().items()}
    state = _state(model, names, require_fit(kind, {names[key]: shape for key, shape in shapes.items()}, wanted))
    require_finite(state, "model", "the model's parameters")
    return spec, state


def require_data(model: nn.Module) -> None:
    """Check that a model was not built on the meta device.

    Raises:
        ModelError: a parameter has no data.
    """
    if empty := [key for key, value in model.state_dict().items() if value.device.type == "meta"]:
        fix = "load its weights first"
        raise ModelError("the model's parameters have no data (meta device)", where="model", got=empty[0], fix=fix)


def _state(model: nn.Module, names: Mapping[str, str], absent: Mapping[str, tuple[int, ...]]) -> dict[str, Tensor]:
    """Copies of a model's parameters in float32 by their new names, with zeros for absent ones."""
    require_data(model)
    state = {names[key]: value.detach().float().cpu() for key, value in model.state_dict().items()}
    return state | {key: torch.zeros(shape, dtype=torch.float32) for key, shape in absent.items()}


def _spec(model: Any) -> ViTSpec:
    conv, block = model.patch_embed.proj, model.blocks[0]
    norm = block.norm1
    prefix = int(has(model, "cls_token")) + int(has(model, "dist_token"))
    reg_tokens = model.reg_token.shape[1] if has(model, "reg_token") else 0
    img_size, patch_size = tuple(model.patch_embed.img_size), conv.kernel_size
    patches = (img_size[0] // patch_size[0]) * (img_size[1] // patch_size[1])
    return ViTSpec(
        img_size=img_size,
        patch_size=patch_size,
        in_chans=conv.in_channels,
        embed_dim=conv.out_channels,
        depth=len(model.blocks),
        num_heads=block.attn.num_heads,
        mlp_hidden=block.mlp.fc1.out_features,
        num_classes=model.head.out_features if isinstance(model.head, nn.Linear) else 0,
        qkv_bias=block.attn.qkv.bias is not None,
        class_token=has(model, "cls_token"),
        dist_token=has(model, "dist_token"),
        reg_tokens=reg_tokens,
        pos_covers_prefix=has(model, "pos_embed") and model.pos_embed.shape[1] == patches + prefix + reg_tokens,
        layer_scale=not isinstance(getattr(block, "ls1", nn.Identity()), nn.Identity),
        pool=model.global_pool,
        norm_eps=norm.eps,
    )
