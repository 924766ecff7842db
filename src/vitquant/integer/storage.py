"""An integer program as two files: ``program.json`` and ``program.safetensors``.

The format is told in ``docs/program-format.md``. Nothing in either file is executed, everything is checked before it is
used, and a digest in the first file covers both: a program is read as it was written, or refused.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load as load_tensors
from safetensors.numpy import save as save_tensors

from vitquant.arguments import require_kind, require_path
from vitquant.errors import DeployabilityError, ProgramError
from vitquant.files import make_folder, write_together, writing
from vitquant.integer.ops import KINDS, Operation
from vitquant.integer.program import IntegerProgram
from vitquant.integer.validate import check_name, refuse, validate
from vitquant.integer.values import Array, Value

FORMAT, FORMAT_VERSION = "vitquant-program", 1
MANIFEST, TENSORS = "program.json", "program.safetensors"

MAX_MANIFEST_BYTES = 2**22
"""Some hundred bytes an operation: thousands of blocks."""

MAX_DEPTH = 8
"""Of brackets in brackets in the manifest: it needs six."""

MAX_DIGITS = 20
"""Of a whole number in the manifest."""

NO_DIGEST = "0" * 64
"""Stands in the manifest, where its digest will be, while this is computed."""


def save_program(program: IntegerProgram, folder: str | Path) -> None:
    """Write a program into ``folder``, whose other files stay as they are; a program that was there stays until both
    new files are complete.
    """
    folder = require_path(folder, "folder")
    manifest, tensors = encode_program(require_kind(program, IntegerProgram, "program"))
    make_folder(folder)
    with writing(folder):
        write_together({folder / TENSORS: tensors, folder / MANIFEST: manifest})


def remove_program(folder: str | Path) -> None:
    """Take away the program in a folder, if there is one."""
    for name in (MANIFEST, TENSORS):
        (Path(folder) / name).unlink(missing_ok=True)


def load_program(path: str | Path) -> IntegerProgram:
    """Read a program: a folder, or the path of its ``program.json``.

    Raises:
        ProgramError: a file is missing, damaged, of another format or of a newer version, or the program in it is not
            well formed.
    """
    path = require_path(path, "program")
    path = path / MANIFEST if path.is_dir() else path
    manifest = read_bytes(path, MAX_MANIFEST_BYTES)
    size = whole(expect(read_manifest(manifest, str(path)), "tensors", dict, str(path)), "bytes", str(path))
    return decode_program(manifest, read_bytes(path.parent / TENSORS, size), str(path))


def encode_program(program: IntegerProgram) -> tuple[bytes, bytes]:
    """The bytes of both files, the manifest first."""
    arrays = dict(program.tensors())
    for value in program.values().values():
        arrays[f"{value.name}/scale"], arrays[f"{value.name}/zero_point"] = value.scale, value.zero_point
    tensors = save_tensors({name: np.ascontiguousarray(array) for name, array in arrays.items()})
    body = {
        "image": value_to_json(program.image),
        "operations": [operation_to_json(op) for op in program.operations],
        "output": program.output,
        "metadata": dict(program.metadata),
        "tensors": {"file": TENSORS, "sha256": hashlib.sha256(tensors).hexdigest(), "bytes": len(tensors)},
    }
    manifest = {"format": FORMAT, "format_version": FORMAT_VERSION, "sha256": NO_DIGEST, "program": body}
    text = json.dumps(manifest, indent=1, allow_nan=False).encode()
    return text.replace(NO_DIGEST.encode(), digest(text, NO_DIGEST).encode(), 1), tensors


def decode_program(manifest: bytes, tensors: bytes, where: str = MANIFEST) -> IntegerProgram:
    """The inverse.

    Raises:
        ProgramError: as :func:`load_program`.
    """
    body = read_manifest(manifest, where)
    told = expect(body, "tensors", dict, where)
    expected = {"file": TENSORS, "sha256": hashlib.sha256(tensors).hexdigest(), "bytes": len(tensors)}
    if told != expected:
        refuse(where, "the tensor file is not the one that the program was written with", got=f"{len(tensors)} bytes")
    try:
        arrays = load_tensors(tensors)
    except (SafetensorError, ValueError, KeyError, TypeError, OverflowError, MemoryError) as error:
        refuse(where, f"the tensor file is damaged: {str(error)[:200]}")
    try:
        return decode_body(body, arrays, where)
    except (ProgramError, DeployabilityError) as error:
        raise ProgramError(f"not a program that can be run: {error}", where=where) from error


def decode_body(body: Mapping[str, Any], arrays: dict[str, Array], where: str) -> IntegerProgram:
    """The program that a checked manifest and its tensors tell of; every tensor must be used, once."""
    require_keys(body, {"image", "operations", "output", "metadata", "tensors"}, where)
    left = dict(arrays)
    image = value_from_json(expect(body, "image", dict, where), left)
    operations = [operation_from_json(told, left) for told in expect(body, "operations", list, where)]
    metadata = expect(body, "metadata", dict, where)
    program = IntegerProgram(image, tuple(operations), text(body, "output", where), metadata)
    if left:
        refuse(where, "the tensor file holds what no operation uses", got=ascii(sorted(left)[:5]))
    validate(program)
    return program


def read_manifest(data: bytes, where: str) -> dict[str, Any]:
    """The body of the manifest, after format, version and digest have been checked."""
    manifest = read_json(data, where)
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        refuse(where, "not an integer program", expected=f'"format": "{FORMAT}"')
    version = manifest.get("format_version")
    if type(version) is not int or version != FORMAT_VERSION:  # True and 1.0 equal 1
        raise ProgramError(
            "the program was written in another version of the format",
            where=where,
            got=ascii(version)[:40],
            expected=f"version {FORMAT_VERSION}",
            fix="install the vitquant that wrote it, or compile it again with this one",
        )
    require_keys(manifest, {"format", "format_version", "sha256", "program"}, where)
    given: str = expect(manifest, "sha256", str, where)
    if len(given) != len(NO_DIGEST) or given != digest(data, given):
        refuse(where, "the program was changed after it was written", expected="another sha256")
    body: dict[str, Any] = expect(manifest, "program", dict, where)
    return body


def digest(manifest: bytes, given: str) -> str:
    """SHA-256 of the manifest's bytes, in which 64 zeros stand for the first occurrence of the digest given."""
    return hashlib.sha256(manifest.replace(given.encode(), NO_DIGEST.encode(), 1)).hexdigest()


