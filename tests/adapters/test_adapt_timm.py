"""Model objects of timm, small and with random weights everywhere, read and proven equal."""

import copy
import math
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import nn

from vitquant.adapters.adapt import FloatModel, adapt, prove, sqnr_db
from vitquant.architectures.float_vit import VisionTransformer, ViTSpec
from vitquant.data import Preprocessing
from vitquant.data.preprocessing import HALF, IMAGENET_MEAN, IMAGENET_STD
from vitquant.errors import ModelError

timm = pytest.importorskip("timm")
transformer = pytest.importorskip("timm.models.vision_transformer")

pytestmark = pytest.mark.timm

SMALL = {"img_size": 48, "embed_dim": 48, "depth": 3, "num_heads": 3, "num_classes": 7}


def create(name: str = "vit_tiny_patch16_224", **settings: Any) -> nn.Module:
    """A small model of timm's in which no parameter is at its neutral start (timm's LayerScale is, at 1e-5)."""
    model: nn.Module = timm.create_model(name, pretrained=False, **(SMALL | settings))
    return randomize(model)


def randomize(model: nn.Module) -> nn.Module:
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, value in model.named_parameters():
            near_one = "norm" in name and name.endswith("weight")
            value.copy_(torch.randn(value.shape, generator=generator) * 0.2 + near_one)
    return model


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("vit_tiny_patch16_224", {}),
        ("vit_tiny_patch16_224", {"img_size": (32, 64)}),
        ("vit_tiny_patch16_224", {"in_chans": 1}),
        ("vit_tiny_patch16_224", {"num_classes": 0}),
        ("vit_tiny_patch16_224", {"qkv_bias": False}),
        ("vit_tiny_patch16_224", {"mlp_ratio": 2.5}),
        ("vit_tiny_patch16_224", {"global_pool": "avg"}),
        ("vit_tiny_patch16_224", {"global_pool": "avg", "num_classes": 0}),
        ("vit_tiny_patch16_224", {"global_pool": "avg", "class_token": False}),
        ("vit_tiny_patch16_224", {"global_pool": "avg", "reg_tokens": 2}),
        ("vit_tiny_patch16_224", {"fc_norm": True}),
        ("vit_tiny_patch16_224", {"no_embed_class": True}),
        ("vit_tiny_patch16_224", {"no_embed_class": True, "reg_tokens": 3}),
        ("vit_tiny_patch16_224", {"reg_tokens": 3, "init_values": 0.1}),
        ("vit_tiny_patch16_224", {"proj_bias": False}),
        ("vit_tiny_patch16_224", {"pos_embed": "none"}),
        ("vit_tiny_patch16_224", {"dynamic_img_size": True}),
        ("vit_tiny_patch16_224", {"drop_path_rate": 0.5, "proj_drop_rate": 0.5, "attn_drop_rate": 0.5}),
        ("deit_tiny_patch16_224", {}),
        ("deit_tiny_distilled_patch16_224", {}),
        ("deit_tiny_distilled_patch16_224", {"num_classes": 0}),
        ("deit3_small_patch16_224", {}),
        ("vit_small_patch14_dinov2", {"img_size": 42, "num_classes": 0}),
        ("vit_small_patch14_reg4_dinov2", {"img_size": 42, "num_classes": 5}),
    ],
)
def test_parity(name: str, settings: dict[str, Any]) -> None:
    theirs = create(name, **settings)
    adapted = adapt(theirs)
    assert adapted.parity_db is not None
    assert adapted.parity_db > 100
    assert not adapted.vit.training
    spec = adapted.vit.spec
    images = torch.randn(3, spec.in_chans, *spec.img_size)  # other images, and more of them, than the proof used
    with torch.no_grad():
        output, expected = adapted.vit(images), theirs.eval()(images)
    assert output.shape == expected.shape
    assert sqnr_db(expected, output) > 100


