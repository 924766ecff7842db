"""Reading timm's Vision Transformers by duck typing: shape, parameters, and what our model cannot express.

timm need not be installed for a model object to be read; it came from somewhere.
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
class Silence:
    """Why timm gives no second opinion, and what to do about it."""

    reason: str
    advice: str

    def note(self, consequence: str) -> str:
        """The whole as a note on a model."""
        return f"{self.reason}, so {consequence}. {self.advice}."


def import_timm() -> ModuleType | Silence:
    """The module, or why there is none.

    timm imports torchvision, which fails in its own ways where its build does not match torch's. That must not keep
    anyone from quantizing, since timm is only a second opinion here.
    """
    if importlib.util.find_spec("timm") is None:
        return Silence("timm is not installed", f"Install it with: {INSTALL}")
    try:
        return importlib.import_module("timm")
    except Exception as error:
        return Silence(f"timm cannot be imported ({type(error).__name__}: {error})", _advice(error))


def _advice(error: Exception) -> str:
    if "torchvision" in str(error):
        return f"Install the torchvision that belongs to torch {torch.__version__}: https://pytorch.org/get-started"
    if isinstance(error, ModuleNotFoundError):
        return f"Install what it needs with: {INSTALL}"
    return "See where it fails with: python -c 'import timm'"


def preprocessing_from_cfg(
    cfg: Mapping[str, Any], img_size: tuple[int, int], channels: int
) -> tuple[Preprocessing, dict[frozenset[str], str]]:
    """The ``pretrained_cfg`` of timm as :class:`Preprocessing`.

    Returns:
        The preprocessing, and notes on what was assumed or cannot be followed: fields -> note.
    """
    notes = {}
    mean, std = tuple(cfg.get("mean") or ()), tuple(cfg.get("std") or ())
    if len(mean) != channels or len(std) != channels:
        mean, std = (IMAGENET_MEAN, IMAGENET_STD) if channels == 3 else ((0.5,) * channels, (0.5,) * channels)
        told = f"the model does not tell its normalisation: mean {mean} and std {std} are assumed"
        notes[frozenset({"mean", "std"})] = told
    interpolation = cfg.get("interpolation") or "bicubic"
    if interpolation not in RESAMPLING:
        told = f"the model was evaluated with {interpolation} interpolation: bicubic is used"
        notes[frozenset({"interpolation"})] = told
        interpolation = "bicubic"
    if (crop_mode := cfg.get("crop_mode") or "center") != "center":
        notes[frozenset({"crop_mode"})] = f"the model was evaluated with crop mode {crop_mode}: center is used"
    return Preprocessing(img_size, mean, std, interpolation, cfg.get("crop_pct") or 0.875), notes


def read_timm(model: nn.Module) -> tuple[ViTSpec, dict[str, Tensor]]:
    """Shape and parameters of a timm ``VisionTransformer`` (or ``VisionTransformerDistilled``) for our own.

    What is absent and would change nothing is filled in: biases and a position embedding of zeros. With the class token
    as the pool, the norm before and after the pool are the same function, so ``fc_norm`` becomes ``norm``.

    Raises:
        ModelError: if the model is of another kind, or has features that our model lacks; all are named.
        NumericsError: if a parameter holds NaN or Inf.
    """
    kind = type(model).__name__
    if library := library_of_model(model):
        raise ModelError(
            f"a model of {library}, which is not read",
            where="model",
            got=kind,
            expected="vitquant's or timm's VisionTransformer, or a model name with its checkpoint",
            fix="give the same weights as a model of timm",
        )
    if not all(hasattr(model, part) for part in ("patch_embed", "blocks", "norm", "head", "global_pool")):
        raise ModelError(
            "not a Vision Transformer that can be read",
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
    """Refuse a model that was built on the meta device.

    Raises:
        ModelError: naming the first parameter without data.
    """
    if empty := [key for key, value in model.state_dict().items() if value.device.type == "meta"]:
        fix = "load its weights first"
        raise ModelError("the model's parameters have no data (meta device)", where="model", got=empty[0], fix=fix)


def _state(model: nn.Module, names: Mapping[str, str], absent: Mapping[str, tuple[int, ...]]) -> dict[str, Tensor]:
    """Copies of a model's parameters in float32 by their new names, and zeros for those that are absent."""
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
