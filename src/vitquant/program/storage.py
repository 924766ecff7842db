"""An integer program as two files: ``program.json`` and ``program.safetensors``.

The format is told in ``docs/program-format.md``. Nothing in either file is executed, everything is checked before it is
used, and a digest in the first file covers both: a program is read as it was written, or refused.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load as load_tensors
from safetensors.numpy import save as save_tensors

from vitquant.arguments import require_kind, require_path
from vitquant.errors import DeployabilityError, ProgramError
from vitquant.files import write_folder
from vitquant.numerics.packing import Packing, pack_rows, unpack_rows
from vitquant.program.checks import refuse
from vitquant.program.ops import KINDS, Operation, no_table
from vitquant.program.ops.operation import Flag, Key, Operand
from vitquant.program.program import IntegerProgram, Output
from vitquant.program.validate import MAX_ELEMENTS, check_name, validate
from vitquant.program.values import Array, Value
from vitquant.runs import PROGRAM, require_one_run
from vitquant.strict_files import MAX_MANIFEST_BYTES, parse_json, read_file

FORMAT = "vitquant-program"
READABLE = (1, 2, 3)
"""Versions of the format that :func:`decode_program` reads."""

PLAIN_VERSION, PACKED_VERSION = 2, 3
"""What is written: the oldest of these that has what the program needs, so that older readers can read it."""

PACKED_BITS = range(2, 8)
"""Widths in which tensors are packed."""

PROGRAM_MANIFEST, PROGRAM_TENSORS = PROGRAM, "program.safetensors"
FILES = (PROGRAM_TENSORS, PROGRAM_MANIFEST)

MAX_HEADER_BYTES = 2**23
"""Of the tensor file: some hundred bytes a tensor."""

NO_DIGEST = "0" * 64
"""Stands in the manifest, where its digest will be, while this is computed."""


def save_program(program: IntegerProgram, folder: str | Path) -> None:
    """Write a program into ``folder``, whose other files stay as they are; a program that was there stays until both
    new files are complete.

    Raises:
        OutputError: the files cannot be written.
    """
    write_folder(require_path(folder, "folder"), program_files(require_kind(program, IntegerProgram, "program")))


def program_files(program: IntegerProgram) -> dict[str, bytes | str]:
    """The files of a saved program by name, the manifest last."""
    manifest, tensors = encode_program(program)
    return {PROGRAM_TENSORS: tensors, PROGRAM_MANIFEST: manifest}


def load_program(path: str | Path) -> IntegerProgram:
    """Read a program: a folder, or the path of its ``program.json``.

    Raises:
        ProgramError: a file is missing, damaged, of another format or of a newer version, or the program in it is not
            well formed.
        ArtifactError: the folder's files are of different runs.
    """
    path = require_path(path, "program")
    path = path / PROGRAM_MANIFEST if path.is_dir() else path
    manifest = read_bytes(path, MAX_MANIFEST_BYTES)
    require_one_run(path.parent)
    size = whole(expect(read_manifest(manifest, str(path))[1], "tensors", dict, str(path)), "bytes", str(path))
    return decode_program(manifest, read_bytes(path.parent / PROGRAM_TENSORS, size), str(path))


def encode_program(program: IntegerProgram) -> tuple[bytes, bytes]:
    """The bytes of both files, the manifest first.

    Raises:
        ProgramError: a constant is not what ``program.packed`` says of it.
    """
    arrays = dict(program.tensors())
    pack_tensors(program.packed, arrays)
    for value in program.values().values():
        arrays[f"{value.name}/scale"], arrays[f"{value.name}/zero_point"] = value.scale, value.zero_point
    tensors = save_tensors({name: np.ascontiguousarray(array) for name, array in arrays.items()})
    body: dict[str, Any] = {
        "image": value_to_json(program.image),
        "operations": [operation_to_json(op) for op in program.operations],
        "outputs": [asdict(output) for output in program.outputs],
        "metadata": dict(program.metadata),
        "tensors": describe(tensors),
    }
    version = PLAIN_VERSION
    if program.packed:
        version = PACKED_VERSION
        body["tensors"] |= {"packed": {name: asdict(packing) for name, packing in program.packed.items()}}
    manifest = {"format": FORMAT, "format_version": version, "sha256": NO_DIGEST, "program": body}
    text = json.dumps(manifest, indent=1, allow_nan=False).encode()
    return text.replace(NO_DIGEST.encode(), digest(text, NO_DIGEST).encode(), 1), tensors


def decode_program(manifest: bytes, tensors: bytes, where: str = PROGRAM_MANIFEST) -> IntegerProgram:
    """The inverse.

    Raises:
        ProgramError: as :func:`load_program`.
    """
    version, body = read_manifest(manifest, where)
    told = dict(expect(body, "tensors", dict, where))
    packed = expect({"packed": {}} if version < PACKED_VERSION else told, "packed", dict, where)
    if version >= PACKED_VERSION:
        del told["packed"]
    if told != describe(tensors):
        refuse(where, "the tensor file is not the one that the program was written with", got=f"{len(tensors)} bytes")
    check_header(tensors, where)
    try:
        arrays = load_tensors(tensors)
    except (SafetensorError, ValueError, KeyError, TypeError, OverflowError, MemoryError) as error:
        refuse(where, f"the tensor file is damaged: {str(error)[:200]}")
    try:
        packings = {name: packing_from_json(given, name) for name, given in packed.items()}
        unpack_tensors(packings, arrays)
        return replace(decode_body(body, arrays, version, where), packed=packings)
    except (ProgramError, DeployabilityError) as error:
        raise ProgramError(f"not a program that can be run: {error}", where=where) from error


def decode_body(body: dict[str, Any], arrays: dict[str, Array], version: int, where: str) -> IntegerProgram:
    """The program that a checked manifest and its tensors tell of; every tensor must be used, once."""
    if version == 1:
        require_keys(body, {"image", "operations", "output", "metadata", "tensors"}, where)
        body, arrays = from_version_1(body, arrays)
    require_keys(body, {"image", "operations", "outputs", "metadata", "tensors"}, where)
    left = dict(arrays)
    image = value_from_json(expect(body, "image", dict, where), left)
    operations = [operation_from_json(told, left) for told in expect(body, "operations", list, where)]
    outputs = [output_from_json(told, where) for told in expect(body, "outputs", list, where)]
    metadata = expect(body, "metadata", dict, where)
    program = IntegerProgram(image, tuple(operations), tuple(outputs), metadata)
    if left:
        refuse(where, "the tensor file holds what no operation uses", got=ascii(sorted(left)[:5]))
    validate(program)
    return program


def describe(tensors: bytes) -> dict[str, Any]:
    """What a manifest says of the tensor file."""
    return {"file": PROGRAM_TENSORS, "sha256": hashlib.sha256(tensors).hexdigest(), "bytes": len(tensors)}


def pack_tensors(packed: Mapping[str, Packing], arrays: dict[str, Array]) -> None:
    """Put packed rows in the place of tensors ``[rows, columns]``, and their multipliers beside them."""
    for name, packing in packed.items():
        try:
            arrays[name], groups = pack_rows(take(arrays, name), packing)
        except ValueError as error:
            refuse(name, f"the tensor cannot be packed: {error}")
        if groups is not None:
            arrays[multipliers_of(name)] = groups


def unpack_tensors(packed: Mapping[str, Packing], arrays: dict[str, Array]) -> None:
    """The inverse."""
    for name, packing in packed.items():
        rows, groups = take(arrays, name), take(arrays, multipliers_of(name)) if packing.group else None
        if len(rows.shape) != 2 or len(rows) * packing.columns > MAX_ELEMENTS:
            refuse(name, "not packed rows", got=list(rows.shape), expected=f"at most {MAX_ELEMENTS} elements")
        try:
            arrays[name] = unpack_rows(rows, groups, packing)
        except ValueError as error:
            refuse(name, f"packed rows are damaged: {error}")


def multipliers_of(name: str) -> str:
    """The name of the tensor that holds the multipliers of a packed tensor's groups."""
    return f"{name}/multipliers"


