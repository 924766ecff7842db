"""One way in for every model: ours, a timm object, or a name with a checkpoint; each proven equal to its original."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vitquant.data.preprocessing import Preprocessing
from vitquant.errors import ModelError
from vitquant.models.checkpoint import build, fit_checkpoint, read_checkpoint
from vitquant.models.names import NamedModel, lookup
from vitquant.models.timm_bridge import Silence, import_timm, preprocessing_from_cfg, read_timm
from vitquant.models.vit import VisionTransformer, ViTSpec

MIN_PARITY_DB = 80.0
"""Float32 rounding leaves some 120 dB between two ways to compute the same model."""


@dataclass(frozen=True)
class FloatModel:
    """A float model, ready to be quantized.

    ``vit`` is in eval mode and float32. ``parity_db`` is the SQNR, in dB, of its output against the original's on one
    random image (infinite where both are equal), or ``None`` where there was no original to compare with. ``notes``
    tell what was assumed, resampled or left out.
    """

    name: str
    vit: VisionTransformer
    preprocessing: Preprocessing
    parity_db: float | None = None
    notes: tuple[str, ...] = ()


def adapt(
    model: nn.Module | str,
    *,
    weights: str | PathLike[str] | None = None,
    img_size: int | tuple[int, int] | None = None,
    preprocessing: Preprocessing | None = None,
) -> FloatModel:
    """A model of any accepted kind as our own :class:`VisionTransformer`.

    Args:
        model: our ``VisionTransformer`` (taken as it is), a timm model object, or a name that
            :func:`vitquant.models.names.known_models` lists, with or without timm's tag.
        weights: a local checkpoint; needed with a name, and only then.
        img_size: another input size than the name's; the position embedding is resampled. Only with a name.
        preprocessing: overrides what the model's own metadata says; its size must be the model's.

    Raises:
        ModelError: if the model or the checkpoint cannot be taken, or if the outputs of the model and of its original
            agree to less than 80 dB.
    """
    if isinstance(model, str):
        if weights is None:
            fix = "give a local checkpoint as weights"
            raise ModelError("a model name needs its weights, nothing is downloaded", where=model, fix=fix)
        return _from_name(lookup(model, img_size=img_size), Path(weights), preprocessing)
    if weights is not None or img_size is not None:
        expected = "neither, since a model object has its weights and its size"
        raise ModelError("weights and img_size go with a model name", where=type(model).__name__, expected=expected)
    if isinstance(model, VisionTransformer):
        return _from_own(model, preprocessing)
    if isinstance(model, nn.Module):
        return _from_timm(model, preprocessing)
    raise ModelError("this is no model", where="model", got=type(model).__name__, expected="a torch module or a name")


def _from_own(model: VisionTransformer, given: Preprocessing | None) -> FloatModel:
    ready = not model.training and all(p.dtype == torch.float32 for p in model.parameters())
    vit = model if ready else copy.deepcopy(model).float().eval()
    preprocessing, notes = _preprocessing(given, {}, vit.spec)
    return FloatModel("VisionTransformer", vit, preprocessing, notes=notes)


def _from_timm(model: nn.Module, given: Preprocessing | None) -> FloatModel:
    spec, state = read_timm(model)
    cfg = getattr(model, "pretrained_cfg", None) or {}
    name = ".".join(part for part in (cfg.get("architecture") or type(model).__name__, cfg.get("tag")) if part)
    vit = build(spec, state)
    preprocessing, notes = _preprocessing(given, cfg, spec)
    parity = prove(vit, copy.deepcopy(model).cpu().float().eval(), name)
    return FloatModel(name, vit, preprocessing, parity, notes)


def _from_name(named: NamedModel, weights: Path, given: Preprocessing | None) -> FloatModel:
    raw = read_checkpoint(weights)
    default_grid = lookup(named.base).spec.grid
    spec, state, fit_notes = fit_checkpoint(raw, named.spec, default_grid=default_grid, where=str(weights))
    vit = build(spec, state)
    preprocessing = named.preprocessing if given is None else _checked(given, spec)
    notes = (() if given else named.notes) + fit_notes
    original = _timm_original(named, spec, raw)
    if isinstance(original, Silence):
        notes = (*notes, original.note("the model was not compared with timm's"))
        return FloatModel(named.name, vit, preprocessing, None, notes)
    return FloatModel(named.name, vit, preprocessing, prove(vit, original, named.name), notes)


def _preprocessing(
    given: Preprocessing | None, cfg: Mapping[str, Any], spec: ViTSpec
) -> tuple[Preprocessing, tuple[str, ...]]:
    if given is None:
        return preprocessing_from_cfg(cfg, spec.img_size, spec.in_chans)
    return _checked(given, spec), ()


def _checked(given: Preprocessing, spec: ViTSpec) -> Preprocessing:
    if given.shape != (spec.in_chans, *spec.img_size):
        expected = str([spec.in_chans, *spec.img_size])
        got = list(given.shape)
        raise ModelError("made for another input than the model's", where="preprocessing", got=got, expected=expected)
    return given


def _timm_original(named: NamedModel, spec: ViTSpec, raw: dict[str, Tensor]) -> nn.Module | Silence:
    """The same model by timm, its checkpoint converted by timm's own code: independent of everything we did to it."""
    timm = import_timm()
    if isinstance(timm, Silence):
        return timm
    try:
        settings = {"img_size": spec.img_size, "num_classes": spec.num_classes, "global_pool": spec.pool}
        with torch.device("meta"):  # spares the initialisation of weights that are overwritten
            original: nn.Module = timm.create_model(named.name, pretrained=False, **settings)
        convert = timm.models.vision_transformer.checkpoint_filter_fn
        original.load_state_dict(convert(dict(raw), original, adapt_layer_scale=True), strict=True, assign=True)
    except (RuntimeError, AttributeError, TypeError, KeyError) as error:
        reason = f"timm {timm.__version__} could not build or load the model ({type(error).__name__}: {error})"
        return Silence(reason, "Another version may: pip install --upgrade timm")
    return original.float().eval()


@torch.no_grad()
def prove(vit: VisionTransformer, original: nn.Module, name: str) -> float:
    """SQNR in dB of our output against the original's, on one fixed random image.

    Raises:
        ModelError: if it is below 80 dB, or the outputs differ in shape.
    """
    size = (1, vit.spec.in_chans, *vit.spec.img_size)
    image = torch.randn(size, generator=torch.Generator().manual_seed(0))
    expected, output = original(image), vit(image)
    if not isinstance(expected, Tensor) or expected.shape != output.shape:
        shape = list(expected.shape) if isinstance(expected, Tensor) else type(expected).__name__
        raise ModelError(
            "the original's output is of another kind", where=name, got=shape, expected=str(list(output.shape))
        )
    parity = sqnr_db(expected, output)
    if not parity >= MIN_PARITY_DB:  # NaN must fail as well
        raise ModelError(
            "our model computes something else than the original",
            where=name,
            got=f"{parity:.1f} dB SQNR between the outputs",
            expected=f"at least {MIN_PARITY_DB:.0f} dB",
            fix="the original has a part that was not recognised; only plain ViT, DeiT, DeiT III and DINOv2 are read",
        )
    return parity


def sqnr_db(reference: Tensor, output: Tensor) -> float:
    """Signal to noise in dB, ``10 log10(sum r^2 / sum (r - o)^2)``; infinite where both are equal."""
    signal, noise = reference.double().square().sum().item(), (reference.double() - output).square().sum().item()
    return math.inf if noise == 0 else 10 * math.log10(signal / noise) if signal > 0 else -math.inf
