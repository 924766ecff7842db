"""Damage and malice for files of every kind that is read, seeded; checksums are made right, so that what stands behind
them is reached. Those of programs are in ``tests/support/mutations.py``.
"""

from __future__ import annotations

import copy
import hashlib
import io
import json
import random
import re
import struct
import zipfile
import zlib
from typing import Any

import numpy as np
from safetensors.numpy import load, save

from support.mutations import NONSENSE, any_bytes

Files = dict[str, bytes]
"""Name to content of the files of one input."""

WORDS = (
    *(
        "",
        "~",
        "null",
        "yes",
        "-1",
        "0",
        "1",
        "17",
        "0xffffffffffffffffffffff",
        "1e-3",
        "1.0e400",
        ".nan",
        "-.inf",
        "1:30",
    ),
    *(
        "2024-01-01",
        "!!python/name:os.system",
        "&a [*a]",
        "*a",
        "<<: {a: 1}",
        "[]",
        "{}",
        "[[[[]]]]",
        "? x",
        "|\n  x",
        "'",
    ),
    *(
        "\t",
        "\u0000",
        "\u001b[31m",
        "\ud7ff",
        "signed",
        "channel_wise",
        "row",
        "blocks.*",
        "blocks.[0-11].*",
        "x" * 3000,
    ),
)


def one_file(files: Files, rng: random.Random) -> Files:
    """Bytes of one of the files, whatever they mean."""
    name = rng.choice(sorted(files))
    return files | {name: any_bytes(files[name], rng)}


