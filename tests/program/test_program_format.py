"""docs/program-format.md: its example runs, and its table of operations is the code's."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterable
from itertools import groupby
from operator import itemgetter

import numpy as np
import torch
from safetensors.numpy import save

from support.documents import ROOT
from support.mutations import signed
from support.numpy_executor import NumpyExecutor
from vitquant.executors.reference import Reference
from vitquant.program.ops import KINDS, Operation
from vitquant.program.ops.operation import Flag, Key, Operand, PerPlace, TensorField
from vitquant.program.storage import decode_program

PAGE = (ROOT / "docs" / "program-format.md").read_text(encoding="utf-8")
TYPES = {"F32": np.float32, "I32": np.int32, "I8": np.int8, "U8": np.uint8}


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


def axes(told: str) -> str:
    """Axes as the page writes them: ``"M/windows r*C"`` as ``[M/W, r C]``."""
    return "`[" + ", ".join(axis.replace("windows", "W").replace("*", " ") for axis in told.split()) + "]`"


def grouped(fields: Iterable[tuple[str, str]]) -> str:
    """Fields that are told alike share what is told."""
    parts = []
    for told, group in groupby(fields, key=itemgetter(1)):
        names = [f"`{name}`" for name, _ in group]
        parts.append(", ".join([*names[:-1], f"{names[-1]} {told}".rstrip()]))
    return ", ".join(parts)


def types(tensor: TensorField) -> str:
    """Such as ``I8, I16 or I32``."""
    if not tensor.types:
        return "of the result's storage type"
    *first, last = (name.replace("uint", "U").replace("int", "I") for name in tensor.types)
    return f"{', '.join(first)} or {last}" if first else last


def row(kind: type[Operation]) -> list[str]:
    """The cells of a kind, but for what it computes."""
    keys = [
        (name, axes(what.axes) if isinstance(what, Operand) else "")
        for name, what in kind.declarations.items()
        if isinstance(what, Operand | Key | Flag)
    ]
    tensors = [(name, f"{types(what)} {axes(what.axes)}") for name, what in kind.declared(TensorField).items()]
    rescales = list(kind.declared(PerPlace))
    plain = rescales == ["multiplier", "shift"]
    tensors += [] if plain else [(name, "") for name in rescales]
    return [f"`{kind.kind}`{' R' if plain else ''}", grouped(keys), grouped(tensors), axes(kind.makes)]


def test_the_table_of_operations() -> None:
    """Names, keys, tensors and axes of each operation, as its record declares them."""
    rows = PAGE.partition("| `op` |")[2].partition("\n\n")[0].splitlines()[2:]
    told = {cells[1].strip(): [cell.strip() for cell in cells[1:5]] for cells in (line.split("|") for line in rows)}
    assert list(told.values()) == [row(KINDS[re.findall(r"\w+", name)[0]]) for name in told]
    assert {re.findall(r"\w+", name)[0] for name in told} == set(KINDS)