def packing_from_json(told: Any, name: str) -> Packing:
    """How a tensor is packed."""
    if not isinstance(told, dict):
        refuse(name, "a packed tensor without description", got=ascii(told)[:100])
    require_keys(told, {"bits", "columns", "group"}, name)
    packing = Packing(*(whole(told, key, name) for key in ("bits", "columns", "group")))
    possible = packing.bits in PACKED_BITS and 1 <= packing.columns <= MAX_ELEMENTS
    if not possible or not 0 <= packing.group <= packing.columns:
        widths = f"bits {PACKED_BITS[0]} to {PACKED_BITS[-1]}"
        refuse(name, "a tensor cannot be packed like this", got=ascii(told), expected=f"{widths}, group 0 to columns")
    return packing


def check_header(tensors: bytes, where: str) -> None:
    """Refuse a header of the tensor file that some readers would take and others not: as strict as the manifest."""
    size = int.from_bytes(tensors[:8], "little")
    if size > min(MAX_HEADER_BYTES, len(tensors) - 8) or tensors[8:9] != b"{":
        refuse(where, "the tensor file is damaged: no header, or one longer than the file or than allowed")
    for name, told in read_json(tensors[8 : 8 + size], where, "the tensor file's header").items():
        if not isinstance(told, dict):
            refuse(where, "the tensor file is damaged: a tensor without description", got=ascii(name))
        if name != "__metadata__":
            require_keys(told, {"dtype", "shape", "data_offsets"}, where)


