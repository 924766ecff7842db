"""The manifest of a saved model, read as what anybody may have written: every field has its type and its bounds."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, NoReturn, TypeAlias

from vitquant.architectures.float_vit import ViTSpec
from vitquant.config import ModelConfig
from vitquant.data.preprocessing import Preprocessing
from vitquant.errors import ArtifactError, ConfigError, ModelError
from vitquant.runs import MANIFEST
from vitquant.strict_files import MAX_MANIFEST_BYTES, parse_json, read_file

FORMAT, FORMAT_VERSION = "vitquant-model", 1

MAX_HEADER_BYTES = 2**24
"""Of the tensor file: some hundred bytes a tensor."""

MAX_TENSOR_BYTES = 2**36
"""Of the tensor file, where the manifest does not say how large it is."""

Check: TypeAlias = tuple[Callable[[Any], bool], str]


def whole(low: int, high: int) -> Check:
    """A whole number within bounds; ``true`` is none."""
    return lambda v: type(v) is int and low <= v <= high, f"a whole number from {low} to {high}"


def pair(high: int) -> Check:
    """Height and width."""
    check, _ = whole(1, high)
    return lambda v: isinstance(v, list) and len(v) == 2 and all(map(check, v)), f"two whole numbers from 1 to {high}"


def number(low: float, high: float) -> Check:
    """A number within bounds."""
    return lambda v: type(v) in (int, float) and low <= v <= high, f"a number from {low:g} to {high:g}"


def colours(low: float, high: float) -> Check:
    """A number per colour."""
    check, told = number(low, high)
    return lambda v: isinstance(v, list) and len(v) in (1, 3) and all(map(check, v)), f"1 or 3 of {told}"


def one_of(*values: Any) -> Check:
    """One of a few."""
    told = " or ".join(json.dumps(value) for value in values)
    return lambda v: any(type(v) is type(value) and v == value for value in values), told


FLAG = one_of(True, False)

SPEC: Mapping[str, Check] = {
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
"""What an architecture may be, far beyond any that there is."""

PREPROCESSING: Mapping[str, Check] = {
    "img_size": pair(2**14),
    "mean": colours(-1000, 1000),
    "std": colours(1e-6, 1000),
    "interpolation": one_of("bicubic", "bilinear"),
    "crop_pct": number(1e-3, 1),
}


@dataclass(frozen=True)
class Manifest:
    """What a manifest says; ``size`` of the tensor file in bytes is ``None`` where it does not."""

    spec: ViTSpec
    preprocessing: Preprocessing
    config: ModelConfig
    sha256: str
    size: int | None


def read_manifest(folder: Path) -> Manifest:
    """The manifest of a saved model.

    Raises:
        ArtifactError: missing, not JSON, of another format, of a newer version, incomplete, or a value that cannot be.
    """
    path = folder / MANIFEST
    where, what = str(path), "the manifest"
    manifest = parse_json(read_file(path, MAX_MANIFEST_BYTES, what, ArtifactError), where, what, ArtifactError)
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise ArtifactError("not a vitquant model", where=where, expected=f'"format": "{FORMAT}"')
    version = manifest.get("format_version")
    if type(version) is not int or version != FORMAT_VERSION:  # True and 1.0 equal 1
        raise ArtifactError(
            "the model was saved in another version of the format",
            where=where,
            got=ascii(version)[:40],
            expected=f"version {FORMAT_VERSION}",
            fix="install the vitquant that wrote it, or save it again with this one",
        )
    kinds = {"spec": dict, "preprocessing": dict, "config": str, "tensors": dict}
    wrong = [key for key, kind in kinds.items() if not isinstance(manifest.get(key), kind)]
    wrong += [] if wrong or "sha256" in manifest["tensors"] else ["tensors.sha256"]
    if wrong:
        raise ArtifactError("the manifest is incomplete", where=where, expected=f"the keys {', '.join(wrong)}")
    tensors = manifest["tensors"]
    check_fields(tensors, {"sha256": (lambda v: isinstance(v, str) and len(v) == 64, "64 hexadecimal digits")}, where)
    if "bytes" in tensors:
        check_fields(tensors, {"bytes": whole(0, MAX_TENSOR_BYTES)}, where)
    try:
        return Manifest(
            spec=read_spec(manifest["spec"], where),
            preprocessing=read_preprocessing(manifest["preprocessing"], where),
            config=ModelConfig.from_text(manifest["config"], name=f"{where} (config)"),
            sha256=tensors["sha256"],
            size=tensors.get("bytes"),
        )
    except (ConfigError, ModelError) as error:
        raise ArtifactError(f"the saved model is damaged: {error}".removesuffix("."), where=where) from error


def read_spec(told: dict[str, Any], where: str) -> ViTSpec:
    """The architecture.

    Raises:
        ArtifactError: a field is missing, unknown, or cannot be.
        ModelError: the fields do not fit each other.
    """
    require_keys(told, {field.name for field in fields(ViTSpec)}, f"{where} spec")
    check_fields(told, SPEC, f"{where} spec")
    plain: dict[str, Any] = {key: tuple(v) if isinstance(v, list) else v for key, v in told.items()}
    return ViTSpec(**plain)


def read_preprocessing(told: dict[str, Any], where: str) -> Preprocessing:
    """How pixels become the model's input.

    Raises:
        ArtifactError: a value cannot be.
        ConfigError: a key is missing or unknown, or the values do not fit each other.
    """
    check_fields(told, {key: check for key, check in PREPROCESSING.items() if key in told}, f"{where} preprocessing")
    return Preprocessing.from_dict(told)


def require_keys(told: Mapping[str, Any], keys: set[str], where: str) -> None:
    """Exactly these.

    Raises:
        ArtifactError: some are missing or unknown.
    """
    if set(told) != keys:
        unknown, missing = (ascii(sorted(part)[:5]) for part in (set(told) - keys, keys - set(told)))
        raise ArtifactError("damaged: wrong keys", where=where, got=f"unknown {unknown}, missing {missing}")


def check_fields(told: Mapping[str, Any], checks: Mapping[str, Check], where: str) -> None:
    """Refuse values that cannot be.

    Raises:
        ArtifactError: naming the first.
    """
    for key, (fits, expected) in checks.items():
        if not fits(told[key]):
            value = told[key]
            got = ascii(value)[:80]
            raise ArtifactError("damaged: value not allowed", where=f"{where}.{key}", got=got, expected=expected)


def require_room(manifest: Manifest, size: int, tensors: int, where: str) -> None:
    """Refuse an architecture that the tensor file cannot hold, before anything of its size is made.

    Raises:
        ArtifactError: it asks for more blocks than there are tensors, or for more weights than there are bytes.
    """
    spec = manifest.spec
    if spec.depth > tensors:
        refuse_size(where, f"{spec.depth} blocks", f"{tensors} tensors")
    if least_bytes(spec) > size:
        refuse_size(where, f"at least {least_bytes(spec)} bytes of weights", f"{size} bytes")


def refuse_size(where: str, asked: str, held: str) -> NoReturn:
    """Raise that a tensor file is too small."""
    raise ArtifactError(
        "damaged: the architecture needs more than the tensor file holds", where=where, got=held, expected=asked
    )


def least_bytes(spec: ViTSpec) -> int:
    """A byte for each weight."""
    dim = spec.embed_dim
    patch = spec.in_chans * math.prod(spec.patch_size)
    block = dim * (4 * dim + 2 * spec.mlp_hidden)
    return dim * (patch + spec.num_tokens + spec.num_classes) + spec.depth * block
