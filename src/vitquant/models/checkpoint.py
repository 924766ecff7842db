"""Checkpoints: reading them without running anything, and fitting them to a model."""

from __future__ import annotations

import math
import pickle
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional as F

from vitquant.errors import ModelError, NumericsError
from vitquant.models.vit import VisionTransformer, ViTSpec

TORCH_SUFFIXES = (".pth", ".pt", ".bin")
WRAPPERS = ("state_dict", "model")


def read_checkpoint(path: Path) -> dict[str, Tensor]:
    """The tensors of a ``.safetensors`` file, or of a ``.pth``, ``.pt`` or ``.bin`` by torch's ``weights_only`` reader.

    Wrapping dictionaries (``model``, ``state_dict``) and the prefix ``module.`` are taken off.

    Raises:
        ModelError: if the file is missing, damaged, of another format, or holds more than tensors.
    """
    if not path.is_file():
        raise ModelError("no such checkpoint", where=str(path), expected="a .safetensors, .pth, .pt or .bin file")
    if path.suffix == ".safetensors":
        try:
            return dict(load_file(path))
        except (SafetensorError, OSError) as error:
            raise ModelError(f"the checkpoint cannot be read ({error})", where=str(path)) from error
    if path.suffix in TORCH_SUFFIXES:
        return _unwrap(_torch_load(path), path)
    raise ModelError(
        "checkpoints of this kind are not read",
        where=str(path),
        got=path.suffix or "no suffix",
        expected=f".safetensors, or {', '.join(TORCH_SUFFIXES)} with tensors only",
        fix="save the state_dict with safetensors.torch.save_file",
    )


def _torch_load(path: Path) -> object:
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ModelError(
            "the checkpoint holds more than tensors, or is damaged; it was not executed",
            where=str(path),
            fix="save the plain state_dict, best with safetensors.torch.save_file",
        ) from error
    except (RuntimeError, EOFError, OSError, ValueError, KeyError) as error:
        raise ModelError(f"the checkpoint cannot be read ({error})", where=str(path)) from error


def _unwrap(loaded: object, path: Path) -> dict[str, Tensor]:
    while isinstance(loaded, Mapping) and (inner := next((k for k in WRAPPERS if k in loaded), None)):
        loaded = loaded[inner]
    if not isinstance(loaded, Mapping) or not loaded or not all(isinstance(v, Tensor) for v in loaded.values()):
        got = sorted(map(str, loaded))[:5] if isinstance(loaded, Mapping) else type(loaded).__name__
        raise ModelError("no state_dict in the checkpoint", where=str(path), got=got, expected="names to tensors")
    state: dict[str, Any] = dict(loaded)
    if all(key.startswith("module.") for key in state):
        return {key.removeprefix("module."): value for key, value in state.items()}
    return state


def fit_checkpoint(
    state: Mapping[str, Tensor], spec: ViTSpec, *, default_grid: tuple[int, int], where: str
) -> tuple[ViTSpec, dict[str, Tensor], tuple[str, ...]]:
    """Bring a checkpoint and a shape together.

    The number of classes and the kind of pool are the checkpoint's. The position embedding is resampled to the shape's
    grid. Names of the original DINOv2 and DeiT III releases are turned into timm's.

    Args:
        state: names to tensors, as in timm.
        spec: the model's shape.
        default_grid: the grid, in patches, that a position embedding with so many rows is laid out for.
        where: what errors call the checkpoint.

    Returns:
        The shape, the parameters in float32, and notes on what was left out or resampled.

    Raises:
        ModelError: if parameters are missing, left over or of another shape (the first five of each, and totals).
        NumericsError: if a parameter holds NaN or Inf.
    """
    state, notes = _timm_names(state)
    named_classes, spec = spec.num_classes, replace(spec, **_read_off(state))
    if named_classes and spec.num_classes == 0:
        notes.append("the checkpoint has no head: the model's output is the pooled final norm")
    if "pos_embed" in state:
        prefix = spec.num_prefix if spec.pos_covers_prefix else 0
        old = _grid(state["pos_embed"].shape, prefix, spec.grid, default_grid)
        if old is not None and old != spec.grid:
            notes.append("position embedding resampled from {}x{} to {}x{} patches".format(*old, *spec.grid))
            state["pos_embed"] = resample_pos_embed(state["pos_embed"], old, spec.grid, prefix)
    with torch.device("meta"):
        wanted = VisionTransformer(spec).state_dict()
    _check_fit({key: value.shape for key, value in wanted.items()}, state, where)
    for key, value in state.items():
        if not value.isfinite().all():
            raise NumericsError("NaN or Inf in the checkpoint", where=f"{where} {key}", expected="finite weights")
    return spec, {key: state[key].float() for key in wanted}, tuple(notes)