def read_manifest(data: bytes, where: str) -> tuple[int, dict[str, Any]]:
    """Version and body of the manifest, after format and digest have been checked."""
    manifest = read_json(data, where)
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        refuse(where, "not an integer program", expected=f'"format": "{FORMAT}"')
    version = manifest.get("format_version")
    if type(version) is not int or version not in READABLE:  # True and 1.0 equal 1
        raise ProgramError(
            "the program was written in another version of the format",
            where=where,
            got=ascii(version)[:40],
            expected=f"version {READABLE[0]} to {READABLE[-1]}",
            fix="install the vitquant that wrote it, or compile it again with this one",
        )
    require_keys(manifest, {"format", "format_version", "sha256", "program"}, where)
    given: str = expect(manifest, "sha256", str, where)
    if len(given) != len(NO_DIGEST) or given != digest(data, given):
        refuse(where, "the program was changed after it was written", expected="another sha256")
    return version, expect(manifest, "program", dict, where)


def digest(manifest: bytes, given: str) -> str:
    """SHA-256 of the manifest's bytes, in which 64 zeros stand for the first occurrence of the digest given."""
    return hashlib.sha256(manifest.replace(given.encode(), NO_DIGEST.encode(), 1)).hexdigest()


def read_json(data: bytes, where: str, part: str = "the manifest") -> Any:
    """JSON that anybody reads alike: no key twice, no number without end, nothing deeply nested."""
    return parse_json(data, where, part, ProgramError)


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
    plain = {name: getattr(op, name) for name, what in op.declarations.items() if type(what) in READERS}
    return {"op": op.kind, "out": value_to_json(op.out), **plain}


def operation_from_json(told: Any, arrays: dict[str, Array]) -> Operation:
    """The inverse; takes the operation's tensors out of ``arrays``."""
    if not isinstance(told, dict) or not isinstance(told.get("op"), str) or told["op"] not in KINDS:
        refuse("operation", "unknown kind", got=ascii(told.get("op") if isinstance(told, dict) else told))
    kind = KINDS[told["op"]]
    declared = kind.declarations
    plain = {name: READERS[type(what)] for name, what in declared.items() if type(what) in READERS}
    require_keys(told, {"op", "out", *plain}, told["op"])
    out = value_from_json(expect(told, "out", dict, told["op"]), arrays)
    given = {name: read(told, name, out.name) for name, read in plain.items()}
    tensors = {name: take(arrays, f"{out.name}/{name}") for name in declared if name not in plain}
    return kind(out=out, **given, **tensors)


def output_from_json(told: Any, where: str) -> Output:
    """An output of the program."""
    if not isinstance(told, dict):
        refuse(where, "an output is not an object", got=ascii(told)[:100])
    require_keys(told, {"name", "value", "pooled"}, "output")
    return Output(text(told, "name", where), text(told, "value", where), flag(told, "pooled", where))


def from_version_1(body: Mapping[str, Any], arrays: Mapping[str, Array]) -> tuple[dict[str, Any], dict[str, Array]]:
    """What version 2 writes in place of a body and tensors of version 1."""
    told, tensors = dict(body), dict(arrays)
    told["outputs"] = [{"name": "logits", "value": told.pop("output"), "pooled": True}]
    told["operations"] = [version_1_operation(op, tensors) for op in expect(told, "operations", list, "program")]
    return told, tensors


def version_1_operation(told: Any, tensors: dict[str, Array]) -> Any:
    """An operation as version 2 writes it."""
    kind = told.get("op") if isinstance(told, dict) else None
    if isinstance(kind, str) and kind in KINDS and KINDS[kind].since > 1:
        refuse("operation", "version 1 of the format has no such kind", got=kind)
    if kind not in ("scores", "mix"):
        return told
    if "windows" in told:
        refuse(kind, "unknown or missing keys", got="windows")
    if kind == "scores":
        name = f"{text(expect(told, 'out', dict, 'scores'), 'name', 'value')}/table"
        if name in tensors:
            refuse(name, "the tensor file holds what no operation uses")
        tensors[name] = no_table()
    return {**told, "windows": 1}


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


READERS: Mapping[type, Callable[[Mapping[str, Any], str, str], Any]] = {Operand: text, Key: whole, Flag: flag}
"""What a field of an operation is declared as -> what reads it from the manifest."""


def read_bytes(path: Path, limit: int) -> bytes:
    """A whole file, if it is a file and not larger than ``limit``."""
    return read_file(path, limit, "the program", ProgramError)
