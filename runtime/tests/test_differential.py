"""Two readers of one format: what vitquant refuses the runtime refuses too, and the other way round; they compute alike
what both take.

Files are damaged by seeded mutations, their digests made right again, and by hand where readers tend to differ.
"""

from __future__ import annotations

import json
import random
import struct
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import vitquant
import vitquant_runtime
from saved_programs import all_expected
from support import mutations
from support.integer_models import quantized
from support.mutations import Files
from support.random_programs import STEPS, random_program, tangled_program
from vitquant.errors import VitquantError
from vitquant.program.program import IntegerProgram
from vitquant.program.storage import encode_program

MUTATIONS = (mutations.damaged, *mutations.SIGNED)

SLOWEST = 5.0
"""Seconds of the processor that reading may take; a thousandth is usual."""


@lru_cache(maxsize=1)
def originals() -> list[Files]:
    """A small model with each form of softmax, random programs, and some of version 1."""
    small: dict[str, Any] = {"depth": 1, "embed_dim": 6, "num_heads": 2, "mlp_hidden": 6, "patch_size": (8, 8)}
    kinds: dict[str, dict[str, Any]] = {
        "row": {},
        "diffusion": {"reg_tokens": 1},
        "uniform": {"pool": "avg"},
        "log2": {"dist_token": True},
    }
    models = [quantized({"intSoft": {"softmax": form}}, **small, **more) for form, more in kinds.items()]
    programs = [vitquant.compile(model) for model in models]
    programs += [random_program(seed, STEPS) for seed in range(3)]
    programs += [tangled_program(seed, 14) for seed in range(6)]
    golden = sorted((Path(mutations.__file__).parents[1] / "golden").glob("program_v*"))
    return [
        *(encode_program(program) for program in programs),
        *(((path / "program.json").read_bytes(), (path / "program.safetensors").read_bytes()) for path in golden),
    ]


def by_vitquant(folder: Path) -> IntegerProgram | str:
    """The program, or why it is refused."""
    try:
        return vitquant.load_program(folder)
    except VitquantError as error:
        return str(error)


def by_runtime(folder: Path) -> vitquant_runtime.Runtime | str:
    try:
        names = vitquant_runtime.load(folder, threads=1).output_names
        return vitquant_runtime.load(folder, threads=1, outputs=names)
    except ValueError as error:
        return str(error)


def refused_in_memory(files: Files) -> bool:
    try:
        vitquant_runtime.loads(*files, threads=1)
    except ValueError:
        return True
    return False


def write(folder: Path, files: Files) -> None:
    (folder / "program.json").write_bytes(files[0])
    (folder / "program.safetensors").write_bytes(files[1])


def difference(files: Files, folder: Path) -> tuple[str, bool]:
    """How the readers differ, if they do; and whether both take the files."""
    write(folder, files)
    start = time.process_time()
    program, runtime = by_vitquant(folder), by_runtime(folder)
    if time.process_time() - start > 2 * SLOWEST:
        return "slow", False
    if isinstance(runtime, str) != refused_in_memory(files):
        return f"from memory otherwise than from files: {runtime}", False
    if isinstance(program, str) != isinstance(runtime, str):
        return f"vitquant: {program}; runtime: {runtime}", False
    if isinstance(program, str) or isinstance(runtime, str):
        said = str(runtime)
        return ("" if said.isascii() and said.isprintable() and len(said) < 1000 else f"message {said!r}"), False
    images = np.random.default_rng(0).integers(0, 256, (2, *program.image.shape), dtype=np.uint8)
    wanted, found = all_expected(program, images), runtime.run(images)
    return ", ".join(f"other {name}" for name in wanted if not np.array_equal(found[name], wanted[name])), True


def compare(rounds: int, seed: int, folder: Path) -> Counter[str]:
    """How many of the mutants of each kind both readers take."""
    rng, taken = random.Random(seed), Counter[str]()
    for round_ in range(rounds):
        mutate = MUTATIONS[round_ % len(MUTATIONS)]
        found, both = difference(mutate(rng.choice(originals()), rng), folder)
        assert not found, (mutate.__name__, round_, found)
        taken[mutate.__name__] += both
    return taken


