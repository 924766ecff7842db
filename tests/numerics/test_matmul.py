"""Integer matrix products against NumPy's int64."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from torch import Tensor

from vitquant.numerics import matmul
from vitquant.numerics.matmul import high_part, int_matmul, low_byte

RANGES = {
    torch.int8: (-128, 127),
    torch.uint8: (0, 255),
    torch.int16: (-(2**15), 2**15 - 1),
    torch.int32: (-(2**23), 2**23 - 1),
}
SHAPES = [(1, 1, 1), (1, 64, 5), (2, 7, 1), (5, 1, 3), (3, 5, 7), (17, 24, 17), (33, 64, 20), (64, 1000, 3)]


def operands(shape: tuple[int, ...], dtype: torch.dtype, generator: torch.Generator) -> list[Tensor]:
    """Random numbers, the ends of the range at random, and each end alone."""
    low, high = RANGES[dtype]
    spread = torch.randint(low, high + 1, shape, generator=generator)
    ends = torch.where(torch.rand(shape, generator=generator) < 0.5, low, high)
    return [x.to(dtype) for x in (spread, ends, torch.full(shape, low), torch.full(shape, high))]


def expected(a: Tensor, b: Tensor) -> list[object]:
    """The product's lowest 32 bits, which are the product where it fits them."""
    wide: list[object] = (a.numpy().astype(np.int64) @ b.numpy().astype(np.int64)).astype(np.int32).tolist()
    return wide


def check(dtypes: tuple[torch.dtype, torch.dtype], shapes: list[tuple[int, int, int]]) -> None:
    generator = torch.Generator().manual_seed(0)
    for m, k, n in shapes:
        for a, b in itertools.product(operands((m, k), dtypes[0], generator), operands((k, n), dtypes[1], generator)):
            product = int_matmul(a, b)
            assert product.dtype == torch.int32
            assert product.tolist() == expected(a, b), (m, k, n)


PAIRS = list(itertools.product(RANGES, repeat=2))


@pytest.mark.parametrize("dtypes", PAIRS, ids=str)
def test_all_pairs_of_types(dtypes: tuple[torch.dtype, torch.dtype]) -> None:
    check(dtypes, SHAPES)


@pytest.mark.parametrize("dtypes", [(torch.int8, torch.int8), (torch.uint8, torch.int16)], ids=str)
def test_where_the_cpu_has_no_exact_products(
    dtypes: tuple[torch.dtype, torch.dtype], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(matmul, "int_mm_is_exact", lambda: False)
    check(dtypes, SHAPES)


@pytest.mark.job
def test_an_older_cpu() -> None:
    """Instructions of some years ago, whose sums of 8-bit products saturate; elsewhere the variable does nothing."""
    code = "import torch, test_matmul; test_matmul.check((torch.int8, torch.int8), test_matmul.SHAPES)"
    path = os.pathsep.join([os.path.dirname(__file__), *sys.path])
    environment = {**os.environ, "ONEDNN_MAX_CPU_ISA": "AVX2", "PYTHONPATH": path}
    subprocess.run([sys.executable, "-c", code], check=True, env=environment)


def laid_out(rows: int, columns: int, how: str, generator: torch.Generator) -> Tensor:
    """The same kind of matrix, in different places in memory."""

    def numbers(*shape: int) -> Tensor:
        return torch.randint(-128, 128, shape, dtype=torch.int8, generator=generator)

    match how:
        case "columns":
            return numbers(columns, rows).t()
        case "slice":
            return numbers(rows, columns + 5)[:, 2 : 2 + columns]
        case "slice of columns":
            return numbers(columns, rows + 5)[:, 2 : 2 + rows].t()
        case "repeated":
            return numbers(rows, 1).expand(rows, columns)
        case "every other":
            return numbers(rows, 2 * columns)[:, ::2]
    return numbers(rows, columns)


LAYOUTS = ("rows", "columns", "slice", "slice of columns", "repeated", "every other")


@pytest.mark.parametrize("layouts", list(itertools.product(LAYOUTS, repeat=2)), ids=str)
def test_layouts_in_memory(layouts: tuple[str, str]) -> None:
    """Views with a side of 1 have strides that mean nothing; torch's kernel takes them at their word."""
    generator = torch.Generator().manual_seed(0)
    for m, k, n in itertools.product((1, 2, 17), repeat=3):
        a, b = laid_out(m, k, layouts[0], generator), laid_out(k, n, layouts[1], generator)
        assert int_matmul(a, b).tolist() == expected(a, b), (m, k, n)


@pytest.mark.parametrize("dtypes", PAIRS, ids=str)
def test_batches(dtypes: tuple[torch.dtype, torch.dtype]) -> None:
    generator = torch.Generator().manual_seed(0)
    a = operands((2, 3, 5, 4), dtypes[0], generator)[1]
    b = operands((2, 3, 7, 4), dtypes[1], generator)[0].transpose(-1, -2)
    assert int_matmul(a, b).tolist() == expected(a, b)
    assert int_matmul(a, b[0, 0]).tolist() == expected(a, b[0, 0])


def test_every_int16_is_its_parts() -> None:
    x = torch.arange(-(2**15), 2**15).to(torch.int16)
    assert high_part(x).dtype == torch.int8
    assert torch.equal(256 * high_part(x).long() + low_byte(x).long(), x.long())


def test_every_24_bit_number_is_its_parts() -> None:
    x = torch.arange(-(2**23), 2**23, dtype=torch.int32)
    assert high_part(x).dtype == torch.int16
    assert torch.equal((high_part(x).int() << 8) + low_byte(x), x)
    beyond = torch.tensor([-(2**23) - 1, 2**23], dtype=torch.int32)
    assert not torch.equal((high_part(beyond).int() << 8) + low_byte(beyond), beyond), (
        "so the limit is there for a reason"
    )
