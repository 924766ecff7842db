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

from vitquant.data.preprocessing import IMAGENET_MEAN, IMAGENET_STD, RESAMPLING, Preprocessing
from vitquant.errors import ModelError
from vitquant.models.vit import VisionTransformer, ViTSpec

INSTALL = "pip install 'vitquant[timm]'"

# Part of a parameter's name -> what it belongs to.
FEATURES = {
    "q_norm": "normalised queries and keys (qk_norm)",
    "k_norm": "normalised queries and keys (qk_norm)",
    "rel_pos": "relative positions",
    "relative_position": "relative positions",
    "rope": "rotary positions",
    "norm_pre": "a norm before the blocks (pre_norm)",
    "attn_pool": "attention pooling",
    "attn.norm": "a norm inside attention (scale_attn_norm)",
    "attn.gate": "gated attention",
    "mlp.norm": "a norm inside the MLP (scale_mlp_norm)",
    "mlp.fc1_g": "a gated MLP (SwiGLU)",
    "mlp.w": "a gated MLP (SwiGLU)",
    "patch_embed.norm": "a norm inside the patch embedding",
    "patch_embed.backbone": "a convolutional stem (hybrid)",
}


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
) -> tuple[Preprocessing, tuple[str, ...]]:
    """The ``pretrained_cfg`` of timm as :class:`Preprocessing`, and notes on what was assumed or cannot be followed."""
    notes = []
    mean, std = tuple(cfg.get("mean") or ()), tuple(cfg.get("std") or ())
    if len(mean) != channels or len(std) != channels:
        mean, std = (IMAGENET_MEAN, IMAGENET_STD) if channels == 3 else ((0.5,) * channels, (0.5,) * channels)
        notes.append(f"the model does not tell its normalisation: mean {mean} and std {std} are assumed")
    interpolation = cfg.get("interpolation") or "bicubic"
    if interpolation not in RESAMPLING:
        notes.append(f"the model was evaluated with {interpolation} interpolation: bicubic is used")
        interpolation = "bicubic"
    if (crop_mode := cfg.get("crop_mode") or "center") != "center":
        notes.append(f"the model was evaluated with crop mode {crop_mode}: center is used")
    return Preprocessing(img_size, mean, std, interpolation, cfg.get("crop_pct") or 0.875), tuple(notes)


def read_timm(model: nn.Module) -> tuple[ViTSpec, dict[str, Tensor]]:
    """Shape and parameters of a timm ``VisionTransformer`` (or ``VisionTransformerDistilled``) for our own.

    What is absent and would change nothing is filled in: biases and a position embedding of zeros. With the class token
    as the pool, the norm before and after the pool are the same function, so ``fc_norm`` becomes ``norm``.

    Raises:
        ModelError: if the model is of another kind, or has features that our model lacks; all are named.
    """
    kind = type(model).__name__
    if not all(hasattr(model, part) for part in ("patch_embed", "blocks", "norm", "head", "global_pool")):
        raise ModelError(
            "not a Vision Transformer that can be read",
            where="model",
            got=kind,
            expected="vitquant's or timm's VisionTransformer, or a model name with its checkpoint",
        )
    if features := _foreign_features(model):
        raise _unsupported(kind, features)
    spec = _spec(model)
    state = {key: value.detach().float().cpu() for key, value in model.state_dict().items()}
    if spec.pool == "token" and "norm.weight" not in state and "fc_norm.weight" in state:
        state = {key.removeprefix("fc_") if key.startswith("fc_norm.") else key: v for key, v in state.items()}
    with torch.device("meta"):
        wanted = VisionTransformer(spec).state_dict()
    for key, value in wanted.items():
        if key not in state and (key.endswith(".bias") or key == "pos_embed"):
            state[key] = torch.zeros(value.shape)
    if leftover := sorted(state.keys() - wanted.keys()):
        raise _unsupported(kind, [_feature(key) for key in leftover])
    if missing := sorted(wanted.keys() - state.keys()):
        raise _unsupported(kind, [f"no {key}" for key in missing])
    if misshapen := [f"{k} {list(state[k].shape)}" for k, v in wanted.items() if state[k].shape != v.shape]:
        raise _unsupported(kind, [f"a shape of its own for {text}" for text in misshapen])
    return spec, state


