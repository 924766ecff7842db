"""Which dimension of a point's tensor is the channel."""

from __future__ import annotations

from vitquant.config import QuantConfig
from vitquant.errors import ConfigError
from vitquant.observers.layout import ChannelLayout

PER_HEAD = ("attn_kv_out", "intSoft")
"""Points on ``[B, H, N, N]``: their channel is the head. Tokens are never a channel, their number changes."""


def layout_of(name: str, config: QuantConfig | None, head_dim: int | None) -> ChannelLayout:
    """The layout of the point ``name``: the table in ``docs/numerics.md``.

    Raises:
        ConfigError: ``head_wise``, and the width of a head is not known here.
    """
    if config is None or config.calibration_mode == "layer_wise":
        return ChannelLayout(None)
    layer = name.rsplit(".", 1)[-1]
    if layer in PER_HEAD:
        return ChannelLayout(1)
    dim = 0 if layer == "weight" else -1
    if config.calibration_mode == "channel_wise":
        return ChannelLayout(dim)
    if head_dim is None:
        raise ConfigError(
            "head_wise needs to know how wide a head is",
            where=name,
            expected="a layer inside a transformer block",
            fix="use channel_wise or layer_wise here, or pass head_dim=",
        )
    return ChannelLayout(dim, group=head_dim)
