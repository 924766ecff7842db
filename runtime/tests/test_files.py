"""Files that are not what they should be give an error with a message, never a crash."""

from __future__ import annotations

import hashlib
import json
import os
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import load_file

import vitquant
import vitquant_runtime
from support import integer_models
from support.integer_models import quantized
from vitquant.errors import VitquantError
from vitquant.program.storage import decode_program, encode_program

PROGRAM = vitquant.compile(quantized(depth=1))
MANIFEST, TENSORS = encode_program(PROGRAM)
GOLDEN = sorted((Path(integer_models.__file__).parents[1] / "golden").glob("program_v*"))


NAMES = sorted(PROGRAM.values())


def write(folder: Path, manifest: bytes, tensors: bytes = TENSORS) -> Path:
    (folder / "program.json").write_bytes(manifest)
    (folder / "program.safetensors").write_bytes(tensors)
    return folder


def sealed(told: dict[str, Any], tensors: bytes = TENSORS) -> bytes:
    """A manifest whose digests are right, whatever else it says."""
    told["program"]["tensors"] = {
        "file": "program.safetensors",
        "sha256": hashlib.sha256(tensors).hexdigest(),
        "bytes": len(tensors),
    }
    told["sha256"] = "0" * 64
    text = json.dumps(told).encode()
    return text.replace(b"0" * 64, hashlib.sha256(text).hexdigest().encode(), 1)


def runtime_refuses(folder: Path) -> str | None:
    """Why, if it does; the same from the files and from memory."""
    manifest, tensors = ((folder / name).read_bytes() for name in ("program.json", "program.safetensors"))
    said: list[str | None] = []
    for from_memory in (False, True):
        try:
            runtime = (
                vitquant_runtime.loads(manifest, tensors, threads=1)
                if from_memory
                else vitquant_runtime.load(folder, threads=1)
            )
        except ValueError as error:
            said.append(str(error).replace(f"{folder}{os.sep}", ""))
        else:
            runtime(np.zeros((1, *runtime.image_shape), np.uint8))
            said.append(None)
    assert said[0] == said[1]
    return said[0]


def vitquant_refuses(manifest: bytes, tensors: bytes) -> str | None:
    try:
        decode_program(manifest, tensors)
    except VitquantError as error:
        return str(error)
    return None


def test_missing(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="nowhere: there is no such file"):
        vitquant_runtime.load(tmp_path / "nowhere")
    with pytest.raises(ValueError, match=r"program\.json: there is no such file"):
        vitquant_runtime.load(tmp_path)
    (tmp_path / "program.json").write_bytes(MANIFEST)
    with pytest.raises(ValueError, match=r"program\.safetensors: there is no such file"):
        vitquant_runtime.load(tmp_path)
    (tmp_path / "program.safetensors").mkdir()
    with pytest.raises(ValueError, match="not a file"):
        vitquant_runtime.load(tmp_path)


@pytest.mark.parametrize("path", GOLDEN, ids=lambda path: path.name)
def test_golden_programs(path: Path) -> None:
    """Written once, in whatever version was current; they stay readable, and what they make stays the same."""
    known = load_file(path / "expected.safetensors")
    images = known.pop("images")
    found = vitquant_runtime.load(path, threads=1, outputs=list(known)).run(images)
    assert all(np.array_equal(found[name], codes) for name, codes in known.items())


def test_newer_version(tmp_path: Path) -> None:
    told = json.loads(MANIFEST)
    told["format_version"] = 4
    with pytest.raises(ValueError, match=r"another version of the format. Got 4, expected version 1 to 3; install"):
        vitquant_runtime.load(write(tmp_path, sealed(told)))