def test_what_is_read_is_a_copy() -> None:
    theirs = create().train()
    before = copy.deepcopy(theirs.state_dict())
    adapted = adapt(theirs.half())
    assert theirs.training
    assert next(theirs.parameters()).dtype == torch.float16
    weight = adapted.vit.blocks[0].attn.qkv.weight.detach().clone()
    assert weight.dtype == torch.float32
    with torch.no_grad():
        for value in theirs.parameters():
            value.zero_()
    assert torch.equal(weight, adapted.vit.blocks[0].attn.qkv.weight)
    assert (weight - before["blocks.0.attn.qkv.weight"]).abs().max() < 1e-3


def test_names_and_preprocessing_come_from_the_model() -> None:
    vit = adapt(create())
    assert vit.name.startswith("vit_tiny_patch16_224.")
    assert vit.preprocessing == Preprocessing((48, 48), HALF, HALF, "bicubic", 0.9)
    assert vit.notes == ()
    deit = adapt(create("deit_tiny_patch16_224"))
    assert deit.preprocessing == Preprocessing((48, 48), IMAGENET_MEAN, IMAGENET_STD, "bicubic", 0.9)
    bare = adapt(randomize(transformer.VisionTransformer(patch_size=16, **SMALL)))
    assert bare.preprocessing.mean == IMAGENET_MEAN
    assert "does not specify its normalisation" in bare.notes[0]
    given = Preprocessing((48, 48), HALF, HALF, "bilinear", 1.0)
    chosen = adapt(randomize(transformer.VisionTransformer(patch_size=16, **SMALL)), preprocessing=given)
    assert (chosen.preprocessing, chosen.notes) == (given, ())
    with pytest.raises(ModelError, match=r"preprocessing: does not match the input.*\[3, 32, 48\].*\[3, 48, 48\]"):
        adapt(create(), preprocessing=Preprocessing((32, 48), HALF, HALF))


def gelu_tanh() -> nn.Module:
    return nn.GELU(approximate="tanh")


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"qk_norm": True}, "qk_norm"),
        ({"pre_norm": True}, "pre_norm"),
        ({"scale_attn_norm": True}, "scale_attn_norm"),
        ({"scale_mlp_norm": True}, "scale_mlp_norm"),
        ({"global_pool": "map"}, "pooling 'map'"),
        ({"global_pool": "avgmax"}, "pooling 'avgmax'"),
        ({"global_pool": ""}, "pooling ''"),
        ({"global_pool": "avg", "fc_norm": False}, "fc_norm=False"),
        ({"global_pool": "avg", "pool_include_prefix": True}, "pool_include_prefix"),
        ({"act_layer": nn.ReLU}, r"activation ReLU\(\)"),
        ({"act_layer": "quick_gelu"}, "activation QuickGELU"),
        ({"act_layer": gelu_tanh}, "activation GELU.*tanh"),
        ({"norm_layer": "rmsnorm"}, "norm of type RmsNorm"),
        ({"mlp_layer": timm.layers.SwiGLU}, "SwiGLU"),
        ({"mlp_layer": timm.layers.GluMlp}, "GluMlp"),
        ({"final_norm": False}, "no final norm"),
        ({"block_fn": transformer.ParallelScalingBlock}, r"attention and MLP in parallel \(ParallelScalingBlock\)"),
        ({"block_fn": transformer.ParallelThingsBlock}, "several attentions and MLPs in parallel"),
        ({"block_fn": transformer.ResPostBlock, "init_values": None}, "residual post-norm"),
        ({"embed_norm_layer": partial(nn.LayerNorm, eps=1e-6)}, "a norm inside the patch embedding"),
    ],
)
def test_what_we_lack_is_named(settings: dict[str, Any], named: str) -> None:
    with pytest.raises(ModelError, match=f"parts that vitquant does not support: .*{named}") as caught:
        adapt(create(**settings))
    assert caught.value.exit_code == 2


@pytest.mark.parametrize("name", ["swin_tiny_patch4_window7_224", "resnet18"])
def test_other_models_are_refused(name: str) -> None:
    with pytest.raises(ModelError, match="not a supported Vision Transformer"):
        adapt(timm.create_model(name, pretrained=False))


def test_relative_positions_are_named() -> None:
    beit = timm.create_model("beit_base_patch16_224", pretrained=False, embed_dim=48, depth=1, num_heads=3, img_size=32)
    with pytest.raises(ModelError, match="relative positions"):
        adapt(beit)


