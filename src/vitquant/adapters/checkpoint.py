"""Reading checkpoints without executing their content, and converting them to the parameters of a model."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vitquant.adapters.checkpoint_entries import choose, flatten
from vitquant.adapters.checkpoint_files import read_file
from vitquant.adapters.checkpoint_names import tidy, timm_names
from vitquant.adapters.positions import fit_positions
from vitquant.architectures.float_vit import VisionTransformer, ViTSpec
from vitquant.errors import ModelError, NumericsError

FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


@dataclass(frozen=True)
class Checkpoint:
    """A model's tensors as stored, by timm's names or those of a known release; ``notes`` list the file's other
    content.
    """

    tensors: dict[str, Tensor]
    notes: tuple[str, ...] = ()


def read_checkpoint(path: Path, entry: str | None = None) -> Checkpoint:
    """The tensors of one model in a checkpoint: a file, the index of several files, or a folder with one of these.

    Dictionaries around the model and a common prefix of its names are removed.

    Args:
        path: see :func:`vitquant.adapters.checkpoint_files.read_file`.
        entry: which of several models to use, such as ``model`` or ``teacher``. By default averaged weights
            (``model_ema``, ``state_dict_ema``, ``teacher``) are preferred, as in timm.

    Raises:
        ModelError: the file is missing, damaged, in another format, or contains more than tensors; or it has no such
            entry, or no weights of a Vision Transformer.
    """
    chosen, notes = choose(flatten(read_file(path), str(path)), entry, str(path))
    _require(((name, _oddity(tensor)) for name, tensor in chosen.items()), str(path))
    tensors, left = tidy(chosen)
    return Checkpoint(tensors, (*notes, *left))


def fit_checkpoint(
    state: Mapping[str, Tensor], spec: ViTSpec, *, default_grid: tuple[int, int], where: str
) -> tuple[ViTSpec, dict[str, Tensor], tuple[str, ...]]:
    """Convert a checkpoint to the parameters of a model with a given shape.

    The number of classes and the type of pooling are those of the checkpoint. The position embedding is resampled to
    the grid of the shape. Names of the original DINOv2 and DeiT III releases are converted to timm's.

    Args:
        state: names to tensors, as in timm.
        spec: the model's shape.
        default_grid: the grid, in patches, of the model's default image size.
        where: the name of the checkpoint in errors.

    Returns:
        The shape, the parameters in float32, and notes on what was left out or resampled.

    Raises:
        ModelError: parameters are missing, unexpected or of another shape (with the first five of each, and totals).
        NumericsError: a parameter contains NaN or Inf.
    """
    state, notes = timm_names(state)
    named_classes, spec = spec.num_classes, replace(spec, **_read_off(state, spec))
    if named_classes and spec.num_classes == 0:
        notes.append("the checkpoint has no head: the model outputs the pooled final norm")
    if "pos_embed" in state:
        prefix = spec.num_prefix if spec.pos_covers_prefix else 0
        state["pos_embed"], note = fit_positions(state["pos_embed"], prefix, spec.grid, default_grid)
        notes += [note] if note else []
    with torch.device("meta"):
        wanted = VisionTransformer(spec).state_dict()
    _check_fit({key: value.shape for key, value in wanted.items()}, state, where)
    _require(((key, _not_float(state[key])) for key in wanted), where)
    fitted = {key: state[key].float() for key in wanted}
    require_finite(fitted, where, "the checkpoint")
    return spec, fitted, tuple(notes)


def require_finite(state: Mapping[str, Tensor], where: str, owner: str) -> None:
    """Check parameters for NaN and Inf.

    Raises:
        NumericsError: naming the first such tensor.
    """
    for key, value in state.items():
        if not value.isfinite().all():
            raise NumericsError(f"NaN or Inf in {owner}", where=f"{where} {key}", expected="finite weights")


def build(spec: ViTSpec, state: Mapping[str, Tensor]) -> VisionTransformer:
    """A model in eval mode with copies of these parameters; they must fit exactly."""
    with torch.device("meta"):
        model = VisionTransformer(spec)
    model.load_state_dict({key: value.clone() for key, value in state.items()}, strict=True, assign=True)
    return model.eval()


def _require(oddities: Iterable[tuple[str, str | None]], where: str) -> None:
    found = [(name, oddity) for name, oddity in oddities if oddity]
    if found:
        name, oddity = found[0]
        more = f" (and {len(found) - 1} more)" if len(found) > 1 else ""
        raise ModelError(
            f"not a plain floating-point tensor{more}",
            where=f"{where} {name}",
            got=oddity,
            expected="float32, float64, float16 or bfloat16",
            fix="use a checkpoint of the float model",
        )


def _oddity(tensor: Tensor) -> str | None:
    """Why a tensor cannot be read; ``None`` for a dense tensor with data."""
    if tensor.is_nested or tensor.layout != torch.strided:
        return f"a {'nested' if tensor.is_nested else str(tensor.layout).removeprefix('torch.')} tensor"
    if tensor.is_quantized:
        return f"a quantized tensor ({_dtype(tensor)})"
    if tensor.device.type == "meta":
        return "a tensor without data (on the meta device)"
    if tensor.numel() > 2**24 and tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
        return f"{list(tensor.shape)}, with only part of the values stored"
    return None


def _not_float(tensor: Tensor) -> str | None:
    return None if tensor.dtype in FLOATS else _dtype(tensor)


def _dtype(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def _read_off(state: Mapping[str, Tensor], spec: ViTSpec) -> dict[str, Any]:
    head = state.get("head.weight")
    classes = 0 if head is None else len(head) if head.ndim == 2 else spec.num_classes
    pool = "avg" if "fc_norm.weight" in state and "norm.weight" not in state else "token"
    return {"num_classes": classes, "pool": pool}


def _check_fit(wanted: Mapping[str, tuple[int, ...]], state: Mapping[str, Tensor], where: str) -> None:
    shapes = [
        f"{key} {list(state[key].shape)} instead of {list(shape)}"
        for key, shape in wanted.items()
        if key in state and state[key].shape != shape
    ]
    problems = {
        "missing": [key for key in wanted if key not in state],
        "unexpected": [key for key in state if key not in wanted],
        "with another shape": shapes,
    }
    if not any(problems.values()):
        return
    listed = "; ".join(f"{len(keys)} {kind}: {_first(keys)}" for kind, keys in problems.items() if keys)
    raise ModelError(
        "the checkpoint does not match the model",
        where=where,
        got=listed,
        expected=f"exactly the model's {len(wanted)} parameters",
        fix="use the model name that belongs to the checkpoint",
    )


def _first(keys: list[str]) -> str:
    return ", ".join(keys[:5]) + (", ..." if len(keys) > 5 else "")
