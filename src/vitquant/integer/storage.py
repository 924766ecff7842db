"""An integer program as two files: ``program.json`` and ``program.safetensors``.

The format is told in ``docs/program-format.md``. Nothing in either file is executed, everything is checked before it is
used, and a digest in the first file covers both: a program is read as it was written, or refused.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load as load_tensors
from safetensors.numpy import save as save_tensors

from vitquant.errors import DeployabilityError, ProgramError
from vitquant.files import write_together
from vitquant.integer.ops import KINDS, Operation
from vitquant.integer.program import IntegerProgram
from vitquant.integer.validate import validate
from vitquant.integer.values import Array, Value

FORMAT, FORMAT_VERSION = "vitquant-program", 1
MANIFEST, TENSORS = "program.json", "program.safetensors"

MAX_MANIFEST_BYTES = 2**26
MAX_DEPTH = 8
"""Of brackets in brackets in the manifest: it needs four."""

INTEGER_LIMIT = 2**62


def save_program(program: IntegerProgram, folder: str | Path) -> None:
    """Write a program into ``folder``, whose other files stay as they are; a program that was there stays until both
    new files are complete.
    """
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
    manifest = {"format": FORMAT, "format_version": FORMAT_VERSION, "sha256": digest(body), "program": body}
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    write_together({folder / TENSORS: tensors, folder / MANIFEST: json.dumps(manifest, indent=1)})


def load_program(path: str | Path) -> IntegerProgram:
    """Read a program: a folder, or the path of its ``program.json``.

    Raises:
        ProgramError: a file is missing, damaged, of another format or of a newer version, or the program in it is not
            well formed.
    """
    path = Path(path)
    path = path / MANIFEST if path.is_dir() else path
    return decode_program(read_bytes(path, MAX_MANIFEST_BYTES), lambda: read_bytes(path.parent / TENSORS), str(path))


def decode_program(manifest: bytes, tensors: Any, where: str) -> IntegerProgram:
    """A program from the bytes of its two files; ``tensors`` is called for those of the second."""
    body = read_manifest(manifest, where)
    told = expect(body, "tensors", dict, where)
    blob = tensors()
    if told.get("file") != TENSORS or told.get("bytes") != len(blob):
        refuse(where, "the tensor file is not the one the program was written with", got=f"{len(blob)} bytes")
    if told.get("sha256") != hashlib.sha256(blob).hexdigest():
        refuse(where, "the tensor file is not the one the program was written with", expected="another sha256")
    try:
        arrays = load_tensors(blob)
    except (SafetensorError, ValueError, KeyError, TypeError, OverflowError, MemoryError) as error:
        refuse(where, f"the tensor file is damaged: {error}")
    try:
        return decode_body(body, arrays, where)
    except (ProgramError, DeployabilityError) as error:
        raise ProgramError(f"not a program that can be run: {error}", where=where) from error


def decode_body(body: Mapping[str, Any], arrays: dict[str, Array], where: str) -> IntegerProgram:
    """The program that a checked manifest and its tensors tell of; every tensor must be used, once."""
    known = {"image", "operations", "output", "metadata", "tensors"}
    if set(body) != known:
        refuse(where, "unknown or missing keys", got=sorted(set(body) ^ known)[:5])
    left = dict(arrays)
    image = value_from_json(expect(body, "image", dict, where), left)
    operations = [operation_from_json(told, left) for told in expect(body, "operations", list, where)]
    metadata = expect(body, "metadata", dict, where)
    program = IntegerProgram(image, tuple(operations), expect(body, "output", str, where), metadata)
    if left:
        refuse(where, "the tensor file holds what no operation uses", got=sorted(left)[:5])
    validate(program)
    return program


def read_manifest(text: bytes, where: str) -> dict[str, Any]:
    """The body of the manifest, after format, version and digest have been checked."""
    try:
        if max_depth(text) > MAX_DEPTH:
            refuse(where, "the manifest is nested too deeply", expected=f"at most {MAX_DEPTH} levels")
        manifest = json.loads(text.decode("utf-8"), parse_constant=lambda name: refuse(where, f"{name} is no number"))
    except ValueError as error:
        refuse(where, f"the manifest is not JSON: {error}")
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        refuse(where, "not an integer program", expected=f'"format": "{FORMAT}"')
    if manifest.get("format_version") != FORMAT_VERSION:
        raise ProgramError(
            "the program was written in another version of the format",
            where=where,
            got=manifest.get("format_version"),
            expected=f"version {FORMAT_VERSION}",
            fix="install the vitquant that wrote it, or compile it again with this one",
        )
    if set(manifest) != {"format", "format_version", "sha256", "program"}:
        refuse(where, "unknown or missing keys", got=sorted(manifest)[:5])
    body: dict[str, Any] = expect(manifest, "program", dict, where)
    if manifest["sha256"] != digest(body):
        refuse(where, "the program was changed after it was written", expected="another sha256")
    return body


def digest(body: Mapping[str, Any]) -> str:
    """SHA-256 of the body as JSON with sorted keys, without spaces, in ASCII."""
    text = json.dumps(body, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(text.encode("ascii")).hexdigest()


def max_depth(text: bytes) -> int:
    """How deeply brackets are nested, those in strings included: an upper bound that costs no recursion."""
    marks = np.frombuffer(text, dtype=np.uint8)
    opened, closed = (np.isin(marks, list(pair)) for pair in (b"[{", b"]}"))
    return int(np.cumsum(opened.astype(np.int64) - closed).max(initial=0))


def value_to_json(value: Value) -> dict[str, Any]:
    """A value without its tensors."""
    return {"name": value.name, "shape": list(value.shape), "low": value.low, "high": value.high}


def value_from_json(told: Mapping[str, Any], arrays: dict[str, Array]) -> Value:
    """The inverse; takes the value's scale and zero point out of ``arrays``."""
    if set(told) != {"name", "shape", "low", "high"}:
        refuse("value", "unknown or missing keys", got=sorted(told)[:5])
    name = expect(told, "name", str, "value")
    shape = expect(told, "shape", list, name)
    if not 2 <= len(shape) <= 3:
        refuse(name, "not a shape", got=len(shape))
    sizes = tuple(whole({"shape": n}, "shape", name) for n in shape)
    low, high = (whole(told, key, name) for key in ("low", "high"))
    return Value(name, sizes, low, high, take(arrays, f"{name}/scale"), take(arrays, f"{name}/zero_point"))


