"""Damage and malice for the two files of a program: seeded, at the level of bytes, of JSON, and of tensors."""

from __future__ import annotations

import copy
import hashlib
import json
import random
import struct
from typing import Any

import numpy as np
from safetensors.numpy import load, save

Files = tuple[bytes, bytes]

NONSENSE: tuple[Any, ...] = (
    *(0, 1, -1, 2, 255, 2**15, 2**31 - 1, 2**31, -(2**31), 2**53, 2**62, -(2**63), 2**64, 10**19, -(10**18)),
    *(0.5, 1e308, -0.0, True, False, None, "", "x", "image", "\u0000", "\ud800", "n" * 300, [], {}, [[]], {"a": 1}),
)


def signed(program: dict[str, Any], tensors: bytes) -> Files:
    """Files whose digests are right, as a hostile writer would make them."""
    if isinstance(program.get("tensors"), dict):
        told = {"sha256": hashlib.sha256(tensors).hexdigest(), "bytes": len(tensors)}
        program = {**program, "tensors": {**program["tensors"], **told}}
    blank = {
        "format": "vitquant-program",
        "format_version": version_of(program),
        "sha256": "0" * 64,
        "program": program,
    }
    return resigned(json.dumps(blank).encode(), "0" * 64), tensors


def version_of(program: dict[str, Any]) -> int:
    """The version of the format that has what the program has."""
    if "output" in program and "outputs" not in program:
        return 1
    tensors = program.get("tensors")
    return 3 if isinstance(tensors, dict) and "packed" in tensors else 2


def resigned(manifest: bytes, old: str) -> bytes:
    """A manifest with its digest made right."""
    blank = manifest.replace(old.encode(), b"0" * 64, 1)
    return blank.replace(b"0" * 64, hashlib.sha256(blank).hexdigest().encode(), 1)


def parts(files: Files) -> tuple[dict[str, Any], bytes]:
    """The program as JSON, and the tensor file."""
    program: dict[str, Any] = json.loads(files[0])["program"]
    return program, files[1]


def any_bytes(data: bytes, rng: random.Random) -> bytes:
    """Bits flipped, bytes replaced, pieces cut out, put in, doubled or exchanged, or the end torn off."""
    out = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 8))):
        a, b = sorted(rng.randrange(len(out) + 1) for _ in range(2))
        b = min(b, a + rng.choice((1, 4, 64, 4096)))
        match rng.randrange(7):
            case 0 if out:
                out[rng.randrange(len(out))] ^= 1 << rng.randrange(8)
            case 1:
                out[a:b] = rng.randbytes(b - a)
            case 2:
                del out[a:b]
            case 3:
                out[a:a] = rng.randbytes(rng.choice((1, 8, 100)))
            case 4:
                out[a:a] = out[a:b]
            case 5:
                c = rng.randrange(len(out) + 1)
                out[a:b], out[c : c + b - a] = out[c : c + b - a], out[a:b]
            case _:
                del out[a:]
    return bytes(out)


def damaged(files: Files, rng: random.Random) -> Files:
    """One file or the other, its digest left as it was."""
    manifest, tensors = files
    return (any_bytes(manifest, rng), tensors) if rng.random() < 0.5 else (manifest, any_bytes(tensors, rng))


def signed_bytes(files: Files, rng: random.Random) -> Files:
    """Bytes of the manifest, under a digest that fits."""
    manifest, tensors = files
    return resigned(any_bytes(manifest, rng), json.loads(manifest)["sha256"]), tensors


def places(node: Any) -> list[tuple[Any, Any]]:
    """Every place in JSON that could hold something else: a container, and a key or index."""
    keys = list(node) if isinstance(node, dict) else list(range(len(node))) if isinstance(node, list) else []
    return [(node, key) for key in keys] + [place for key in keys for place in places(node[key])]


def signed_json(files: Files, rng: random.Random) -> Files:
    """Numbers, names and structure of the manifest."""
    program, tensors = parts(files)
    for _ in range(rng.choice((1, 1, 2, 5))):
        found = places(program)
        node, key = rng.choice(found)
        other, other_key = rng.choice(found)
        match rng.randrange(8):
            case 0:
                node[key] = rng.choice(NONSENSE)
            case 1:
                node.pop(key)
            case 2:
                node[key], other[other_key] = copy.deepcopy(other[other_key]), copy.deepcopy(node[key])
            case 3:
                node[key] = copy.deepcopy(other[other_key])
            case 4 if isinstance(node, dict):
                node[rng.choice(("extra", "shape", "x", "op"))] = rng.choice(NONSENSE)
            case 5 if isinstance(node, list):
                node.insert(key, copy.deepcopy(node[key]))
            case 6 if isinstance(node[key], int):
                node[key] = int(node[key]) + rng.choice((-1, 1, int(node[key]), 2**20))
            case _:
                nested: Any = rng.choice(NONSENSE)
                for _ in range(rng.choice((2, 9, 30))):
                    nested = [nested] if rng.random() < 0.9 else {"a": nested}
                node[key] = nested
    return signed(program, tensors)


