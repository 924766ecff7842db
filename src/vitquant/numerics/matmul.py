"""Exact products of integer matrices, by 8-bit products."""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor

SIGN = 128

SMALL_PRODUCT = 2**20
"""Multiplications of one of many products below which a call for each takes longer than plain 32-bit integers."""


def int_matmul(a: Tensor, b: Tensor) -> Tensor:
    """``a @ b`` of integers, int32 ``[..., M, N]``: ``a`` is ``[..., M, K]``, ``b`` ``[..., K, N]`` or ``[K, N]``.

    The result is exact as long as it fits 32 bits; what is added up on the way may wrap around. Operands of more than
    eight bits are taken apart into bytes; those of int32 must lie in ``[-2^23, 2^23)``, three bytes.
    """
    if a.dtype == torch.uint8:  # a - 128 is signed, and the difference is 128 times the column sums of b
        return int_matmul(signed(a), b) + SIGN * b.sum(-2, keepdim=True, dtype=torch.int32)
    if b.dtype == torch.uint8:
        return int_matmul(a, signed(b)) + SIGN * a.sum(-1, keepdim=True, dtype=torch.int32)
    if a.dtype != torch.int8:
        return (int_matmul(high_part(a), b) << 8) + int_matmul(low_byte(a), b)
    if b.dtype != torch.int8:
        return (int_matmul(a, high_part(b)) << 8) + int_matmul(a, low_byte(b))
    if b.dim() == 2:
        return int8_matmul(a.reshape(-1, a.shape[-1]), b).reshape(*a.shape[:-1], b.shape[-1])
    if a.device.type == "cpu" and a.shape[-2] * a.shape[-1] * b.shape[-1] < SMALL_PRODUCT:
        return a.to(torch.int32) @ b.to(torch.int32)
    flat_a, flat_b = a.reshape(-1, *a.shape[-2:]), b.reshape(-1, *b.shape[-2:])
    product = torch.empty(len(flat_a), a.shape[-2], b.shape[-1], dtype=torch.int32, device=a.device)
    for x, y, out in zip(flat_a, flat_b, product, strict=True):
        int8_matmul(x, y, out)
    return product.reshape(*a.shape[:-1], b.shape[-1])


def signed(x: Tensor) -> Tensor:
    """``x - 128`` of uint8 as int8: the same bits but the first."""
    return (x ^ SIGN).view(torch.int8)


def high_part(x: Tensor) -> Tensor:
    """All but the lowest byte, in the next narrower type: ``x = 256 * high + low`` with ``0 <= low < 256``."""
    narrower = {torch.int16: torch.int8, torch.int32: torch.int16}
    return (x >> 8).to(narrower[x.dtype])


def low_byte(x: Tensor) -> Tensor:
    """The lowest byte, uint8."""
    return (x & 0xFF).to(torch.uint8)


def int8_matmul(a: Tensor, b: Tensor, out: Tensor | None = None) -> Tensor:
    """``a @ b`` of int8 matrices, int32, written into ``out`` if there is one."""
    if a.device.type == "cuda":
        product = padded_int_mm(a, b)
    elif not int_mm_is_exact():
        product = a.to(torch.int32) @ b.to(torch.int32)
    else:
        return torch._int_mm(plainly_laid_out(a), plainly_laid_out(b), out=out)
    return product if out is None else out.copy_(product)


def padded_int_mm(a: Tensor, b: Tensor) -> Tensor:
    """The product on CUDA, whose kernel wants more than 16 rows, and the other sides in eights."""
    m, k, n = a.shape[0], a.shape[1], b.shape[1]
    a = torch.nn.functional.pad(a, (0, -k % 8, 0, max(0, 32 - m)))
    b = torch.nn.functional.pad(b, (0, -n % 8, 0, -k % 8))
    return torch._int_mm(a.contiguous(), b.contiguous())[:m, :n]


@cache
def int_mm_is_exact() -> bool:
    """Whether ``torch._int_mm`` is what it should be on this CPU.

    Where the CPU has no instruction for sums of four 8-bit products (VNNI on x86), the library behind it adds pairs of
    products in 16 bits, which saturate.
    """
    extremes = [torch.full((64, 64), code, dtype=torch.int8) for code in (-128, 127)]
    return all(
        bool((torch._int_mm(a, b) == 64 * a[0, 0].int() * b[0, 0].int()).all()) for a in extremes for b in extremes
    )


def plainly_laid_out(x: Tensor) -> Tensor:
    """A copy with the usual strides where a side is 1 or repeated: ``torch._int_mm`` misreads such strides on CPUs."""
    return x.clone(memory_format=torch.contiguous_format) if 1 in x.shape or 0 in x.stride() else x
