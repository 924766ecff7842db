"""Features of timm models that vitquant does not support, by the names used in the literature."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from torch import nn

from vitquant.errors import ModelError

# Part of a parameter's name -> the feature it belongs to.
PARAMETERS = {
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
    "attn.q_bias": "separate query and value biases (BEiT, EVA)",
    "attn.v_bias": "separate query and value biases (BEiT, EVA)",
    "attn.proj_l": "talking-heads attention (CaiT)",
    "attn.proj_w": "talking-heads attention (CaiT)",
    "blocks_token_only": "class attention (CaiT)",
    ".gamma_": "LayerScale in the block itself",
}

# timm's class of a block -> its special feature. The plain class is Block.
BLOCKS = {
    "ResPostBlock": "residual post-norm",
    "ResPostRelPosBlock": "residual post-norm",
    "EvaBlockPostNorm": "residual post-norm",
    "ParallelScalingBlock": "attention and MLP in parallel",
    "ParallelThingsBlock": "several attentions and MLPs in parallel",
    "DiffParallelScalingBlock": "differential attention, with the MLP in parallel",
}
SUPPORTED = "a plain ViT, DeiT, DeiT III or DINOv2"


def unsupported(kind: str, features: list[str]) -> ModelError:
    """The error for a model of this class, with the first five features."""
    named = list(dict.fromkeys(features))
    more = f" and {len(named) - 5} more" if len(named) > 5 else ""
    return ModelError(
        f"the model has parts that vitquant does not support: {'; '.join(named[:5])}{more}",
        where="model",
        got=kind,
        expected=SUPPORTED,
    )


def foreign_features(model: Any) -> list[str]:
    """Unsupported features found in the model's modules and attributes, most specific first."""
    return list(dict.fromkeys([*_model_features(model), *_block_features(model), *_norm_features(model)]))


def require_fit(
    kind: str, shapes: Mapping[str, tuple[int, ...]], wanted: Mapping[str, tuple[int, ...]]
) -> dict[str, tuple[int, ...]]:
    """Compare a model's parameters with ours.

    Returns:
        Shapes of absent parameters that are zero: biases and a position embedding.

    Raises:
        ModelError: parameters are unexpected, missing or of another shape.
    """
    absent = {k: v for k, v in wanted.items() if k not in shapes and (k.endswith(".bias") or k == "pos_embed")}
    if leftover := sorted(shapes.keys() - wanted.keys()):
        raise unsupported(kind, [_parameter(key) for key in leftover])
    if missing := sorted(wanted.keys() - shapes.keys() - absent.keys()):
        raise unsupported(kind, ["no final norm" if key == "norm.weight" else f"no {key}" for key in missing])
    if misshapen := [f"{k} {list(v)}" for k, v in shapes.items() if v != wanted[k]]:
        raise unsupported(kind, [f"an unexpected shape of {text}" for text in misshapen])
    return absent


def has(model: Any, name: str) -> bool:
    """Whether an attribute exists and is not ``None``."""
    return getattr(model, name, None) is not None


def _parameter(key: str) -> str:
    if key.startswith("norm."):
        return "the final norm before average pooling (fc_norm=False)"
    return next((feature for part, feature in PARAMETERS.items() if part in key), f"the parameter {key}")


def _model_features(model: Any) -> Iterator[str]:
    if has(model, "rope"):
        yield "rotary positions"
    if has(model, "rel_pos_bias") or has(model, "shared_rel_pos"):
        yield "relative positions"
    embed = model.patch_embed
    if has(embed, "backbone"):
        yield "a convolutional stem (hybrid)"
    elif not isinstance(getattr(embed, "proj", None), nn.Conv2d):
        yield f"a patch embedding of type {type(embed).__name__}"
    elif getattr(embed, "img_size", None) is None:
        yield "no fixed image size"
    if model.global_pool not in ("token", "avg"):
        yield f"pooling {model.global_pool!r}"
    if model.global_pool == "avg" and getattr(model, "pool_include_prefix", False):
        yield "average pooling over the prefix tokens (pool_include_prefix)"
    if not isinstance(model.head, nn.Linear | nn.Identity):
        yield f"a head of type {type(model.head).__name__}"
    if has(model, "dist_token") and has(model, "reg_token"):
        yield "distillation and register tokens together"
    if not isinstance(model.blocks, nn.Sequential | nn.ModuleList) or not len(model.blocks):
        yield "no blocks"


def _block_features(model: Any) -> Iterator[str]:
    for block in model.blocks:
        attn, mlp = getattr(block, "attn", None), getattr(block, "mlp", None)
        if any(has(attn, part) for part in ("rel_pos", "rel_pos_bias", "relative_position_bias_table")):
            yield "relative positions"
        if type(block).__name__ in BLOCKS:
            yield f"{BLOCKS[type(block).__name__]} ({type(block).__name__})"
        elif not isinstance(getattr(attn, "qkv", None), nn.Linear) or not hasattr(attn, "num_heads"):
            kind = "no attention" if attn is None else f"attention of type {type(attn).__name__}"
            yield f"{kind} in {type(block).__name__}"
        elif not isinstance(getattr(mlp, "fc1", None), nn.Linear) or not isinstance(
            getattr(mlp, "fc2", None), nn.Linear
        ):
            yield f"an MLP of type {type(mlp).__name__}"
        elif not all(isinstance(getattr(block, name, None), nn.Module) for name in ("norm1", "norm2")):
            yield f"a block of type {type(block).__name__}"
        else:
            yield from _mlp_features(mlp)


def _mlp_features(mlp: Any) -> Iterator[str]:
    if mlp.fc1.out_features != mlp.fc2.in_features:
        yield f"a gated MLP ({type(mlp).__name__})"
    activation = getattr(mlp, "act", None)
    if type(activation).__name__ != "GELU" or getattr(activation, "approximate", "none") != "none":
        yield f"the activation {activation}"


def _norm_features(model: Any) -> Iterator[str]:
    norms = [
        module
        for name, module in model.named_modules()
        if "norm" in name.rpartition(".")[2] and not name.startswith("patch_embed.backbone")
    ]
    foreign = {type(norm).__name__ for norm in norms if not isinstance(norm, nn.LayerNorm | nn.Identity)}
    yield from (f"a norm of type {name}" for name in sorted(foreign))
    if len({norm.eps for norm in norms if isinstance(norm, nn.LayerNorm)}) > 1:
        yield "norms with different eps"
