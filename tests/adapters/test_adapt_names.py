"""The table of names, checked against timm itself where it is installed."""

import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

from vitquant.adapters.names import known_models, lookup
from vitquant.adapters.timm_bridge import TimmUnavailable, import_timm
from vitquant.architectures.float_vit import VisionTransformer
from vitquant.errors import ModelError


@pytest.mark.timm
@pytest.mark.parametrize("name", known_models())
def test_shapes_and_preprocessing_are_those_of_timm(name: str) -> None:
    import timm

    with torch.device("meta"):
        theirs = timm.create_model(name, pretrained=False)
        ours = VisionTransformer(lookup(name).spec)
    assert {k: v.shape for k, v in ours.state_dict().items()} == {k: v.shape for k, v in theirs.state_dict().items()}
    spec, preprocessing = lookup(name).spec, lookup(name).preprocessing
    block = theirs.blocks[0]
    assert spec.num_heads == block.attn.num_heads
    assert spec.norm_eps == block.norm1.eps == next(m.eps for m in (theirs.norm, theirs.fc_norm) if hasattr(m, "eps"))
    assert (spec.img_size, spec.pool) == (theirs.patch_embed.img_size, theirs.global_pool)
    config = timm.data.resolve_model_data_config(theirs)
    assert preprocessing.shape == config["input_size"]
    assert (preprocessing.mean, preprocessing.std) == (config["mean"], config["std"])
    assert (preprocessing.crop_pct, preprocessing.interpolation) == (config["crop_pct"], config["interpolation"])
    assert config["crop_mode"] == "center"


def test_the_usual_names_are_known() -> None:
    names = known_models()
    assert len(names) == len(set(names))
    for name in (
        *(f"vit_{s}_patch16_{i}" for s in ("tiny", "small", "base", "large") for i in (224, 384)),
        *(f"vit_{s}_patch32_{i}" for s in ("small", "base") for i in (224, 384)),
        *(f"deit_{s}_{d}patch16_224" for s in ("tiny", "small", "base") for d in ("", "distilled_")),
        *(f"vit_{s}_patch14_{r}dinov2" for s in ("small", "base", "large") for r in ("", "reg4_")),
        *("vit_base_patch8_224", "deit_base_patch16_384", "deit3_medium_patch16_224", "deit3_large_patch16_384"),
    ):
        assert name in names


def test_another_size() -> None:
    square = lookup("vit_small_patch14_dinov2", img_size=224)
    assert square.spec.img_size == square.preprocessing.img_size == (224, 224)
    assert square.spec.grid == (16, 16)
    assert lookup("vit_small_patch14_dinov2", img_size=(28, 140)).spec.grid == (2, 10)


@pytest.mark.parametrize(("size", "fix"), [(225, "224x224"), (8, "14x14"), (0, "14x14"), ((224, 230), "224x224")])
def test_a_size_that_the_patches_do_not_tile(size: int, fix: str) -> None:
    with pytest.raises(ModelError, match=rf"expected multiples of the patch, 14x14\. Fix: take {fix}") as caught:
        lookup("vit_small_patch14_dinov2", img_size=size)
    assert caught.value.exit_code == 2


def test_unknown_names_get_the_closest() -> None:
    with pytest.raises(ModelError, match=r"Got vit_smal_patch16_224, expected .*vit_small_patch16_224") as caught:
        lookup("vit_smal_patch16_224")
    assert caught.value.exit_code == 2
    with pytest.raises(ModelError, match="unknown model name"):
        lookup("resnet50")


@pytest.mark.timm
def test_a_tag_picks_its_own_preprocessing() -> None:
    assert lookup("vit_small_patch16_224.augreg_in1k").preprocessing.mean == (0.5, 0.5, 0.5)
    dino = lookup("vit_small_patch16_224.dino")
    assert dino.preprocessing.mean == (0.485, 0.456, 0.406)
    assert (dino.name, dino.base, dino.notes) == ("vit_small_patch16_224.dino", "vit_small_patch16_224", ())
    with pytest.raises(ModelError, match=r"unknown tag.*augreg_in1k"):
        lookup("vit_small_patch16_224.nonsense")


def test_a_tag_without_timm_is_noted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    named = lookup("vit_small_patch16_224.dino")
    assert named.preprocessing == lookup("vit_small_patch16_224").preprocessing
    assert "timm is not installed" in named.notes[0]
    assert named.notes[0].endswith("is used. Install it with: pip install 'vitquant[timm]'.")


@pytest.mark.parametrize(
    ("source", "reason", "advice"),
    [
        (
            "raise RuntimeError('operator torchvision::nms does not exist')",
            "RuntimeError: operator torchvision::nms does not exist",
            f"Install the torchvision that belongs to torch {torch.__version__}: https://pytorch.org/get-started",
        ),
        (
            "import not_there.at_all",
            "ModuleNotFoundError: No module named 'not_there'",
            "Install its dependencies with: pip install 'vitquant[timm]'",
        ),
        (
            "import torchvision.not_there",
            "ModuleNotFoundError: No module named 'torchvision.not_there'; 'torchvision' is not a package",
            f"Install the torchvision that belongs to torch {torch.__version__}: https://pytorch.org/get-started",
        ),
        ("1 / 0", "ZeroDivisionError: division by zero", "To find the cause, run: python -c 'import timm'"),
    ],
)
def test_what_to_do_about_a_broken_timm(
    source: str, reason: str, advice: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "timm.py").write_text(source)
    monkeypatch.setitem(sys.modules, "torchvision", ModuleType("torchvision"))
    monkeypatch.delitem(sys.modules, "timm", raising=False)
    monkeypatch.syspath_prepend(tmp_path)
    unavailable = import_timm()
    assert unavailable == TimmUnavailable(f"timm cannot be imported ({reason})", advice)
    note = lookup("vit_small_patch16_224.dino").notes[0]
    assert note.startswith(f"timm cannot be imported ({reason}), so the tag of vit_small_patch16_224.dino is ignored")
    assert note.endswith(f"is used. {advice}.")