def rewired(files: Files, rng: random.Random) -> Files:
    """Well-formed JSON: operations that read other values, other ranges, sizes that are one more or less."""
    program, tensors = parts(files)
    names = ["image", *(op["out"]["name"] for op in program["operations"])]
    for _ in range(rng.choice((1, 1, 2, 3))):
        index = rng.randrange(len(program["operations"]))
        op = program["operations"][index]
        match rng.randrange(5):
            case 0 | 1 if operands := [key for key in ("x", "q", "k", "p", "v", "a", "b") if key in op]:
                op[rng.choice(operands)] = rng.choice(names[: index + 1])
            case 2:
                other = rng.choice(program["operations"])["out"]
                op["out"]["low"], op["out"]["high"] = rng.choice(
                    ((other["low"], other["high"]), (-(2**30), 2**30), (-1, 0), (2**29, 2**30), (-5, other["high"]))
                )
            case 3 if numbers := [key for key, value in op.items() if isinstance(value, int)]:
                key = rng.choice(numbers)
                op[key] = not op[key] if isinstance(op[key], bool) else op[key] + rng.choice((-2, -1, 1, 2, 20))
            case _ if "outputs" in program:
                rng.choice(program["outputs"])["value"] = rng.choice(names)
            case _:
                program["output"] = rng.choice(names)
    return signed(program, tensors)


def doubled_key(files: Files, rng: random.Random) -> Files:
    """A key twice in one object: some readers take the first, some the last."""
    manifest, tensors = files
    lines = manifest.split(b"\n")
    line = rng.choice([i for i, line in enumerate(lines) if b'": ' in line and line.endswith(b",")])
    lines.insert(line, lines[line])
    return resigned(b"\n".join(lines), json.loads(manifest)["sha256"]), tensors


def signed_tensor_bytes(files: Files, rng: random.Random) -> Files:
    """Bytes of the tensor file, most of them in its header, under digests that fit."""
    program, tensors = parts(files)
    header = 8 + struct.unpack("<Q", tensors[:8])[0]
    if rng.random() < 0.7:
        return signed(program, any_bytes(tensors[:header], rng) + tensors[header:])
    return signed(program, any_bytes(tensors, rng))


def signed_header(files: Files, rng: random.Random) -> Files:
    """The header of the tensor file: types, shapes and offsets."""
    program, tensors = parts(files)
    length = struct.unpack("<Q", tensors[:8])[0]
    header = json.loads(tensors[8 : 8 + length])
    for _ in range(rng.choice((1, 1, 3))):
        node, key = rng.choice(places(header))
        node[key] = rng.choice(
            (*NONSENSE, "F64", "BF16", "F8_E4M3", "BOOL", "I64", "U8", [2**62, 4], [0], [1] * 40, [4, 0], [0, 2**63])
        )
    try:
        text = json.dumps(header).encode()
        length = rng.choice((len(text), len(text), len(text), len(text) + 1, 0, 2**63, 2**27))
        return signed(program, struct.pack("<Q", length) + text + tensors[8 + struct.unpack("<Q", tensors[:8])[0] :])
    except ValueError:
        return signed(program, b"")


def signed_arrays(files: Files, rng: random.Random) -> Files:
    """The tensors themselves: extreme numbers, other types and shapes, missing, left over, exchanged."""
    program, tensors = parts(files)
    arrays = {name: array.copy() for name, array in load(tensors).items()}
    for _ in range(rng.choice((1, 1, 2, 5))):
        name, other = rng.choice(sorted(arrays)), rng.choice(sorted(arrays))
        array = arrays[name]
        info = np.iinfo(array.dtype) if array.dtype.kind in "iu" else np.finfo(np.float32)
        match rng.randrange(9):
            case 0 if array.size:
                array.flat[rng.randrange(array.size)] = rng.choice((info.min, info.max, 0, 1))
            case 1:
                array[...] = rng.choice((info.min, info.max, 0, 1))
            case 2 if array.size and array.dtype.kind in "iu":
                index = rng.randrange(array.size)
                array.flat[index] = min(max(int(array.flat[index]) + rng.choice((-1, 1)), info.min), info.max)
            case 3:
                kinds = ("int8", "uint8", "int16", "uint16", "int32", "int64", "uint64", "float32", "float64", "bool")
                with np.errstate(all="ignore"):
                    arrays[name] = array.astype(rng.choice(kinds))
            case 4:
                flat = array.reshape(-1)
                arrays[name] = rng.choice((flat[:0], array[None], flat, np.zeros((), array.dtype)))
            case 5:
                del arrays[name]
                arrays = arrays or {"x": array}
            case 6:
                arrays[rng.choice((name + "x", "x", "x/scale", "__metadata__"))] = array
            case 7:
                arrays[name], arrays[other] = arrays[other], arrays[name]
            case _ if array.dtype.kind == "f":
                array[...] = rng.choice((np.nan, np.inf, -np.inf, -1, 1e-45))
            case _:
                arrays[name] = np.concatenate([array, array]) if array.ndim else array
    try:
        return signed(program, save(arrays))
    except Exception:  # what no file can hold
        return signed(program, b"")


SIGNED = (signed_bytes, signed_json, rewired, doubled_key, signed_tensor_bytes, signed_header, signed_arrays)
"""All whose digests are made right."""
