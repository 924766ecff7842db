"""Steps that choose channels or tokens, or average tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from vitquant.layers.layer import Layer, Shape, entrance
from vitquant.numerics.affine import QuantParams
from vitquant.numerics.mean import rounded_mean
from vitquant.numerics.quantized import QuantizedTensor, Value, channels_of, real


class SelectChannels(Layer):
    """Part ``index`` of ``count`` equal parts of the channels: Q, K or V out of what one projection gives."""

    def __init__(self, index: int, count: int) -> None:
        super().__init__()
        self.index, self.count = index, count

    @entrance
    def forward(self, x: Value) -> Value:
        """``[..., count * C]`` to ``[..., C]``."""
        if isinstance(x, Tensor):
            return x[..., self.part(x.shape[-1])]
        return x.channels(self.part((x.codes if isinstance(x, QuantizedTensor) else x.sums).shape[-1]))

    def part(self, width: int) -> slice:
        """Its channels among ``width``."""
        size = width // self.count
        return slice(self.index * size, (self.index + 1) * size)

    def shape_after(self, *shapes: Shape) -> Shape:
        return (*shapes[0][:-1], shapes[0][-1] // self.count)

    def params_after(self, *params: QuantParams | None) -> QuantParams | None:
        given = params[0]
        return given if given is None or given.is_scalar else channels_of(given, self.part(len(given.scale)))


class SelectToken(Layer):
    """One token of ``[B, N, C]``, as ``[B, C]``."""

    def __init__(self, index: int, name: str) -> None:
        super().__init__()
        self.index, self.name = index, name

    @property
    def label(self) -> str:
        return self.name

    @entrance
    def forward(self, x: Value) -> Value:
        """Select it."""
        if isinstance(x, QuantizedTensor):
            return x.with_codes(x.codes[:, self.index])
        return real(x)[:, self.index]

    def shape_after(self, *shapes: Shape) -> Shape:
        return shapes[0][1:]

    def params_after(self, *params: QuantParams | None) -> QuantParams | None:
        return params[0]


class SelectTokens(Layer):
    """Tokens of ``[B, N, C]`` by number, ``[B, K / together, together * C]``: some of them, in another order, or
    neighbours side by side in one.

    Args:
        index: the numbers of the tokens, ``K`` of them; -1 stands for a token of zeros, as padding is.
        name: what messages and outputs call it.
        together: how many in a row become one token.
    """

    def __init__(self, index: Sequence[int], name: str, together: int = 1) -> None:
        super().__init__()
        self.index, self.name, self.together = tuple(index), name, together
        run = range(self.index[0], self.index[0] + len(self.index))
        self.run = slice(run.start, run.stop) if run.start >= 0 and self.index == tuple(run) else None
        """Neighbours in their order, which need no gathering."""

    @property
    def label(self) -> str:
        return self.name

    @entrance
    def forward(self, x: Value) -> Value:
        """Select them."""
        if not isinstance(x, QuantizedTensor):
            return self.select(real(x), torch.zeros((), dtype=real(x).dtype, device=real(x).device))
        params = self.params_after(x.params)
        assert params is not None
        return QuantizedTensor(self.select(x.codes, x.params.zero_point.to(x.codes.dtype)), params)

    def select(self, x: Tensor, zero: Tensor) -> Tensor:
        """The tokens of ``x``, ``zero`` in the place of what is none."""
        if self.run is not None:
            found = x[:, self.run]
        else:
            index = torch.tensor(self.index, device=x.device)
            found = torch.where((index < 0)[:, None], zero, x[:, index])
        return found.reshape(len(x), -1, self.together * x.shape[-1])

    def shape_after(self, *shapes: Shape) -> Shape:
        return len(self.index) // self.together, self.together * shapes[0][-1]

    def params_after(self, *params: QuantParams | None) -> QuantParams | None:
        given = params[0]
        if given is None or given.is_scalar or self.together == 1:
            return given
        scale, zero_point = (p.repeat(self.together) for p in (given.scale, given.zero_point))
        return replace(given, scale=scale, zero_point=zero_point)


class MeanToken(Layer):
    """The mean of the tokens from ``first`` on, ``[B, N, C]`` to ``[B, C]``."""

    def __init__(self, first: int, name: str) -> None:
        super().__init__()
        self.first, self.name = first, name

    @property
    def label(self) -> str:
        return self.name

    @entrance
    def forward(self, x: Value) -> Value:
        """The mean; rounded to the input's own parameters where one scale serves all channels."""
        if isinstance(x, QuantizedTensor) and x.params.is_scalar:
            return x.with_codes(rounded_mean(x.codes[:, self.first :]).to(x.codes.dtype))
        return real(x)[:, self.first :].mean(dim=1)

    def shape_after(self, *shapes: Shape) -> Shape:
        return shapes[0][1:]

    def params_after(self, *params: QuantParams | None) -> QuantParams | None:
        return params[0] if params[0] is not None and params[0].is_scalar else None


class MeanOf(Layer):
    """The mean of several tensors of one shape, such as the logits of DeiT's two heads."""

    @entrance
    def forward(self, *parts: Value) -> Value:
        """The mean, in real numbers."""
        return torch.stack([real(part) for part in parts]).sum(0) / len(parts)
