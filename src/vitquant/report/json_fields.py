"""Frozen dataclasses as JSON objects, and strictly back: every key has a field, and every value has its type."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import MISSING, Field, dataclass, fields, is_dataclass
from functools import cache
from types import NoneType, UnionType
from typing import Annotated, Any, NoReturn, TypeVar, Union, cast, get_args, get_origin, get_type_hints

from vitquant.errors import ArtifactError

T = TypeVar("T")

EXPECTED = {str: "text", bool: "true or false", int: "a whole number", float: "a number"}
FIX = "quantize again, or read the file with the vitquant that wrote it"


@dataclass(frozen=True)
class Bounds:
    """Least and greatest value, in an ``Annotated`` type."""

    low: float
    high: float


def key_of(part: Field[Any]) -> str:
    """The name of a field in JSON: its own, or the ``key`` of its metadata."""
    return str(part.metadata.get("key", part.name))


def encode(value: Any) -> Any:
    """A dataclass, mapping, tuple or plain value as JSON."""
    if is_dataclass(value):
        return {key_of(part): encode(getattr(value, part.name)) for part in fields(value)}
    if isinstance(value, Mapping):
        return {key: encode(part) for key, part in value.items()}
    return [encode(part) for part in value] if isinstance(value, tuple) else value


def decode(kind: type[T], told: Any, where: str, **given: Any) -> T:
    """A dataclass from a JSON object.

    Args:
        kind: the dataclass; its fields with a default may be missing.
        told: what the file contains.
        where: the place, for messages.
        given: the fields that the object does not contain, by name.

    Raises:
        ArtifactError: a key is unknown or missing, or a value has another type or is out of bounds.
    """
    if not isinstance(told, dict):
        refuse(told, where, "an object")
    parts = {key_of(part): part for part in fields(cast(Any, kind)) if part.name not in given}
    required = {key for key, part in parts.items() if part.default is part.default_factory is MISSING}
    if unknown := sorted(set(told) - set(parts)):
        raise ArtifactError("unknown keys", where=where, got=", ".join(map(ascii, unknown[:5])), fix=FIX)
    require_keys(told, required, where)
    types = hints(cast(Any, kind))
    names = {key: part.name for key, part in parts.items()}
    found = {names[key]: decode_value(types[names[key]], value, f"{where}.{key}") for key, value in told.items()}
    return kind(**found, **given)


def decode_value(kind: Any, told: Any, where: str) -> Any:
    """A value of an annotated type.

    Raises:
        ArtifactError: it has another type, or is out of bounds.
    """
    if kind is Any:
        return told
    origin, inner = get_origin(kind), get_args(kind)
    if origin is Annotated:
        value, bounds = decode_value(inner[0], told, where), inner[1]
        if not bounds.low <= value <= bounds.high:
            refuse(told, where, f"from {bounds.low:.15g} to {bounds.high:.15g}")
        return value
    if origin in (Union, UnionType):
        return None if told is None else decode_value(next(p for p in inner if p is not NoneType), told, where)
    if origin is tuple:
        count = None if inner[-1] is Ellipsis else len(inner)
        if not isinstance(told, list) or count not in (None, len(told)):
            refuse(told, where, "a list" if count is None else f"a list of {count}")
        return tuple(decode_value(inner[0], part, f"{where}[{index}]") for index, part in enumerate(told))
    if origin is Mapping:
        if not isinstance(told, dict):
            refuse(told, where, "an object")
        return {key: decode_value(inner[1], part, f"{where}.{key}") for key, part in told.items()}
    if is_dataclass(kind):
        return decode(cast(type[Any], kind), told, where)
    if type(told) is not kind and (kind is not float or type(told) is not int):
        refuse(told, where, EXPECTED[kind])
    return kind(told)


def require_keys(told: Mapping[str, Any], keys: Collection[str], where: str) -> None:
    """Check that an object has these keys.

    Raises:
        ArtifactError: some are missing.
    """
    if missing := sorted(set(keys) - set(told)):
        raise ArtifactError("missing keys", where=where, expected=", ".join(map(ascii, missing[:5])), fix=FIX)


@cache
def hints(kind: Any) -> dict[str, Any]:
    """The annotated types of the fields."""
    return get_type_hints(kind, include_extras=True)


def refuse(told: Any, where: str, expected: str) -> NoReturn:
    """Raise that a value cannot be."""
    raise ArtifactError("value not allowed", where=where, got=ascii(told)[:80], expected=expected, fix=FIX)