def test_changed_files(tmp_path: Path) -> None:
    changed = MANIFEST.replace(b'"low": -128', b'"low": -127', 1)
    with pytest.raises(ValueError, match="changed after it was written"):
        vitquant_runtime.load(write(tmp_path, changed))
    with pytest.raises(ValueError, match="not the one that the program was written with"):
        vitquant_runtime.load(write(tmp_path, MANIFEST, TENSORS[:-1] + bytes([TENSORS[-1] ^ 1])))
    with pytest.raises(ValueError, match="too large"):
        vitquant_runtime.load(write(tmp_path, MANIFEST, TENSORS + b"0"))
    with pytest.raises(ValueError, match="not the one"):
        vitquant_runtime.load(write(tmp_path, MANIFEST, TENSORS[:-1]))


def operation(told: dict[str, Any], kind: str) -> dict[str, Any]:
    return next(op for op in told["program"]["operations"] if op["op"] == kind)


LIES: dict[str, Callable[[dict[str, Any]], Any]] = {
    "unknown operation": lambda told: operation(told, "take").update(op="give"),
    "unknown key": lambda told: operation(told, "take").update(more=1),
    "missing key": lambda told: operation(told, "take").pop("token"),
    "another key beside the program": lambda told: told.update(more=1),
    "token beyond the end": lambda told: operation(told, "take").update(token=99),
    "negative token": lambda told: operation(told, "take").update(token=-1),
    "huge token": lambda told: operation(told, "take").update(token=2**63),
    "fraction for a number": lambda told: operation(told, "take").update(token=0.0),
    "true for a number": lambda told: operation(told, "take").update(token=True),
    "number for a flag": lambda told: operation(told, "mix").update(normalize=1),
    "patches that do not tile": lambda told: operation(told, "patches").update(height=3),
    "patches of nothing": lambda told: operation(told, "patches").update(height=0),
    "headroom": lambda told: operation(told, "layernorm").update(headroom=60),
    "odd headroom": lambda told: operation(told, "layernorm").update(headroom=3),
    "fraction bits": lambda told: operation(told, "mix").update(fraction_bits=31),
    "reciprocal bits": lambda told: operation(told, "mix").update(reciprocal_bits=60),
    "reads the future": lambda told: operation(told, "layernorm").update(x="class_token"),
    "reads nothing": lambda told: operation(told, "layernorm").update(x="nothing"),
    "reads an image": lambda told: operation(told, "layernorm").update(x="image"),
    "same name twice": lambda told: operation(told, "take")["out"].update(name="patches"),
    "empty name": lambda told: operation(told, "take")["out"].update(name=""),
    "name of two lines": lambda told: operation(told, "take")["out"].update(name="a\nb"),
    "long name": lambda told: operation(told, "take")["out"].update(name="a" * 201),
    "wrong shape": lambda told: operation(told, "linear")["out"].update(shape=[16, 25]),
    "no shape": lambda told: operation(told, "linear")["out"].update(shape=[]),
    "huge shape": lambda told: operation(told, "linear")["out"].update(shape=[2**40, 2**40]),
    "shape of 0": lambda told: operation(told, "linear")["out"].update(shape=[0, 24]),
    "empty range": lambda told: operation(told, "take")["out"].update(low=5, high=5),
    "narrow range": lambda told: operation(told, "take")["out"].update(low=0, high=1),
    "wide range": lambda told: operation(told, "linear")["out"].update(low=-(2**31), high=2**31),
    "unknown output": lambda told: told["program"]["outputs"][0].update(value="nothing"),
    "image as output": lambda told: told["program"]["outputs"][0].update(value="image"),
    "output of many rows": lambda told: told["program"]["outputs"][0].update(value="patch_embed"),
    "output of version 1": lambda told: told["program"].update(output="class_token"),
    "no operations": lambda told: told["program"].update(operations=[]),
    "metadata that are a list": lambda told: told["program"].update(metadata=[]),
    "image of another type": lambda told: told["program"]["image"].update(high=127),
    "image of two axes": lambda told: told["program"]["image"].update(shape=[16, 16]),
}


@pytest.mark.parametrize("lie", LIES)
def test_lies(lie: str, tmp_path: Path) -> None:
    told = json.loads(MANIFEST)
    LIES[lie](told)
    manifest = sealed(told)
    assert vitquant_refuses(manifest, TENSORS)
    message = runtime_refuses(write(tmp_path, manifest))
    assert message
    assert len(message) < 1000