class Scaled(transformer.Attention):  # type: ignore[misc, name-defined]
    def forward(self, x: torch.Tensor, **kwargs: Any) -> torch.Tensor:
        return 1.01 * super().forward(x, **kwargs)  # type: ignore[no-any-return]


class Reordered(transformer.Block):  # type: ignore[misc, name-defined]
    def forward(self, x: torch.Tensor, **kwargs: Any) -> torch.Tensor:
        x = x + self.norm1(self.attn(x))
        return x + self.norm2(self.mlp(x))  # type: ignore[no-any-return]


@pytest.mark.parametrize("settings", [{"block_fn": Reordered}, {"attn_layer": Scaled}])
def test_what_computes_something_else_is_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(ModelError, match=r"dB SQNR between the outputs, expected at least 80 dB") as caught:
        adapt(create(**settings))
    assert caught.value.exit_code == 2


def test_every_parameter_counts_in_the_proof() -> None:
    theirs = create("vit_small_patch14_reg4_dinov2", img_size=42).eval()
    ours = adapt(theirs).vit
    generator = torch.Generator().manual_seed(2)
    for name, value in ours.named_parameters():
        part = value[:48] if name.endswith("qkv.bias") else value  # the keys' bias cancels in softmax
        kept = part.detach().clone()
        with torch.no_grad():
            part.add_(torch.randn(part.shape, generator=generator), alpha=0.05)  # norms would not see a constant
            with pytest.raises(ModelError, match="does not match the original"):
                prove(ours, theirs, name)
            part.copy_(kept)
    assert prove(ours, theirs, "restored") > 100


def test_nan_does_not_pass_as_parity() -> None:
    theirs = create().eval()
    ours = adapt(theirs).vit
    nn.init.constant_(ours.head.bias, math.nan)
    with pytest.raises(ModelError, match="nan dB"):
        prove(ours, theirs, "nan")


def own_spec(**changes: Any) -> ViTSpec:
    base: dict[str, Any] = {"img_size": (8, 8), "patch_size": (4, 4), "embed_dim": 8, "depth": 1, "num_heads": 2}
    return ViTSpec(**(base | {"mlp_hidden": 16, "num_classes": 3} | changes))


def test_our_own_model_is_taken_as_it_is() -> None:
    vit = VisionTransformer(own_spec(in_chans=1)).eval()
    preprocessing = Preprocessing((8, 8), (0.3,), (0.2,))
    assert adapt(vit, preprocessing=preprocessing) == FloatModel("VisionTransformer", vit, preprocessing)
    assumed = adapt(vit)
    assert assumed.vit is vit
    assert "mean (0.5,) and std (0.5,) are assumed" in assumed.notes[0]
    training = VisionTransformer(own_spec()).double().train()
    ready = adapt(training).vit
    assert training.training
    assert not ready.training
    assert ready.head.weight.dtype == torch.float32


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"img_size": (9, 8)}, "multiples of the patch"),
        ({"num_heads": 3}, "a divisor of embed_dim 8"),
        ({"pool": "max"}, "unknown pool"),
        ({"class_token": False}, "no class token"),
        ({"pool": "avg", "dist_token": True}, "distilled"),
    ],
)
def test_impossible_shapes(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ModelError, match=message):
        own_spec(**changes)


def test_what_is_no_model() -> None:
    call: Callable[..., FloatModel] = adapt
    with pytest.raises(ModelError, match="Got int"):
        call(3)
    with pytest.raises(ModelError, match="need a model name"):
        call(VisionTransformer(own_spec()), img_size=8)
    with pytest.raises(ModelError, match="needs weights"):
        call("vit_tiny_patch16_224")


def test_sqnr_by_hand() -> None:
    assert sqnr_db(torch.tensor([3.0, 4.0]), torch.tensor([3.0, 4.5])) == pytest.approx(20.0)
    assert sqnr_db(torch.ones(3), torch.ones(3)) == math.inf
    assert sqnr_db(torch.zeros(3), torch.ones(3)) == -math.inf