def test_mutants(tmp_path: Path) -> None:
    taken = compare(320, 0, tmp_path)
    assert taken["rewired"] > 2
    assert taken["signed_arrays"]
    assert sum(taken.values()) < 200


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(1, 5))
def test_many_mutants(seed: int, tmp_path: Path) -> None:
    assert sum(compare(5000, seed, tmp_path).values()) > 100


def original() -> Files:
    return originals()[0]


def header_of(tensors: bytes) -> tuple[bytes, bytes]:
    end = 8 + struct.unpack("<Q", tensors[:8])[0]
    return tensors[8:end], tensors[end:]


def with_header(change: Callable[[bytes], bytes]) -> Files:
    """The program, the header of its tensors changed."""
    manifest, tensors = original()
    header, numbers = header_of(tensors)
    header = change(header)
    return mutations.signed(json.loads(manifest)["program"], struct.pack("<Q", len(header)) + header + numbers)


def with_text(change: Callable[[bytes], bytes]) -> Files:
    """The program, the text of its manifest changed."""
    manifest, tensors = original()
    blank = manifest.replace(json.loads(manifest)["sha256"].encode(), b"0" * 64, 1)
    return mutations.resigned(change(blank), "0" * 64), tensors


def front(text: bytes) -> Callable[[bytes], bytes]:
    """Put before the first key of the header."""
    return lambda header: b"{" + text + header[1:]


def replaced(old: bytes, new: bytes) -> Callable[[bytes], bytes]:
    def change(text: bytes) -> bytes:
        assert old in text
        return text.replace(old, new, 1)

    return change


def first_entry(header: bytes) -> bytes:
    name, told = next(iter(json.loads(header).items()))
    return json.dumps(name).encode() + b":" + json.dumps(told).encode() + b","


HEADERS: dict[str, tuple[Callable[[bytes], bytes], bool]] = {
    "as it is": (lambda header: header, True),
    "spaces at the end": (lambda header: header + b" \n\t\r", True),
    "a null at the end": (lambda header: header + b"\0", False),
    "a space at the start": (lambda header: b" " + header, False),
    "a byte order mark": (lambda header: b"\xef\xbb\xbf" + header, False),
    "nothing": (lambda header: b"", False),
    "a list": (lambda header: b"[" + header + b"]", False),
    "metadata": (front(b'"__metadata__":{"a":"\\u0000\\ud83d\\ude00\xc3\xa9"},'), True),
    "empty metadata": (front(b'"__metadata__":{},'), True),
    "metadata that are null": (front(b'"__metadata__":null,'), False),
    "metadata that are numbers": (front(b'"__metadata__":{"a":1},'), False),
    "metadata that are objects": (front(b'"__metadata__":{"a":{"a":"b"}},'), False),
    "metadata twice": (front(b'"__metadata__":{},"__metadata__":{},'), False),
    "a key of metadata twice": (front(b'"__metadata__":{"a":"b","a":"b"},'), False),
    "half a character": (front(b'"__metadata__":{"a":"\\ud83d"},'), False),
    "no UTF-8": (front(b'"__metadata__":{"a":"\xff"},'), False),
    "a control character": (front(b'"__metadata__":{"a":"\x01"},'), False),
    "a tensor twice": (lambda header: b"{" + first_entry(header) + header[1:], False),
    "a type twice": (replaced(b'"dtype":', b'"dtype":"I8","dtype":'), False),
    "another key": (replaced(b'"dtype":', b'"more":1,"dtype":'), False),
    "a tensor as a list": (front(b'"x":["I8",[0],[0,0]],'), False),
    "an empty tensor more": (front(b'"x":{"dtype":"I8","shape":[0],"data_offsets":[0,0]},'), False),
    "a signed zero": (replaced(b'"data_offsets":[0,', b'"data_offsets":[-0,'), False),
    "a zero with a point": (replaced(b'"data_offsets":[0,', b'"data_offsets":[0.0,'), False),
    "a zero with an exponent": (replaced(b'"data_offsets":[0,', b'"data_offsets":[0e0,'), False),
    "three offsets": (replaced(b'"data_offsets":[0,', b'"data_offsets":[0,0,'), False),
    "an escaped type": (replaced(b'"I8"', b'"\\u00498"'), True),
    "the largest": (lambda header: header + b" " * (2**23 - len(header)), True),
    "larger than the largest": (lambda header: header + b" " * (2**23 + 1 - len(header)), False),
    "millions of objects": (front(b'"x":[' + b"{}," * 2_500_000 + b"{}],"), False),
    "millions of sizes": (front(b'"x":{"shape":[' + b"0," * 4_000_000 + b"0]},"), False),
}