def operation_to_json(op: Operation) -> dict[str, Any]:
    """An operation without its tensors."""
    plain = {f.name: getattr(op, f.name) for f in fields(op) if f.type in READERS}
    return {"op": op.kind, "out": value_to_json(op.out), **plain}


def operation_from_json(told: Any, arrays: dict[str, Array]) -> Operation:
    """The inverse; takes the operation's tensors out of ``arrays``."""
    if not isinstance(told, dict) or told.get("op") not in KINDS:
        refuse("operation", "unknown kind", got=repr(told.get("op") if isinstance(told, dict) else told)[:60])
    kind = KINDS[told["op"]]
    out = value_from_json(expect(told, "out", dict, kind.kind), arrays)
    given: dict[str, Any] = {"out": out}
    for f in fields(kind):
        if f.type in READERS:
            given[f.name] = READERS[str(f.type)](told, f.name, out.name)
        elif f.type == "Array":
            given[f.name] = take(arrays, f"{out.name}/{f.name}")
    stray = set(told) - {"op", *(name for name, value in given.items() if not isinstance(value, np.ndarray))}
    if stray:
        refuse(out.name, "unknown keys", got=sorted(stray)[:5])
    return kind(**given)


def take(arrays: dict[str, Array], name: str) -> Array:
    """Remove a tensor and give it back."""
    if name not in arrays:
        refuse(name, "the tensor file does not hold it")
    return arrays.pop(name)


def expect(told: Mapping[str, Any], key: str, kind: type, where: str) -> Any:
    """The value of a key, of the type that it must have."""
    value = told.get(key)
    if not isinstance(value, kind):
        refuse(where, f"`{key}` is missing or of the wrong type", expected=kind.__name__)
    return value


def text(told: Mapping[str, Any], key: str, where: str) -> Any:
    """A string."""
    return expect(told, key, str, where)


def whole(told: Mapping[str, Any], key: str, where: str) -> int:
    """A whole number of at most 62 bits."""
    value = told.get(key)
    if not isinstance(value, int) or isinstance(value, bool) or abs(value) > INTEGER_LIMIT:
        refuse(where, f"`{key}` is missing or no whole number", expected="an integer below 2^62")
    return value


def flag(told: Mapping[str, Any], key: str, where: str) -> Any:
    """True or false."""
    return expect(told, key, bool, where)


READERS = {"str": text, "int": whole, "bool": flag}
"""Type of an operation's field -> what reads it."""


def read_bytes(path: Path, limit: int | None = None) -> bytes:
    """A whole file, if it is not larger than ``limit``."""
    try:
        if limit is not None and path.stat().st_size > limit:
            refuse(str(path), "the file is too large", expected=f"at most {limit} bytes")
        return path.read_bytes()
    except OSError as error:
        raise ProgramError(f"cannot read the program: {error.strerror}", where=str(path)) from error


def refuse(where: str, problem: str, *, got: object | None = None, expected: str | None = None) -> NoReturn:
    """Raise what is wrong with the files."""
    raise ProgramError(problem, where=where, got=got, expected=expected)