def renamed(new: str) -> tuple[bytes, bytes]:
    """The program, with another name for the token that is taken."""
    told = json.loads(MANIFEST)
    old = operation(told, "take")["out"]["name"]
    operation(told, "take")["out"]["name"] = new
    for op in told["program"]["operations"]:
        op.update({key: new for key, value in op.items() if value == old})
    for output in told["program"]["outputs"]:
        output["value"] = new if output["value"] == old else output["value"]
    header, data = header_of(TENSORS)
    tensors = with_header(
        {new + key[len(old) :] if key.startswith(old + "/") else key: header[key] for key in header}, data
    )
    return sealed(told, tensors), tensors


ODD_NAMES = ["a" * 200, "a" * 201, "\u00e9" * 100, "\u00ad", "\u200b", "\u2028", "\u3042", "\U0001f600", " ", "~", "/"]


def test_names(tmp_path: Path) -> None:
    """The same names are refused; the printable characters of ASCII are not."""
    for name in [*ODD_NAMES, *(f"a{chr(code)}" for code in range(256))]:
        manifest, tensors = renamed(name)
        refused = runtime_refuses(write(tmp_path, manifest, tensors))
        assert bool(refused) == bool(vitquant_refuses(manifest, tensors)), (name, refused)
        assert bool(refused) == (len(name) > 200 or any(not " " <= c <= "~" for c in name)), (name, refused)


BAD_JSON = [
    b"",
    b"{",
    b"[]",
    b"null",
    b'{"format": "vitquant-program"}x',
    b'{"format": "vitquant-program", "format": "vitquant-program"}',
    b'{"format": NaN}',
    b'{"format": 01}',
    b'{"format": 1e999}',
    b'{"format": "\\ud800"}',
    b'{"format": "\\q"}',
    b'{"format": "\xff"}',
    b'{"format": "\xed\xa0\x80"}',
    b'{"format": "\n"}',
    b'{"format": "',
    b'{"format": "\\u12',
    b'{"format": ' + b"9" * 30 + b"}",
    b"[" * 100_000,
    b'{"a":' * 100_000,
    b'\xef\xbb\xbf{"format": "vitquant-program"}',
]


@pytest.mark.parametrize("text", BAD_JSON, ids=range(len(BAD_JSON)))
def test_bad_json(text: bytes, tmp_path: Path) -> None:
    assert vitquant_refuses(text, TENSORS)
    assert runtime_refuses(write(tmp_path, text))


def header_of(tensors: bytes) -> tuple[dict[str, Any], bytes]:
    size = struct.unpack("<Q", tensors[:8])[0]
    return json.loads(tensors[8 : 8 + size]), tensors[8 + size :]


def with_header(header: object, data: bytes) -> bytes:
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def swap_offsets(header: dict[str, Any]) -> None:
    a, b = (header[name] for name in sorted(header)[:2])
    a["data_offsets"] = b["data_offsets"]


HEADER_LIES: dict[str, Callable[[dict[str, Any]], Any]] = {
    "overlap": swap_offsets,
    "beyond the end": lambda h: h["patch_embed/weight"].update(data_offsets=[0, 2**40]),
    "negative": lambda h: h["patch_embed/weight"].update(data_offsets=[-8, 0]),
    "backwards": lambda h: h["patch_embed/weight"].update(data_offsets=[100, 0]),
    "one offset": lambda h: h["patch_embed/weight"].update(data_offsets=[0]),
    "shape": lambda h: h["patch_embed/weight"].update(shape=[48, 24]),
    "shape that overflows": lambda h: h["patch_embed/weight"].update(shape=[2**32, 2**32, 2**32]),
    "empty shape": lambda h: h["patch_embed/weight"].update(shape=[]),
    "type": lambda h: h["patch_embed/weight"].update(dtype="U8"),
    "unknown type": lambda h: h["patch_embed/weight"].update(dtype="Q4"),
    "missing tensor": lambda h: h.pop("patch_embed/weight"),
    "another tensor": lambda h: h.update(more={"dtype": "I8", "shape": [0], "data_offsets": [0, 0]}),
    "unknown key": lambda h: h["patch_embed/weight"].update(more=1),
}


