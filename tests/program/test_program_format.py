"""docs/program-format.md: its example runs, and its table of operations is the code's."""

from __future__ import annotations

import ast
import json
import re
from dataclasses import fields

import numpy as np
import torch
from safetensors.numpy import save

from support.documents import ROOT
from support.mutations import signed
from support.numpy_executor import NumpyExecutor
from vitquant.executors.reference import Reference
from vitquant.program.ops import KINDS
from vitquant.program.storage import decode_program

PAGE = (ROOT / "docs" / "program-format.md").read_text(encoding="utf-8")
TYPES = {"F32": np.float32, "I32": np.int32, "I8": np.int8, "U8": np.uint8}


def names(cell: str) -> set[str]:
    """What stands between backticks and is a name of more than an axis or a type."""
    return {name for name in re.findall(r"`(\w+)`", cell) if not re.fullmatch(r"[A-Z]\w*", name)}


def test_the_example() -> None:
    example = PAGE.partition("## Example")[2]
    program = json.loads(re.findall(r"```json\n(.*?)```", example, flags=re.DOTALL)[0])
    rows = re.findall(r"^\| (`.*?) \| (\w+) \| `(.*?)` \|$", example, flags=re.MULTILINE)
    arrays = {
        name: np.array(ast.literal_eval(told), TYPES[kind])
        for cell, kind, told in rows
        for name in re.findall("`(.*?)`", cell)
    }
    files = signed(program, save(arrays))
    decoded = decode_program(*files)
    pixels = np.array([[[10, 201]]], dtype=np.uint8)
    found = Reference(decoded).run(torch.from_numpy(pixels)[None], keep=["patches"])
    assert found["logits"].tolist() == [[-95, 130]]
    logits = Reference(decoded)(torch.from_numpy(pixels)[None])
    assert logits.real().tolist() == [[-47.5, 65]]
    independent = NumpyExecutor(*files)
    assert independent.run(pixels)["logits"].tolist() == [[-98, 127]]
    assert independent.logits(pixels).tolist() == [-95, 130]


def test_the_table_of_operations() -> None:
    """Names, keys and tensors of each operation."""
    rows = re.findall(r"^\| `(\w+)`( R)? \|(.*?)\|(.*?)\|", PAGE.partition("| `op` |")[2], flags=re.MULTILINE)
    assert [kind for kind, *_ in rows] == list(KINDS)
    for kind, requantizes, keys, tensors in rows:
        told = {f.name: f.type for f in fields(KINDS[kind]) if f.name != "out"}
        arrays = {name for name, of in told.items() if of == "Array"}
        assert names(keys) == set(told) - arrays
        assert names(tensors) | ({"multiplier", "shift"} if requantizes else set()) == arrays
