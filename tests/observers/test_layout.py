import pytest
import torch

from vitquant.errors import ModelError
from vitquant.observers import ChannelLayout


def channel_of(layout: ChannelLayout, x: torch.Tensor) -> torch.Tensor:
    """The channel of each element, read off the split of a tensor of running numbers."""
    order = layout.split(torch.arange(x.numel()).view(x.shape))
    channel = torch.arange(order.shape[1]).view(1, -1, 1).expand_as(order)
    return torch.empty(x.numel(), dtype=torch.int64).scatter_(0, order.flatten(), channel.flatten()).view(x.shape)


def test_each_mode_puts_elements_where_the_contract_says() -> None:
    tokens, scores, weight = torch.zeros(2, 5, 6), torch.zeros(2, 3, 4, 4), torch.zeros(6, 5)
    assert channel_of(ChannelLayout(None), tokens).unique().tolist() == [0]
    assert torch.equal(channel_of(ChannelLayout(-1), tokens), torch.arange(6).expand(2, 5, 6))
    assert torch.equal(channel_of(ChannelLayout(-1, 3), tokens), torch.tensor([0, 0, 0, 1, 1, 1]).expand(2, 5, 6))
    assert torch.equal(channel_of(ChannelLayout(1), scores), torch.arange(3).view(1, 3, 1, 1).expand(2, 3, 4, 4))
    assert torch.equal(channel_of(ChannelLayout(0), weight), torch.arange(6).view(6, 1).expand(6, 5))
    assert torch.equal(
        channel_of(ChannelLayout(0, 2), weight), torch.arange(3).repeat_interleave(2).view(6, 1).expand(6, 5)
    )


@pytest.mark.parametrize("layout", [ChannelLayout(None), ChannelLayout(-1), ChannelLayout(-1, 2), ChannelLayout(0, 3)])
@pytest.mark.parametrize("shape", [(6,), (6, 4), (3, 5, 6)])
def test_broadcast_goes_the_way_of_split(layout: ChannelLayout, shape: tuple[int, ...]) -> None:
    if layout.dim == -1 and shape[-1] % layout.group:
        return
    x = torch.zeros(shape)
    channels = layout.split(x).shape[1]
    values = torch.arange(channels).double()
    assert torch.equal(x + layout.broadcast(values, x.ndim), channel_of(layout, x).double())


@pytest.mark.parametrize("layout", [ChannelLayout(None), ChannelLayout(-1), ChannelLayout(-1, 4)])
def test_a_slice_of_qkv_is_not_copied(layout: ChannelLayout) -> None:
    q = torch.zeros(2, 5, 24).chunk(3, dim=-1)[1]
    assert layout.split(q).data_ptr() == q.data_ptr()


@pytest.mark.parametrize(
    ("layout", "shape"), [(ChannelLayout(-1, 4), (2, 6)), (ChannelLayout(2), (2, 6)), (ChannelLayout(-3), (2, 6))]
)
def test_a_tensor_that_does_not_fit_is_refused(layout: ChannelLayout, shape: tuple[int, ...]) -> None:
    with pytest.raises(ModelError, match=r"\[2, 6\]"):
        layout.split(torch.zeros(shape))
