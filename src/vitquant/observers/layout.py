"""Which elements of a tensor share one scale."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

from torch import Tensor

from vitquant.errors import ModelError


@dataclass(frozen=True)
class ChannelLayout:
    """How a tensor falls into channels, each with its own scale.

    ``dim`` is the channel dimension (negative counts from the end), or ``None`` where one scale serves all.
    ``group`` neighbours along it share a scale: 1 for channel_wise, the head's width for head_wise.

    >>> from torch import zeros
    >>> activations, scores, weight = zeros(2, 5, 128), zeros(2, 3, 5, 5), zeros(384, 128)
    >>> ChannelLayout(None).split(activations).shape  # layer_wise
    torch.Size([10, 1, 128])
    >>> ChannelLayout(-1).split(activations).shape  # channel_wise on [B, N, C]
    torch.Size([10, 128, 1])
    >>> ChannelLayout(-1, group=64).split(activations).shape  # head_wise on [B, N, C], heads of 64 channels
    torch.Size([10, 2, 64])
    >>> ChannelLayout(1).split(scores).shape  # per head on scores [B, H, N, N]
    torch.Size([2, 3, 25])
    >>> ChannelLayout(0).split(weight).shape  # per output row of a weight [out, in]
    torch.Size([1, 384, 128])
    """

    dim: int | None
    group: int = 1

    def split(self, x: Tensor) -> Tensor:
        """View ``x`` as ``[outer, channels, inner]``; ``channels`` is 1 for layer_wise. Copies only where it must.

        Raises:
            ModelError: ``x`` has no such dimension, or its size is not a multiple of ``group``.
        """
        x = x if x.ndim else x.reshape(1)
        if self.dim is None:  # rows are kept apart, so that a slice such as Q out of QKV stays a view
            return x.reshape(prod(x.shape[:-1]), 1, x.shape[-1])
        if not -x.ndim <= self.dim < x.ndim or x.shape[self.dim] % self.group:
            raise ModelError(
                f"the channel layout does not match the tensor (dimension {self.dim} in groups of {self.group})",
                got=f"shape {list(x.shape)}",
                expected=f"a dimension {self.dim} whose size is a multiple of {self.group}",
            )
        dim = self.dim % x.ndim
        channels = x.shape[dim] // self.group
        return x.reshape(prod(x.shape[:dim]), channels, self.group * prod(x.shape[dim + 1 :]))

    def broadcast(self, per_channel: Tensor, ndim: int) -> Tensor:
        """Turn one value per channel, ``[channels]``, into a tensor that broadcasts against one of ``ndim`` dims."""
        if self.dim is None:
            return per_channel.reshape(())
        after = ndim - 1 - self.dim % ndim
        return per_channel.repeat_interleave(self.group).reshape(-1, *[1] * after)