def read_json(data: bytes, where: str) -> Any:
    """JSON that anybody reads alike: no key twice, no number without end, nothing deeply nested."""

    def whole_number(digits: str) -> int:
        return int(digits) if len(digits) <= MAX_DIGITS else refuse(where, "a number has too many digits")

    def fraction(digits: str) -> float:
        number = float(digits)
        return number if math.isfinite(number) else refuse(where, "a number is too large")

    def no_number(name: str) -> float:
        refuse(where, f"{name} is no number")

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        return found if len(found) == len(pairs) else refuse(where, "a key stands twice in one object")

    hooks: dict[str, Any] = {"parse_int": whole_number, "parse_float": fraction, "parse_constant": no_number}
    try:
        found = json.loads(data.decode(), object_pairs_hook=once, **hooks)
        check_json(found, MAX_DEPTH, where)
    except (ValueError, RecursionError) as error:
        refuse(where, f"the manifest is not JSON: {str(error)[:200]}")
    return found


def check_json(found: Any, depth: int, where: str) -> None:
    """Refuse brackets nested too deeply, and strings that are no text.

    Raises:
        UnicodeEncodeError: half of a surrogate pair.
    """
    if isinstance(found, str):
        found.encode()
    if isinstance(found, dict | list):
        if not depth:
            refuse(where, "the manifest is nested too deeply", expected=f"at most {MAX_DEPTH} levels")
        for part in found:
            check_json(part, depth - 1, where)
        for part in found.values() if isinstance(found, dict) else ():
            check_json(part, depth - 1, where)


