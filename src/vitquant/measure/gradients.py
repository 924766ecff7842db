"""Backward passes through linear layers with short numbers, where the processor multiplies these faster.

Gradients are multiplied with errors and averaged over random vectors, so three significant digits are enough for them.
The forward pass is unchanged.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode


def short_type(device: torch.device) -> torch.dtype | None:
    """The short type that matrix products on a device are fast in, or ``None``."""
    supported = getattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)
    return torch.bfloat16 if device.type == "cpu" and supported() else None


class ShortLinear(torch.autograd.Function):
    """``y = x W^T + b``, whose gradient with respect to ``x`` is a product of short numbers."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, short: torch.dtype) -> Tensor:
        ctx.weight = weight.to(short)
        return F.linear(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = gradients
        return (gradient.to(ctx.weight.dtype) @ ctx.weight).to(gradient.dtype), None, None, None


class ShortGradients(TorchFunctionMode):
    """Within the block, linear layers have the gradients of :class:`ShortLinear`."""

    def __init__(self, short: torch.dtype) -> None:
        super().__init__()
        self.short = short

    def __torch_function__(
        self, func: Callable[..., Any], types: Sequence[type], args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if func is F.linear and args[0].dtype == torch.float32:
            return ShortLinear.apply(*args, self.short)  # type: ignore[no-untyped-call]
        return func(*args, **(kwargs or {}))