def yaml_words(files: Files, rng: random.Random) -> Files:
    """Words of a YAML file replaced by others, lines doubled, moved, taken out or indented otherwise."""
    ((name, data),) = files.items()
    lines = data.decode().split("\n")
    for _ in range(rng.choice((1, 1, 2, 6))):
        index = rng.randrange(len(lines))
        match rng.randrange(6):
            case 0 | 1 | 2:
                words = list(re.finditer(r"[\w.*-]+", lines[index]))
                if words:
                    found = rng.choice(words)
                    lines[index] = lines[index][: found.start()] + rng.choice(WORDS) + lines[index][found.end() :]
            case 3:
                lines.insert(rng.randrange(len(lines)), lines[index])
            case 4:
                lines[index] = " " * rng.randrange(5) + lines[index].strip()
            case _ if len(lines) > 1:
                del lines[index]
    return {name: "\n".join(lines).encode(errors="surrogatepass")}


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The paths of all values in nested JSON."""
    found = [path] if path else []
    if isinstance(value, dict | list):
        for key, part in value.items() if isinstance(value, dict) else enumerate(value):
            found += places(part, (*path, key))
    return found


def json_values(value: Any, rng: random.Random) -> Any:
    """Some values of nested JSON replaced by nonsense, or taken out, or their keys renamed."""
    value = copy.deepcopy(value)
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        paths = places(value)
        if not paths:
            break
        *above, key = rng.choice(paths)
        parent = value
        for step in above:
            parent = parent[step]
        match rng.randrange(6):
            case 0:
                del parent[key]
            case 1 if isinstance(parent, dict):
                parent[f"{key}x"] = parent.pop(key)
            case 2 if isinstance(parent[key], int | float) and not isinstance(parent[key], bool):
                parent[key] = parent[key] * rng.choice((-1, 2, 1000, 10**9)) + rng.choice((-1, 0, 1))
            case _:
                parent[key] = rng.choice(NONSENSE)
    return value


def arrays_changed(data: bytes, rng: random.Random) -> bytes:
    """The tensors of a safetensors file: extreme numbers, other types and shapes, missing, left over, exchanged."""
    arrays = {name: array.copy() for name, array in load(data).items()}
    for _ in range(rng.choice((1, 1, 2, 5))):
        name, other = rng.choice(sorted(arrays)), rng.choice(sorted(arrays))
        array = arrays[name]
        match rng.randrange(8):
            case 0 | 1 if array.size and array.dtype.kind == "f":
                array.flat[rng.randrange(array.size)] = rng.choice((np.nan, np.inf, -np.inf, 0, -1, 1e-45, 3e38))
            case 2 if array.size and array.dtype.kind in "iu":
                info = np.iinfo(array.dtype)
                array.flat[rng.randrange(array.size)] = rng.choice((info.min, info.max))
            case 3:
                with np.errstate(all="ignore"):
                    arrays[name] = array.astype(rng.choice(("int8", "uint8", "int32", "int64", "float16", "float64")))
            case 4:
                flat = array.reshape(-1)
                arrays[name] = rng.choice((flat[:0], array[None], flat, np.zeros((), array.dtype)))
            case 5:
                del arrays[name]
                arrays = arrays or {"x": array}
            case 6:
                arrays[rng.choice((f"{name}x", "x", "\u001b[2Jx\n"))] = array
            case _:
                arrays[name], arrays[other] = arrays[other], arrays[name]
    return save(arrays)


def header_changed(data: bytes, rng: random.Random) -> bytes:
    """The header of a safetensors file."""
    length = struct.unpack("<Q", data[:8])[0]
    header = json_values(json.loads(data[8 : 8 + length]), rng)
    text = json.dumps(header).encode(errors="surrogatepass")
    told = rng.choice((len(text), len(text), len(text), len(text) + 1, 0, 2**63, 2**27))
    return struct.pack("<Q", told) + text + data[8 + length :]


def saved_model(files: Files, rng: random.Random) -> Files:
    """A saved model under digests that fit: its manifest, its configuration, its tensors."""
    manifest, tensors = json.loads(files["manifest.json"]), files["model.safetensors"]
    match rng.randrange(4):
        case 0:
            manifest = json_values(manifest, rng)
        case 1:
            text = yaml_words({"config": manifest["config"].encode()}, rng)["config"]
            manifest["config"] = text.decode(errors="replace")
        case 2:
            tensors = header_changed(tensors, rng)
        case _:
            tensors = arrays_changed(tensors, rng)
    if isinstance(manifest.get("tensors"), dict):
        manifest["tensors"] |= {"sha256": hashlib.sha256(tensors).hexdigest(), "bytes": len(tensors)}
    return {"manifest.json": json.dumps(manifest).encode(), "model.safetensors": tensors}


def safetensors_file(files: Files, rng: random.Random) -> Files:
    """A checkpoint in safetensors."""
    ((name, data),) = files.items()
    return {name: rng.choice((header_changed, arrays_changed))(data, rng)}


def zip_members(files: Files, rng: random.Random) -> Files:
    """The members of an archive (``.npz``, ``.pth``), packed again under checksums that fit."""
    ((name, data),) = files.items()
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        members = {member.filename: archive.read(member) for member in archive.infolist()}
    for _ in range(rng.choice((1, 1, 2))):
        member = rng.choice(sorted(members))
        match rng.randrange(6):
            case 0:
                del members[member]
                members = members or {"x": b""}
            case 1:
                members[f"{member}x"] = members[member]
            case _:
                content = members[member]
                # What says how the rest is read is at the start: damage it more often.
                cut = rng.choice((len(content), min(len(content), 256)))
                members[member] = any_bytes(content[:cut], rng) + content[cut:]
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", rng.choice((zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED))) as archive:
        for member, content in members.items():
            archive.writestr(member, content)
    return {name: out.getvalue()}


def png_chunks(files: Files, rng: random.Random) -> Files:
    """The chunks of a PNG file, under checksums that fit; other pictures as bytes."""
    ((name, data),) = files.items()
    if not data.startswith(b"\x89PNG"):
        return one_file(files, rng)
    chunks, position = [], 8
    while position + 12 <= len(data):
        (length,) = struct.unpack(">I", data[position : position + 4])
        chunks.append((data[position + 4 : position + 8], data[position + 8 : position + 8 + length]))
        position += 12 + length
    index = rng.randrange(len(chunks))
    kind, content = chunks[index]
    match rng.randrange(4):
        case 0:
            size = struct.pack(">II", *(rng.choice((0, 1, 28, 2**15, 2**16, 2**31 - 1)) for _ in range(2)))
            chunks[0] = chunks[0][0], size + chunks[0][1][8:]
        case 1:
            chunks.insert(rng.randrange(len(chunks)), chunks[index])
        case 2:
            del chunks[index]
        case _:
            chunks[index] = kind, any_bytes(content, rng)
    out = b"\x89PNG\r\n\x1a\n"
    for kind, content in chunks:
        out += struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
    return {name: out}
