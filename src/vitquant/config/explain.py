"""Validation errors of pydantic as errors of vitquant: problem, got, expected, fix."""

from __future__ import annotations

import re
from collections.abc import Mapping
from difflib import get_close_matches
from typing import Any

from pydantic import ValidationError

from vitquant.errors import ConfigError

Schema = Mapping[str, Any]


class FieldError(ConfigError):
    """One setting is wrong. ``key`` is its dotted name, such as ``bit_type.bits``."""

    def __init__(
        self, key: str, problem: str, *, got: object = None, expected: str | None = None, fix: str | None = None
    ) -> None:
        super().__init__(problem, where=f"QuantConfig {brief(key)}", got=got, expected=expected, fix=fix)
        self.key = key

    def at(self, where: str) -> ConfigError:
        """The same error with the place in a file where the setting was written."""
        return ConfigError(self.problem, where=where, got=self.got, expected=self.expected, fix=self.fix)


def explain(error: ValidationError, schema: Schema, prefix: str) -> FieldError:
    """The first of pydantic's errors as a :class:`FieldError`; ``schema`` is the JSON Schema of the model."""
    first = error.errors(include_url=False)[0]
    name = str(first["loc"][0]) if first["loc"] else ""
    fields: Schema = schema["properties"]
    if name in fields:
        return _wrong_value(f"{prefix}{name}", first["input"], fields[name])
    if name:
        return unknown_field(f"{prefix}{name}", name, tuple(fields))
    return FieldError(
        prefix.rstrip("."),
        "not a mapping of settings",
        got=show(first["input"]),
        expected=f"the keys {', '.join(fields)}",
    )


def unknown_field(key: str, name: str, known: tuple[str, ...]) -> FieldError:
    """The error for an unknown setting, with the most similar known one."""
    near = get_close_matches(name, known, n=1, cutoff=0.5)
    if name in ("bits", "signed") and "bit_type" in known:
        hint, fix = "", f"write it inside bit_type, as in bit_type: {{{name}: ...}}"
    else:
        hint, fix = (f", did you mean `{near[0]}`", f"write {near[0]}") if near else ("", "remove the key")
    return FieldError(key, f"unknown key `{brief(name)}`{hint}", expected=f"one of {', '.join(known)}", fix=fix)


def _wrong_value(key: str, value: object, field: Schema) -> FieldError:
    return FieldError(key, "value not allowed", got=show(value), expected=allowed(field), fix=_fix(value, field))


def allowed(field: Schema) -> str:
    """The allowed values of a field, in words, from its JSON Schema."""
    if "enum" in field:
        return f"one of {', '.join(field['enum'])}"
    if field["type"] == "boolean":
        return "true or false"
    if field["type"] == "array":
        return f"a list, each item {allowed(field['items'])}"
    if field["type"] == "number":
        if "minimum" in field:
            return f"a number from {field['minimum']:g} to {field['maximum']:g}"
        return f"a number above {field['exclusiveMinimum']:g} and at most {field['maximum']:g}"
    what = "an even integer" if "multipleOf" in field else "an integer"
    return f"{what} from {field['minimum']} to {field['maximum']}"


def _fix(value: object, field: Schema) -> str | None:
    if isinstance(value, str) and "enum" in field:
        near = get_close_matches(value.lower(), [name.lower() for name in field["enum"]], n=1, cutoff=0.4)
        return f"write {next(name for name in field['enum'] if name.lower() == near[0])}" if near else None
    if isinstance(value, float) and field["type"] == "integer":
        return f"write {value:.0f}" if value.is_integer() and abs(value) < 1e9 else None
    if isinstance(value, str) and field["type"] in ("number", "integer"):
        number = yaml_number(value)
        if number and field["type"] == "integer" and not re.fullmatch("[-+]?[0-9]+", number):
            return _fix(float(number), field)
        return f"write {number}, which YAML reads as a number" if number else None
    if isinstance(value, str) and field["type"] == "boolean" and value.lower() in ("true", "false"):
        return f"write {value.lower()} without quotes"
    return None


def yaml_number(text: str) -> str | None:
    """A number in a form that YAML 1.1 reads as a number: ``1e-5`` has no dot and is read as text.

    >>> yaml_number("1e-5")
    '1.0e-5'
    """
    text = text.strip().replace("_", "")
    if len(text) > 40:
        return None
    if re.fullmatch(r"0[oO][0-7]+", text):
        return str(int(text[2:], 8))
    match = re.fullmatch(r"([-+]?)0*([0-9]+)(\.[0-9]*)?(?:[eE]([-+]?)([0-9]+))?", text)
    if not match:
        return None
    minus, whole, fraction, sign, exponent = match.groups()
    whole = minus + whole
    if exponent is None:
        return f"{whole}{fraction or ''}"
    return f"{whole}{fraction or '.0'}e{sign or '+'}{exponent}"


def show(value: object) -> str:
    """A value in YAML terms, cut to a readable length."""
    if value is None:
        return "nothing (null)"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, Mapping):
        return "a mapping"
    return brief(_repr(value))


def _repr(value: object) -> str:
    """``repr`` on one line. Huge integers and objects with a broken ``__repr__`` are described instead."""
    try:
        return " ".join(repr(value).split())
    except Exception:
        if isinstance(value, int):
            return f"an integer of {value.bit_length():,} bits"
        return f"an object of type {type(value).__name__}"


def brief(text: str, length: int = 60) -> str:
    """Text cut to a readable length."""
    return text if len(text) <= length else f"{text[: length - 3]}..."