def _unsupported(kind: str, features: list[str]) -> ModelError:
    named = list(dict.fromkeys(features))
    more = f" and {len(named) - 5} more" if len(named) > 5 else ""
    return ModelError(
        f"the model has parts that vitquant does not support: {'; '.join(named[:5])}{more}",
        where="model",
        got=kind,
        expected="a plain ViT, DeiT, DeiT III or DINOv2",
    )


def _feature(key: str) -> str:
    if key.startswith("norm."):
        return "the final norm before average pooling (fc_norm=False)"
    return next((feature for part, feature in FEATURES.items() if part in key), f"the parameter {key}")


def _foreign_features(model: Any) -> list[str]:
    """What has no parameters of its own to be known by."""
    found = []
    if not isinstance(getattr(model.patch_embed, "proj", None), nn.Conv2d):
        found.append(f"a patch embedding of the kind {type(model.patch_embed).__name__}")
    elif getattr(model.patch_embed, "img_size", None) is None:
        found.append("no fixed image size")
    if model.global_pool not in ("token", "avg"):
        found.append(f"pooling {model.global_pool!r}")
    if model.global_pool == "avg" and getattr(model, "pool_include_prefix", False):
        found.append("average pooling over the prefix tokens (pool_include_prefix)")
    if not isinstance(model.head, nn.Linear | nn.Identity):
        found.append(f"a head of the kind {type(model.head).__name__}")
    if _has(model, "dist_token") and _has(model, "reg_token"):
        found.append("distillation and register tokens together")
    for block in model.blocks:
        found += _foreign_block_features(block)
    norms = [module for name, module in model.named_modules() if "norm" in name.rpartition(".")[2]]
    foreign = {type(norm).__name__ for norm in norms if not isinstance(norm, nn.LayerNorm | nn.Identity)}
    found += [f"a norm of the kind {name}" for name in sorted(foreign)]
    if len({norm.eps for norm in norms if isinstance(norm, nn.LayerNorm)}) > 1:
        found.append("norms of different eps")
    return found


def _foreign_block_features(block: Any) -> list[str]:
    attn: Any = getattr(block, "attn", None)
    mlp: Any = getattr(block, "mlp", None)
    if not isinstance(getattr(attn, "qkv", None), nn.Linear) or not hasattr(attn, "num_heads"):
        return [f"attention of the kind {type(attn).__name__} in {type(block).__name__}"]
    if not isinstance(getattr(mlp, "fc1", None), nn.Linear) or not isinstance(getattr(mlp, "fc2", None), nn.Linear):
        return [f"an MLP of the kind {type(mlp).__name__}"]
    found = [f"a gated MLP ({type(mlp).__name__})"] if mlp.fc1.out_features != mlp.fc2.in_features else []
    activation = getattr(mlp, "act", None)
    if type(activation).__name__ != "GELU" or getattr(activation, "approximate", "none") != "none":
        found.append(f"the activation {activation}")
    return found


def _has(model: Any, name: str) -> bool:
    return getattr(model, name, None) is not None


def _spec(model: Any) -> ViTSpec:
    conv, block = model.patch_embed.proj, model.blocks[0]
    norm = block.norm1
    prefix = int(_has(model, "cls_token")) + int(_has(model, "dist_token"))
    reg_tokens = model.reg_token.shape[1] if _has(model, "reg_token") else 0
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
        class_token=_has(model, "cls_token"),
        dist_token=_has(model, "dist_token"),
        reg_tokens=reg_tokens,
        pos_covers_prefix=_has(model, "pos_embed") and model.pos_embed.shape[1] == patches + prefix + reg_tokens,
        layer_scale=not isinstance(getattr(block, "ls1", nn.Identity()), nn.Identity),
        pool=model.global_pool,
        norm_eps=norm.eps,
    )
