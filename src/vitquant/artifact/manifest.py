"""The manifest of a saved model, read as what anybody may have written: every field has its type and its bounds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from vitquant.architectures.families import FAMILIES, VIT, Family, Spec
from vitquant.bounds import Check, colours, number, one_of, pair, whole
from vitquant.calibration.rewrite import REWRITES
from vitquant.config import ModelConfig
from vitquant.data.preprocessing import Preprocessing
from vitquant.errors import ArtifactError, ConfigError, ModelError
from vitquant.runs import MANIFEST
from vitquant.strict_files import MAX_MANIFEST_BYTES, parse_json, read_file

FORMAT = "vitquant-model"
PLAIN_VERSION, PACKED_VERSION = 1, 2
"""Written is the first unless weights of fewer than 8 bits are packed, so that older readers can read it."""

LEAST_BITS = 2
"""Of a packed weight."""

MAX_HEADER_BYTES = 2**24
"""Of the tensor file: some hundred bytes a tensor."""

MAX_NAME = 100
"""Characters of an output's name."""

MAX_REWRITES = 16
"""A configuration names each once; a model that was calibrated again has them again."""

MAX_TENSOR_BYTES = 2**36
"""Of the tensor file, where the manifest does not say how large it is."""

PREPROCESSING: Mapping[str, Check] = {
    "img_size": pair(2**14),
    "mean": colours(-1000, 1000),
    "std": colours(1e-6, 1000),
    "interpolation": one_of("bicubic", "bilinear"),
    "crop_pct": number(1e-3, 1),
}


@dataclass(frozen=True)
class Manifest:
    """What a manifest says; ``size`` of the tensor file in bytes is ``None`` where it does not.

    ``packed``: weights of fewer than 8 bits are packed.
    """

    family: Family
    spec: Spec
    preprocessing: Preprocessing
    config: ModelConfig
    sha256: str
    size: int | None
    output: str | None
    rewrites: tuple[str, ...]
    packed: bool


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
    if type(version) is not int or version not in (PLAIN_VERSION, PACKED_VERSION):  # True and 1.0 equal 1
        raise ArtifactError(
            "the model was saved in another version of the format",
            where=where,
            got=ascii(version)[:40],
            expected=f"version {PLAIN_VERSION} or {PACKED_VERSION}",
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
    family = read_family(manifest.get("family", VIT.name), where)  # older manifests know one family only
    try:
        return Manifest(
            family=family,
            spec=read_spec(family, manifest["spec"], where),
            preprocessing=read_preprocessing(manifest["preprocessing"], where),
            config=ModelConfig.from_text(manifest["config"], name=f"{where} (config)"),
            sha256=tensors["sha256"],
            size=tensors.get("bytes"),
            output=read_output(manifest.get("output"), where),
            rewrites=read_rewrites(manifest.get("rewrites", []), where),
            packed=version == PACKED_VERSION,
        )
    except (ConfigError, ModelError) as error:
        raise ArtifactError(f"the saved model is damaged: {error}".removesuffix("."), where=where) from error


def read_family(told: object, where: str) -> Family:
    """The family of architectures.

    Raises:
        ArtifactError: there is no such family.
    """
    family = FAMILIES.get(told) if isinstance(told, str) else None
    if family is None:
        raise ArtifactError(
            "the model is of an unknown family",
            where=f"{where} family",
            got=ascii(told)[:80],
            expected=" or ".join(FAMILIES),
            fix="install the vitquant that wrote it",
        )
    return family


def read_output(told: object, where: str) -> str | None:
    """The name of the main output, if it is not the family's first.

    Raises:
        ArtifactError: not a name.
    """
    if told is not None and not (isinstance(told, str) and 0 < len(told) <= MAX_NAME and told.isidentifier()):
        raise ArtifactError("damaged: value not allowed", where=f"{where} output", got=ascii(told)[:80])
    return told


def read_rewrites(told: object, where: str) -> tuple[str, ...]:
    """What was done to the float weights, in order.

    Raises:
        ArtifactError: there is no such rewrite.
    """
    if not isinstance(told, list) or len(told) > MAX_REWRITES or not all(name in REWRITES for name in map(str, told)):
        raise ArtifactError(
            "damaged: value not allowed",
            where=f"{where} rewrites",
            got=ascii(told)[:80],
            expected=f"at most {MAX_REWRITES} of {', '.join(REWRITES)}",
        )
    return tuple(map(str, told))


def read_spec(family: Family, told: dict[str, Any], where: str) -> Spec:
    """The architecture.

    Raises:
        ArtifactError: a field is missing, unknown, or cannot be.
        ModelError: the fields do not fit each other.
    """
    require_keys(told, set(family.bounds), f"{where} spec")
    check_fields(told, family.bounds, f"{where} spec")
    plain: dict[str, Any] = {key: tuple(v) if isinstance(v, list) else v for key, v in told.items()}
    spec: Spec = family.spec(**plain)
    return spec


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
    least = spec.least_bytes * LEAST_BITS // 8 if manifest.packed else spec.least_bytes
    if least > size:
        refuse_size(where, f"at least {least} bytes of weights", f"{size} bytes")


def refuse_size(where: str, asked: str, held: str) -> NoReturn:
    """Raise that a tensor file is too small."""
    raise ArtifactError(
        "damaged: the architecture needs more than the tensor file holds", where=where, got=held, expected=asked
    )