@pytest.mark.parametrize("lie", HEADER_LIES)
def test_lies_in_the_tensor_file(lie: str, tmp_path: Path) -> None:
    header, data = header_of(TENSORS)
    HEADER_LIES[lie](header)
    tensors = with_header(header, data)
    assert runtime_refuses(write(tmp_path, sealed(json.loads(MANIFEST), tensors), tensors))


@pytest.mark.parametrize(
    "tensors", [b"", b"\0" * 7, b"\xff" * 8, struct.pack("<Q", 2) + b"{}", struct.pack("<Q", 2**40)]
)
def test_no_tensor_file(tensors: bytes, tmp_path: Path) -> None:
    assert runtime_refuses(write(tmp_path, sealed(json.loads(MANIFEST), tensors), tensors))


def test_tensors_need_not_be_aligned(tmp_path: Path) -> None:
    """One space more before the tensors: their addresses are odd, their contents the same."""
    size = struct.unpack("<Q", TENSORS[:8])[0]
    tensors = struct.pack("<Q", size + 1) + TENSORS[8 : 8 + size] + b" " + TENSORS[8 + size :]
    manifest = sealed(json.loads(MANIFEST), tensors)
    assert not vitquant_refuses(manifest, tensors)
    assert not runtime_refuses(write(tmp_path, manifest, tensors))


@given(st.data())
def test_mutations_of_the_manifest(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    """Numbers, names and brackets put elsewhere: refused, or run; never a crash. Digests are made right again."""
    told = json.loads(MANIFEST)
    for _ in range(data.draw(st.integers(1, 3))):
        op = data.draw(st.sampled_from(told["program"]["operations"]))
        target = data.draw(st.sampled_from([op, op["out"]] if isinstance(op["out"], dict) and op["out"] else [op]))
        key = data.draw(st.sampled_from(sorted(target)))
        numbers = st.integers(-3, 70) | st.sampled_from([2**15, 2**16, 2**31 - 1, 2**31, 2**62, 2**63, -(2**63)])
        names = st.sampled_from(NAMES)
        target[key] = data.draw(numbers | names | st.lists(numbers, max_size=4) | st.booleans() | st.none())
    manifest = sealed(told)
    refused = runtime_refuses(write(tmp_path_factory.mktemp("mutant"), manifest))
    assert bool(refused) == bool(vitquant_refuses(manifest, TENSORS)), refused


@given(st.data())
def test_mutations_of_the_tensors(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    """Any bytes of the tensor file: refused where vitquant refuses, and else run."""
    tensors = bytearray(TENSORS)
    size = struct.unpack("<Q", TENSORS[:8])[0]
    low, high = data.draw(st.sampled_from([(0, 8), (8, 8 + size), (8 + size, len(TENSORS))]))
    for _ in range(data.draw(st.integers(1, 4))):
        tensors[data.draw(st.integers(low, high - 1))] = data.draw(st.integers(0, 255))
    mutant = bytes(tensors)
    manifest = sealed(json.loads(MANIFEST), mutant)
    refused = runtime_refuses(write(tmp_path_factory.mktemp("mutant"), manifest, mutant))
    if not refused:
        assert not vitquant_refuses(manifest, mutant)


@given(st.binary(max_size=400), st.integers(0, len(MANIFEST)))
def test_bytes_in_the_manifest(tmp_path_factory: pytest.TempPathFactory, put: bytes, at: int) -> None:
    mutant = MANIFEST[:at] + put + MANIFEST[at + len(put) :]
    refused = runtime_refuses(write(tmp_path_factory.mktemp("mutant"), mutant))
    assert bool(refused) == (mutant != MANIFEST)