@pytest.mark.parametrize("name", HEADERS)
def test_headers(name: str, tmp_path: Path) -> None:
    change, taken = HEADERS[name]
    assert difference(with_header(change), tmp_path) == ("", taken)


NUMBERS: dict[bytes, bool] = {
    **dict.fromkeys((b"0", b"-0", b"0.1e1", b"1E5", b"1e+5", b"1e-400", b"1.7976931348623157e308"), True),
    **dict.fromkeys((b"1e309", b"-1e309", b"1.", b".5", b"+1", b"-", b"00", b"0x1", b"1_0", b"1e", b"1/**/"), False),
    **dict.fromkeys((b"NaN", b"nan", b"Infinity", b"-Infinity", b"True", b"\xd9\xa1", b"\x0b1", b"\xc2\xa01"), False),
    b"1" * 20: True,
    b"1" * 21: False,
    b"-" + b"1" * 19: True,
    b"-" + b"1" * 20: False,
    b"1" + b"0" * 400 + b".5": False,
    b"0." + b"0" * 1000 + b"1": True,
    b"1e" + b"9" * 30: False,
    **dict.fromkeys((b'"\\u0000"', b'"\x7f"', b'"\\/"', b'"\\ud800\\udc00"', b'"\xc2\x85"'), True),
    **dict.fromkeys((b'"\\x"', b'"\\udc00"', b'"\\ud83d\\ud83d"', b'"\\u12 4"', b'"\\u+123"', b'"\t"', b"'a'"), False),
    b"[[[[[1]]]]]": True,
    b"[[[[[[1]]]]]]": False,
    b"[1,]": False,
    b'{"a":1,}': False,
    b'{"a":1,"\\u0061":2}': False,
}


@pytest.mark.parametrize("text", NUMBERS, ids=lambda text: repr(text[:20]))
def test_texts_in_the_metadata(text: bytes, tmp_path: Path) -> None:
    change = replaced(b'"metadata": {', b'"metadata": {"more": ' + text + b", ")
    assert difference(with_text(change), tmp_path) == ("", NUMBERS[text])


TEXTS: dict[str, tuple[Callable[[bytes], bytes], bool]] = {
    "white space around": (lambda text: b" \n" + text + b" \n\t\r", True),
    "a byte order mark": (lambda text: b"\xef\xbb\xbf" + text, False),
    "UTF-16": (lambda text: text.decode().encode("utf-16"), False),
    "a null at the end": (lambda text: text + b"\0", False),
    "a second document": (lambda text: text + b"{}", False),
    "the largest": (lambda text: text + b" " * (2**22 - len(text)), True),
    "larger than the largest": (lambda text: text + b" " * (2**22 + 1 - len(text)), False),
    "a version with a point": (replaced(b'"format_version": 2', b'"format_version": 2.0'), False),
    "a version that is true": (replaced(b'"format_version": 2', b'"format_version": true'), False),
    "another file": (replaced(b'"file": "', b'"file": "../'), False),
    "bytes with a point": (lambda text: text.replace(b'"bytes": ', b'"bytes": 1.0e0, "x": ', 1), False),
    "many lists": (replaced(b'"metadata": {', b'"metadata": {"x": [' + b"[]," * 300_000 + b"0], "), True),
}


@pytest.mark.parametrize("name", TEXTS)
def test_manifests(name: str, tmp_path: Path) -> None:
    change, taken = TEXTS[name]
    assert difference(with_text(change), tmp_path) == ("", taken)


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux's account of memory")
@pytest.mark.parametrize("name", ["millions of objects", "millions of sizes"])
def test_memory(name: str, tmp_path: Path) -> None:
    """Of a header that holds as much as it can."""
    write(tmp_path, with_header(HEADERS[name][0]))
    script = f"""
import vitquant_runtime
try:
    vitquant_runtime.load({str(tmp_path)!r}, threads=1)
except ValueError:
    print(next(line for line in open("/proc/self/status") if line.startswith("VmHWM")).split()[1])
"""
    told = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
    assert int(told) < 600_000, "kB"
