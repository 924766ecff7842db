"""The models known by name: timm's plain ViT, DeiT, DeiT III and DINOv2, their shapes and their preprocessing.

Sources: Dosovitskiy et al., 2021 (ViT; table 1), Touvron et al., 2021 (DeiT) and 2022 (DeiT III), Oquab et al., 2023
(DINOv2), Darcet et al., 2024 (registers). Names, normalisation and crops are those of timm's default weights.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from numbers import Integral

from vitquant.adapters.timm_bridge import TimmUnavailable, import_timm, preprocessing_from_cfg
from vitquant.architectures.float_vit import ViTSpec
from vitquant.data.preprocessing import HALF, IMAGENET_MEAN, IMAGENET_STD, Preprocessing
from vitquant.errors import ModelError

#            embed_dim, depth, num_heads
SIZES = {
    "tiny": (192, 12, 3),
    "small": (384, 12, 6),
    "medium": (512, 12, 8),
    "base": (768, 12, 12),
    "large": (1024, 24, 16),
}
MAX_SIDE = 8192
"""Most pixels per side; the memory of attention grows with the fourth power."""

TO_LARGE, TO_BASE = ("tiny", "small", "base", "large"), ("tiny", "small", "base")


@dataclass(frozen=True)
class ModelSeries:
    """Models that differ in size only; ``{}`` in the name is the size."""

    name: str
    sizes: tuple[str, ...]
    patch: int
    img: int
    crop_pct: float
    imagenet: bool = True
    """Normalised with ImageNet's mean and standard deviation; otherwise with 0.5 and 0.5."""
    num_classes: int = 1000
    dist_token: bool = False
    reg_tokens: int = 0
    pos_covers_prefix: bool = True
    layer_scale: bool = False


FAMILIES = (
    ModelSeries("vit_{}_patch16_224", TO_LARGE, 16, 224, 0.9, imagenet=False),
    ModelSeries("vit_{}_patch16_384", TO_LARGE, 16, 384, 1.0, imagenet=False),
    ModelSeries("vit_{}_patch32_224", ("small", "base"), 32, 224, 0.9, imagenet=False),
    ModelSeries("vit_{}_patch32_224", ("large",), 32, 224, 0.9, imagenet=False, num_classes=0),
    ModelSeries("vit_{}_patch32_384", ("small", "base", "large"), 32, 384, 1.0, imagenet=False),
    ModelSeries("vit_{}_patch8_224", ("small",), 8, 224, 0.9, num_classes=0),  # DINO's (Caron et al., 2021)
    ModelSeries("vit_{}_patch8_224", ("base",), 8, 224, 0.9, imagenet=False),
    ModelSeries("vit_{}_patch14_224", ("large",), 14, 224, 0.9, imagenet=False),
    ModelSeries("deit_{}_patch16_224", TO_BASE, 16, 224, 0.9),
    ModelSeries("deit_{}_patch16_384", ("base",), 16, 384, 1.0),
    ModelSeries("deit_{}_distilled_patch16_224", TO_BASE, 16, 224, 0.9, dist_token=True),
    ModelSeries("deit_{}_distilled_patch16_384", ("base",), 16, 384, 1.0, dist_token=True),
    ModelSeries(
        "deit3_{}_patch16_224",
        ("small", "medium", "base", "large"),
        *(16, 224, 0.9),
        pos_covers_prefix=False,
        layer_scale=True,
    ),
    ModelSeries(
        "deit3_{}_patch16_384", ("small", "base", "large"), 16, 384, 1.0, pos_covers_prefix=False, layer_scale=True
    ),
    ModelSeries("vit_{}_patch14_dinov2", ("small", "base", "large"), 14, 518, 1.0, num_classes=0, layer_scale=True),
    ModelSeries(
        "vit_{}_patch14_reg4_dinov2",
        ("small", "base", "large"),
        *(14, 518, 1.0),
        num_classes=0,
        reg_tokens=4,
        pos_covers_prefix=False,
        layer_scale=True,
    ),
)


@dataclass(frozen=True)
class NamedModel:
    """A model known by name. ``base`` is the name without timm's tag; ``notes`` list assumptions."""

    name: str
    base: str
    spec: ViTSpec
    preprocessing: Preprocessing
    notes: tuple[str, ...] = ()