def build(spec: ViTSpec, state: Mapping[str, Tensor]) -> VisionTransformer:
    """A model in eval mode with copies of these parameters; they must fit exactly."""
    with torch.device("meta"):
        model = VisionTransformer(spec)
    model.load_state_dict({key: value.clone() for key, value in state.items()}, strict=True, assign=True)
    return model.eval()


def resample_pos_embed(pos_embed: Tensor, old: tuple[int, int], new: tuple[int, int], num_prefix: int) -> Tensor:
    """A position embedding ``[1, prefix + rows * cols, D]`` for another grid, as timm's ``resample_abs_pos_embed``.

    The grid is resized bicubically with antialiasing; the rows of the prefix tokens stay as they are.
    """
    prefix, patches = pos_embed[:, :num_prefix], pos_embed[:, num_prefix:]
    grid = patches.float().reshape(1, *old, -1).permute(0, 3, 1, 2)
    resized = F.interpolate(grid, size=new, mode="bicubic", antialias=True).flatten(2).transpose(1, 2)
    return torch.cat([prefix, resized.to(pos_embed.dtype)], dim=1)


def _timm_names(state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], list[str]]:
    named = {re.sub(r"\.gamma_([12])$", r".ls\1.gamma", key): value for key, value in state.items()}
    notes = []
    if named.pop("mask_token", None) is not None:
        notes.append("mask_token left out: it serves training only")
    if "register_tokens" in named and "pos_embed" in named and "cls_token" in named:
        # The original adds a position to the class token but none to the registers; timm keeps the sum.
        named["reg_token"] = named.pop("register_tokens")
        named["cls_token"] = named["cls_token"] + named["pos_embed"][:, :1]
        named["pos_embed"] = named["pos_embed"][:, 1:]
    return named, notes


def _read_off(state: Mapping[str, Tensor]) -> dict[str, Any]:
    head = state.get("head.weight")
    pool = "avg" if "fc_norm.weight" in state and "norm.weight" not in state else "token"
    return {"num_classes": 0 if head is None else len(head), "pool": pool}


def _grid(
    shape: tuple[int, ...], prefix: int, wanted: tuple[int, int], default: tuple[int, int]
) -> tuple[int, int] | None:
    """The grid a position embedding was made for; ``None`` if its rows fit no grid."""
    rows = shape[1] - prefix if len(shape) == 3 else 0
    side = math.isqrt(max(rows, 0))
    return next((grid for grid in (default, wanted, (side, side)) if rows > 0 and grid[0] * grid[1] == rows), None)


def _check_fit(wanted: Mapping[str, tuple[int, ...]], state: Mapping[str, Tensor], where: str) -> None:
    shapes = [
        f"{key} {list(state[key].shape)} instead of {list(shape)}"
        for key, shape in wanted.items()
        if key in state and state[key].shape != shape
    ]
    problems = {
        "missing": [key for key in wanted if key not in state],
        "unexpected": [key for key in state if key not in wanted],
        "of another shape": shapes,
    }
    if not any(problems.values()):
        return
    listed = "; ".join(f"{len(keys)} {kind}: {_first(keys)}" for kind, keys in problems.items() if keys)
    raise ModelError(
        "the checkpoint does not fit the model",
        where=where,
        got=listed,
        expected=f"exactly the model's {len(wanted)} parameters",
        fix="give the name of the model that the checkpoint was made with",
    )


def _first(keys: list[str]) -> str:
    return ", ".join(keys[:5]) + (", ..." if len(keys) > 5 else "")
