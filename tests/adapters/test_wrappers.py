"""Wrappers around model objects, and objects that only look like one."""

import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from support.documents import documented
from vitquant.adapters.adapt import adapt
from vitquant.adapters.wrappers import unwrap
from vitquant.architectures.float_vit import VisionTransformer
from vitquant.errors import ModelError, NumericsError


class OwnWrapper(nn.Module):
    """A user's: its forward is not the model's."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.module(x / 255)  # type: ignore[no-any-return]


class DistributedDataParallel(nn.parallel.DistributedDataParallel):
    """A subclass, and without the process group that the constructor would need."""

    def __init__(self, module: nn.Module) -> None:
        nn.Module.__init__(self)
        self.module = module


WRAPPERS: dict[str, Callable[[nn.Module], Any]] = {
    "DataParallel": nn.DataParallel,
    "DistributedDataParallel": DistributedDataParallel,
    "compiled": torch.compile,
    "compiled and parallel": lambda model: nn.DataParallel(torch.compile(model)),
    "averaged": torch.optim.swa_utils.AveragedModel,
}


@pytest.mark.parametrize("kind", WRAPPERS)
def test_wrapped_models(kind: str, make_vit: Callable[..., VisionTransformer]) -> None:
    vit = make_vit()
    adapted = adapt(WRAPPERS[kind](vit))
    assert (adapted.vit is vit) == (kind != "averaged")  # which copies
    assert all(torch.equal(a, b) for a, b in zip(adapted.vit.parameters(), vit.parameters(), strict=True))


@pytest.mark.timm
@pytest.mark.parametrize("kind", ["DataParallel", "compiled"])
def test_wrapped_models_of_timm(kind: str) -> None:
    import timm

    model = timm.create_model("vit_tiny_patch16_224", img_size=32, depth=2, embed_dim=48, num_heads=3)
    adapted = adapt(WRAPPERS[kind](model))
    assert adapted.name.startswith("vit_tiny_patch16_224")
    assert adapted.parity_db is not None
    assert adapted.parity_db > 100


def test_a_users_own_wrapper_is_not_opened(make_vit: Callable[..., VisionTransformer]) -> None:
    own = OwnWrapper(make_vit())
    assert unwrap(own) is own
    with pytest.raises(ModelError, match=r"not a supported Vision Transformer\. Got OwnWrapper"):
        adapt(own)
    for value in (None, 3, "text"):
        assert unwrap(value) is value


def test_bad_numbers_in_our_own_model(make_vit: Callable[..., VisionTransformer]) -> None:
    vit = make_vit()
    nn.init.constant_(vit.blocks[0].attn.qkv.weight, torch.nan)  # type: ignore[union-attr, arg-type]
    with pytest.raises(NumericsError, match=r"^model blocks\.0\.attn\.qkv\.weight: NaN or Inf in the model's"):
        adapt(nn.DataParallel(vit))
    with pytest.raises(ModelError, match="no data"):
        adapt(make_vit().to("meta"))


FOREIGN = {
    "Hugging Face transformers": "transformers.models.vit.modeling_vit",
    "torchvision": "torchvision.models.vision_transformer",
    "mmpretrain": "mmpretrain.models.backbones.vision_transformer",
    "OpenAI CLIP or OpenCLIP": "open_clip.transformer",
    "the DINOv2 repository": "dinov2.models.vision_transformer",
}


@pytest.mark.parametrize("library", FOREIGN)
def test_models_of_other_libraries_are_named(library: str, monkeypatch: pytest.MonkeyPatch) -> None:
    before = set(sys.modules)
    model = type("ViTModel", (nn.Module,), {"__module__": FOREIGN[library]})()
    for wrapped in (model, nn.DataParallel(model), type("Mine", (type(model),), {})()):
        with pytest.raises(ModelError, match=f"model: models of {library} are not supported. Got") as caught:
            adapt(wrapped)
        assert caught.value.exit_code == 2
    assert set(sys.modules) - before == set()


def test_a_copy_of_another_librarys_code_is_known_by_its_names() -> None:
    model = nn.Module()
    model.conv_proj = nn.Conv2d(3, 8, 4)
    with pytest.raises(ModelError, match="models of torchvision"):
        adapt(model)


@pytest.mark.timm
def test_torchvisions_own_class() -> None:
    from torchvision.models.vision_transformer import VisionTransformer as Theirs

    model = Theirs(32, 16, 1, 2, 16, 32)
    with pytest.raises(ModelError) as caught:
        adapt(model)
    assert documented(caught.value)