def known_models() -> tuple[str, ...]:
    """All names that :func:`lookup` accepts, without tags."""
    return tuple(family.name.format(size) for family in FAMILIES for size in family.sizes)


def lookup(name: str, *, img_size: int | tuple[int, int] | None = None) -> NamedModel:
    """The shape and the preprocessing of a model, by its timm name.

    Args:
        name: such as ``deit_small_patch16_224``; a tag, as in ``vit_small_patch16_224.augreg_in1k``, selects
            the preprocessing of those weights from timm. Without timm, the default is used, with a note.
        img_size: an input size other than the default, in pixels (``(height, width)`` or one number for both).

    Raises:
        ModelError: the name, or its tag in timm, is unknown, or ``img_size`` is not in whole pixels or not a multiple
            of the patch size.
    """
    base, _, tag = name.partition(".")
    spec, preprocessing = _named(base)
    notes: tuple[str, ...] = ()
    if tag:
        preprocessing, notes = _tagged(name, preprocessing)
    if img_size is not None:
        size = _size(img_size)
        spec, preprocessing = replace(spec, img_size=size), replace(preprocessing, img_size=size)
    return NamedModel(name, base, spec, preprocessing, notes)


def _size(img_size: object) -> tuple[int, int]:
    sides = tuple(img_size) if isinstance(img_size, Sequence) and not isinstance(img_size, str) else (img_size,) * 2
    if len(sides) != 2 or not all(isinstance(side, Integral) and not isinstance(side, bool) for side in sides):
        expected = "an integer, or (height, width), in pixels"
        raise ModelError("not an image size", where="img_size", got=repr(img_size), expected=expected)
    if max(sides) > MAX_SIDE:
        expected = f"at most {MAX_SIDE} pixels per side"
        raise ModelError("the image size is too large", where="img_size", got=repr(img_size), expected=expected)
    return int(sides[0]), int(sides[1])


def _named(base: str) -> tuple[ViTSpec, Preprocessing]:
    for family in FAMILIES:
        for size in family.sizes:
            if family.name.format(size) == base:
                return _spec(family, size), _preprocessing(family)
    close = difflib.get_close_matches(base, known_models(), n=5, cutoff=0.5)
    raise ModelError(
        "unknown model name",
        where="model",
        got=base if re.fullmatch(r"[\w.-]+", base) else repr(base),
        expected=f"a name such as {', '.join(close or known_models()[:5])}",
        fix="vitquant.adapters.names.known_models() lists all names; pass other timm models as objects",
    )


def _spec(family: ModelSeries, size: str) -> ViTSpec:
    embed_dim, depth, num_heads = SIZES[size]
    return ViTSpec(
        img_size=(family.img, family.img),
        patch_size=(family.patch, family.patch),
        embed_dim=embed_dim,
        depth=depth,
        num_heads=num_heads,
        mlp_hidden=4 * embed_dim,
        num_classes=family.num_classes,
        dist_token=family.dist_token,
        reg_tokens=family.reg_tokens,
        pos_covers_prefix=family.pos_covers_prefix,
        layer_scale=family.layer_scale,
    )


def _preprocessing(family: ModelSeries) -> Preprocessing:
    mean, std = (IMAGENET_MEAN, IMAGENET_STD) if family.imagenet else (HALF, HALF)
    return Preprocessing((family.img, family.img), mean, std, "bicubic", family.crop_pct)


def _tagged(name: str, default: Preprocessing) -> tuple[Preprocessing, tuple[str, ...]]:
    timm = import_timm()
    if isinstance(timm, TimmUnavailable):
        return default, (timm.note(f"the tag of {name} is ignored and the default preprocessing is used"),)
    try:
        cfg = timm.get_pretrained_cfg(name).to_dict()
    except RuntimeError as error:
        base = name.partition(".")[0]
        tags = ", ".join(timm.list_models(f"{base}.*", pretrained=True))
        raise ModelError("unknown tag", where="model", got=name, expected=f"{base} or one of {tags}") from error
    preprocessing, notes = preprocessing_from_cfg(cfg, default.img_size, default.channels)
    return preprocessing, tuple(notes.values())
