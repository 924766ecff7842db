"""Each operation of integer programs is in every room, in the file of its family."""

from __future__ import annotations

import re
from pathlib import Path
from types import ModuleType

import pytest

from support.documents import ROOT
from support.numpy_executor import NumpyExecutor
from support.random_programs import ENDS, GROWTH
from vitquant.executors.reference import attention, elementwise, executor, layernorm, linear, rotary, tokens
from vitquant.export.onnx.integer import export
from vitquant.program import ops

RUNTIME = ROOT / "runtime" / "src" / "ops"
KIND = re.compile(r'\{"(\w+)",\s*\{(?:"\w+"(?:, )?)*\},')
"""How the record of a kind begins in the runtime's sources: its name, and what it reads."""


def family(module: ModuleType) -> str:
    return module.__name__.rpartition(".")[2]


FAMILY_OF = {kind.kind: family(module) for module in ops.FAMILIES for kind in module.OPERATIONS}


def test_every_kind_belongs_to_one_family() -> None:
    assert list(FAMILY_OF) == list(ops.KINDS)
    assert all(kind.__module__ == f"vitquant.program.ops.{FAMILY_OF[name]}" for name, kind in ops.KINDS.items())


def test_the_reference_executes_every_kind() -> None:
    modules = (tokens, linear, layernorm, elementwise, rotary, attention)
    assert {op.kind: family(module) for module in modules for op in module.EXECUTE} == FAMILY_OF
    assert set(executor.EXECUTE) == set(ops.OPERATIONS)


def test_onnx_has_every_kind() -> None:
    assert {op.kind: family(module) for module in export.FAMILIES for op in module.EMIT} == FAMILY_OF


@pytest.mark.parametrize("name", sorted(set(FAMILY_OF.values())))
def test_the_runtime_has_every_kind(name: str) -> None:
    source = Path(RUNTIME / f"{name}.cpp").read_text(encoding="utf-8")
    assert set(KIND.findall(source)) == {kind for kind, of in FAMILY_OF.items() if of == name}


def test_the_independent_executor_and_the_random_programs_have_every_kind() -> None:
    assert all(callable(getattr(NumpyExecutor, kind, None)) for kind in ops.KINDS)
    grown = {*GROWTH, *ENDS} - {"softmax"} | {kind for kind in ops.KINDS if kind.startswith("softmax_")}
    assert grown == set(ops.KINDS)
