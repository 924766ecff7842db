"""Loading a model: ours, a timm object, or a name with a checkpoint. The result is compared with the original."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from vitquant.adapters.checkpoint import build, fit_checkpoint, read_checkpoint, require_finite
from vitquant.adapters.names import NamedModel, lookup
from vitquant.adapters.timm_bridge import TimmUnavailable, import_timm, preprocessing_from_cfg, read_timm, require_data
from vitquant.adapters.wrappers import unwrap
from vitquant.architectures.families import Spec, family_of
from vitquant.architectures.float_vit import VisionTransformer, ViTSpec
from vitquant.data.preprocessing import Preprocessing
from vitquant.errors import ModelError

MIN_PARITY_DB = 80.0
"""Two float32 implementations of the same model agree to about 120 dB."""


@dataclass(frozen=True)
class FloatModel:
    """A float model, ready to be quantized.

    ``vit`` is the float module, in eval mode and float32. ``parity_db`` is the SQNR, in dB, of its output against the
    original's on one random image (infinite if they are equal), or ``None`` if there was no original to compare with.
    ``notes`` state what was assumed, resampled or left out; ``overridden`` lists the fields of the preprocessing that
    were given instead of the model's own.
    """

    name: str
    vit: Any
    preprocessing: Preprocessing
    parity_db: float | None = None
    notes: tuple[str, ...] = ()
    overridden: tuple[str, ...] = ()


def adapt(
    model: nn.Module | str,
    *,
    weights: str | PathLike[str] | None = None,
    weights_entry: str | None = None,
    img_size: int | tuple[int, int] | None = None,
    preprocessing: Preprocessing | Mapping[str, Any] | None = None,
) -> FloatModel:
    """Load a model of any supported kind as a :class:`VisionTransformer` of vitquant.

    Args:
        model: a ``VisionTransformer`` of vitquant (used as is), a timm model object, or a name that
            :func:`vitquant.adapters.names.known_models` lists, with or without timm's tag. An object may be wrapped by
            ``DataParallel``, ``DistributedDataParallel`` or ``torch.compile``.
        weights: a local checkpoint, or a folder with exactly one; required with a name, not allowed otherwise.
        weights_entry: which of several models in the checkpoint to use, such as ``"model"`` or ``"student"``. By
            default averaged weights are preferred: ``state_dict_ema``, ``model_ema``, ``teacher``.
        img_size: an input size other than the default of the name; the position embedding is resampled. Only with a
            name.
        preprocessing: overrides the preprocessing of the model; its size must be that of the model. A mapping such as
            ``{"mean": 0.5, "crop_pct": 1.0}`` overrides single fields.

    Raises:
        ModelError: the model or the checkpoint is not supported, or the outputs of the model and of its original
            agree to less than 80 dB.
        NumericsError: a parameter contains NaN or Inf.
        ConfigError: a value of the preprocessing is out of range.
    """
    found = unwrap(model)
    if isinstance(found, str):
        return _from_name(lookup(found, img_size=img_size), _path(weights, found), weights_entry, preprocessing)
    if not isinstance(found, nn.Module):
        fix = "pass timm's name of the architecture as model, and the file as weights"
        raise ModelError(
            "not a model",
            where="model",
            got=type(found).__name__,
            expected="a torch module or a name",
            fix=fix if isinstance(found, PathLike) else None,
        )
    if any(option is not None for option in (weights, weights_entry, img_size)):
        expected = "none of them, since a model object has its own weights and size"
        raise ModelError(
            "weights, weights_entry and img_size need a model name", where=type(found).__name__, expected=expected
        )
    if family_of(found) is not None:
        return _from_own(found, preprocessing)
    return _from_timm(found, preprocessing)


def _path(weights: object, name: str) -> Path:
    if weights is None:
        fix = "pass a local checkpoint as weights"
        raise ModelError("a model name needs weights; nothing is downloaded", where=name, fix=fix)
    if not isinstance(weights, str | PathLike) or not str(weights):
        expected = "the path of a local checkpoint"
        raise ModelError("not a path", where="weights", got=repr(weights), expected=expected)
    return Path(weights)


Given: TypeAlias = Preprocessing | Mapping[str, Any] | None


def _from_own(model: Any, given: Given) -> FloatModel:
    require_data(model)
    require_finite(model.state_dict(), "model", "the model's parameters")
    ready = not model.training and all(p.dtype == torch.float32 for p in model.parameters())
    vit = model if ready else copy.deepcopy(model).float().eval()
    preprocessing, notes, overridden = _preprocessing(given, {}, vit.spec)
    return FloatModel(type(vit).__name__, vit, preprocessing, notes=notes, overridden=overridden)


def _from_timm(model: nn.Module, given: Given) -> FloatModel:
    spec, state = read_timm(model)
    cfg = getattr(model, "pretrained_cfg", None) or {}
    name = ".".join(part for part in (cfg.get("architecture") or type(model).__name__, cfg.get("tag")) if part)
    vit = build(spec, state)
    preprocessing, notes, overridden = _preprocessing(given, cfg, spec)
    parity = prove(vit, copy.deepcopy(model).cpu().float().eval(), name)
    return FloatModel(name, vit, preprocessing, parity, notes, overridden)


def _from_name(named: NamedModel, weights: Path, entry: str | None, given: Given) -> FloatModel:
    preprocessing, overridden = _override(
        named.preprocessing, given, named.spec
    )  # checked before the checkpoint is read
    checkpoint = read_checkpoint(weights, entry)
    default_grid = lookup(named.base).spec.grid
    spec, state, fit_notes = fit_checkpoint(
        checkpoint.tensors, named.spec, default_grid=default_grid, where=str(weights)
    )
    vit = build(spec, state)
    assumed = () if isinstance(given, Preprocessing) else named.notes
    notes = (*assumed, *checkpoint.notes, *fit_notes)
    original = _timm_original(named, spec, checkpoint.tensors, state, default_grid)
    if isinstance(original, TimmUnavailable):
        notes = (*notes, original.note("the model was not compared with timm's"))
        return FloatModel(named.name, vit, preprocessing, None, notes, overridden)
    return FloatModel(named.name, vit, preprocessing, prove(vit, original, named.name), notes, overridden)


def _preprocessing(
    given: Given, cfg: Mapping[str, Any], spec: Spec
) -> tuple[Preprocessing, tuple[str, ...], tuple[str, ...]]:
    """The preprocessing of a model object, notes on assumptions, and the overridden fields."""
    if isinstance(given, Preprocessing):
        return _checked(given, spec), (), ()
    own, notes = preprocessing_from_cfg(cfg, spec.img_size, spec.in_chans)
    preprocessing, overridden = _override(own, given, spec)
    return preprocessing, tuple(note for fields, note in notes.items() if not fields <= set(overridden)), overridden


def _override(own: Preprocessing, given: Given, spec: Spec) -> tuple[Preprocessing, tuple[str, ...]]:
    if isinstance(given, Preprocessing):
        return _checked(given, spec), ()
    if given is None:
        return own, ()
    if not isinstance(given, Mapping):
        expected = "a Preprocessing, or a mapping of some of its fields"
        raise ModelError("not a preprocessing", where="preprocessing", got=type(given).__name__, expected=expected)
    return _checked(own.replaced(**{str(field): value for field, value in given.items()}), spec), tuple(given)


def _checked(given: Preprocessing, spec: Spec) -> Preprocessing:
    if given.shape != (spec.in_chans, *spec.img_size):
        expected = str([spec.in_chans, *spec.img_size])
        got = list(given.shape)
        raise ModelError(
            "does not match the input shape of the model", where="preprocessing", got=got, expected=expected
        )
    return given


def _timm_original(
    named: NamedModel,
    spec: ViTSpec,
    raw: Mapping[str, Tensor],
    fitted: Mapping[str, Tensor],
    default_grid: tuple[int, int],
) -> nn.Module | TimmUnavailable:
    """The same model built by timm, with the checkpoint converted by timm's own code, as an independent reference.

    timm infers the grid of a position embedding from the number of rows alone. If that number fits several grids, the
    grid chosen by vitquant is used.
    """
    timm = import_timm()
    if isinstance(timm, TimmUnavailable):
        return timm
    try:
        settings = {"img_size": spec.img_size, "num_classes": spec.num_classes, "global_pool": spec.pool}
        with torch.device("meta"):  # avoids initialising weights that are overwritten
            original: nn.Module = timm.create_model(named.name, pretrained=False, **settings)
        convert = timm.models.vision_transformer.checkpoint_filter_fn
        converted = convert(dict(raw), original, adapt_layer_scale=True)
        as_many = raw["pos_embed"].shape[1] - ("register_tokens" in raw) == fitted["pos_embed"].shape[1]
        if as_many and spec.grid != default_grid:
            converted["pos_embed"] = fitted["pos_embed"]
        original.load_state_dict(converted, strict=True, assign=True)
    except (RuntimeError, AttributeError, TypeError, KeyError) as error:
        reason = f"timm {timm.__version__} could not build or load the model ({type(error).__name__}: {error})"
        return TimmUnavailable(reason, "Another version may work: pip install --upgrade timm")
    return original.float().eval()


@torch.no_grad()
def prove(vit: VisionTransformer, original: nn.Module, name: str) -> float:
    """SQNR in dB of our output against the output of the original, on one fixed random image.

    Raises:
        ModelError: it is below 80 dB, or the outputs differ in shape.
    """
    size = (1, vit.spec.in_chans, *vit.spec.img_size)
    image = torch.randn(size, generator=torch.Generator().manual_seed(0), dtype=torch.float32, device="cpu")
    expected, output = original(image), vit(image)
    if not isinstance(expected, Tensor) or expected.shape != output.shape:
        shape = list(expected.shape) if isinstance(expected, Tensor) else type(expected).__name__
        raise ModelError(
            "the output of the original model has another type or shape",
            where=name,
            got=shape,
            expected=str(list(output.shape)),
        )
    parity = sqnr_db(expected, output)
    if not parity >= MIN_PARITY_DB:  # NaN must fail as well
        raise ModelError(
            "the converted model does not match the original",
            where=name,
            got=f"{parity:.1f} dB SQNR between the outputs",
            expected=f"at least {MIN_PARITY_DB:.0f} dB",
            fix="use a plain ViT, DeiT, DeiT III or DINOv2; the original has an unsupported part",
        )
    return parity


def sqnr_db(reference: Tensor, output: Tensor) -> float:
    """Signal to noise in dB, ``10 log10(sum r^2 / sum (r - o)^2)``; infinite if both are equal."""
    signal, noise = reference.double().square().sum().item(), (reference.double() - output).square().sum().item()
    return math.inf if noise == 0 else 10 * math.log10(signal / noise) if signal > 0 else -math.inf