def value_to_json(value: Value) -> dict[str, Any]:
    """A value without its tensors."""
    return {"name": value.name, "shape": list(value.shape), "low": value.low, "high": value.high}


def value_from_json(told: Mapping[str, Any], arrays: dict[str, Array]) -> Value:
    """The inverse; takes the value's scale and zero point out of ``arrays``."""
    require_keys(told, {"name", "shape", "low", "high"}, "value")
    name = text(told, "name", "value")
    shape = expect(told, "shape", list, name)
    if not 2 <= len(shape) <= 3:
        refuse(name, "not a shape", got=f"{len(shape)} sizes")
    sizes = tuple(whole({"shape": n}, "shape", name) for n in shape)
    low, high = (whole(told, key, name) for key in ("low", "high"))
    return Value(name, sizes, low, high, take(arrays, f"{name}/scale"), take(arrays, f"{name}/zero_point"))


def operation_to_json(op: Operation) -> dict[str, Any]:
    """An operation without its tensors."""
    plain = {f.name: getattr(op, f.name) for f in fields(op) if f.type in READERS}
    return {"op": op.kind, "out": value_to_json(op.out), **plain}


def operation_from_json(told: Any, arrays: dict[str, Array]) -> Operation:
    """The inverse; takes the operation's tensors out of ``arrays``."""
    if not isinstance(told, dict) or not isinstance(told.get("op"), str) or told["op"] not in KINDS:
        refuse("operation", "unknown kind", got=ascii(told.get("op") if isinstance(told, dict) else told))
    kind = KINDS[told["op"]]
    plain = {f.name: READERS[str(f.type)] for f in fields(kind) if f.type in READERS}
    require_keys(told, {"op", "out", *plain}, told["op"])
    out = value_from_json(expect(told, "out", dict, told["op"]), arrays)
    given = {name: read(told, name, out.name) for name, read in plain.items()}
    tensors = {f.name: take(arrays, f"{out.name}/{f.name}") for f in fields(kind) if f.type == "Array"}
    return kind(out=out, **given, **tensors)


def take(arrays: dict[str, Array], name: str) -> Array:
    """Remove a tensor and give it back."""
    if name not in arrays:
        refuse(name, "the tensor file does not hold it")
    return arrays.pop(name)


def require_keys(told: Mapping[str, Any], keys: set[str], where: str) -> None:
    """Exactly these."""
    if set(told) != keys:
        refuse(where, "unknown or missing keys", got=ascii(sorted(set(told) ^ keys)[:5]))


def expect(told: Mapping[str, Any], key: str, kind: type, where: str) -> Any:
    """The value of a key, of the type that it must have."""
    value = told.get(key)
    if not isinstance(value, kind):
        refuse(where, f"`{key}` is missing or of the wrong type", expected=kind.__name__)
    return value


def text(told: Mapping[str, Any], key: str, where: str) -> str:
    """The name of a value."""
    name: str = expect(told, key, str, where)
    check_name(name)
    return name


def whole(told: Mapping[str, Any], key: str, where: str) -> int:
    """A whole number."""
    value = told.get(key)
    if not isinstance(value, int) or isinstance(value, bool):
        refuse(where, f"`{key}` is missing or no whole number")
    return value


def flag(told: Mapping[str, Any], key: str, where: str) -> bool:
    """True or false."""
    value: bool = expect(told, key, bool, where)
    return value


READERS = {"str": text, "int": whole, "bool": flag}
"""Type of an operation's field -> what reads it."""


def read_bytes(path: Path, limit: int) -> bytes:
    """A whole file, if it is a file and not larger than ``limit``."""
    try:
        if path.exists() and not path.is_file():
            refuse(str(path), "not a file")
        size = path.stat().st_size
        if size > limit:
            refuse(str(path), "the file is too large", got=f"{size} bytes", expected=f"at most {limit}")
        return path.read_bytes()
    except OSError as error:
        raise ProgramError(f"cannot read the program: {error.strerror}", where=str(path)) from error
