"""What ``adapt`` is given: wrong kinds of model, weights, size; fields of the preprocessing; torch's defaults."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from support.checkpoint_states import random_state
from support.documents import documented
from vitquant.adapters.adapt import FloatModel, adapt
from vitquant.adapters.names import lookup
from vitquant.architectures.float_vit import VisionTransformer
from vitquant.data import Preprocessing
from vitquant.data.preprocessing import HALF, IMAGENET_MEAN, IMAGENET_STD
from vitquant.errors import ConfigError, ModelError, NumericsError, VitquantError

NAME = "vit_tiny_patch16_224"


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "w.safetensors"
    save_file(random_state(lookup(NAME, img_size=32).spec), path)
    return path


call: Callable[..., FloatModel] = adapt


def refusal(*args: object, **options: object) -> str:
    with pytest.raises(ModelError) as caught:
        call(*args, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("size", ["224", 224.0, (224,), (224, 224, 3), True, (True, 224), None, [], {}, (224.0, 224)])
def test_sizes_of_the_wrong_kind(size: object) -> None:
    if size is None:
        assert lookup(NAME, img_size=size).spec.img_size == (224, 224)
        return
    with pytest.raises(ModelError) as caught:
        lookup(NAME, img_size=size)  # type: ignore[arg-type]
    assert str(caught.value) == (
        f"img_size: not an image size. Got {size!r}, expected an integer, or (height, width), in pixels."
    )
    assert documented(caught.value) == (size == "224")


@pytest.mark.parametrize("size", [-1, 0, (0, 32), (32, -16), 17])
def test_sizes_that_no_patch_tiles(size: Any) -> None:
    with pytest.raises(ModelError, match="expected multiples of the patch, 16x16"):
        lookup(NAME, img_size=size)


def test_other_sizes() -> None:
    assert lookup(NAME, img_size=np.int64(32)).spec.img_size == (32, 32)
    assert lookup(NAME, img_size=[32, 48]).preprocessing.img_size == (32, 48)  # type: ignore[arg-type]
    with pytest.raises(ModelError, match=r"the image size is too large\. Got 1600000"):
        lookup(NAME, img_size=1_600_000)


def test_what_is_no_model(weights: Path) -> None:
    assert refusal(None) == "model: not a model. Got NoneType, expected a torch module or a name."
    assert refusal(None, weights=weights).startswith("model: not a model. Got NoneType")
    assert refusal(weights).endswith("Fix: pass timm's name of the architecture as model, and the file as weights.")
    assert "Got '', expected a name such as" in refusal("", weights=weights)
    assert "Got ' [red]vit\\n', expected" in refusal(" [red]vit\n", weights=weights)
    assert f"{NAME}: a model name needs weights" in refusal(NAME)


def test_what_are_no_weights(tmp_path: Path) -> None:
    for bad in (3, "", {"a": 1}, torch.zeros(1)):
        assert refusal(NAME, weights=bad).startswith("weights: not a path. Got ")
    assert "no checkpoint in the folder" in refusal(NAME, weights=tmp_path)


def test_options_that_go_with_a_name(make_vit: Callable[..., VisionTransformer]) -> None:
    for option in ({"weights": "a.pth"}, {"img_size": 8}, {"weights_entry": "model"}):
        assert "need a model name" in refusal(make_vit(), **option)


def test_the_entry_reaches_the_checkpoint(tmp_path: Path) -> None:
    spec = lookup(NAME, img_size=32).spec
    plain, averaged = random_state(spec, seed=1), random_state(spec, seed=2)
    torch.save({"state_dict": plain, "state_dict_ema": averaged}, tmp_path / "a.pth.tar")
    for entry, state in ((None, averaged), ("state_dict", plain), ("state_dict_ema", averaged)):
        model = adapt(NAME, weights=tmp_path / "a.pth.tar", img_size=32, weights_entry=entry)
        assert torch.equal(model.vit.state_dict()["norm.bias"], state["norm.bias"])
        assert any(
            f"entry {entry or 'state_dict_ema'} of the checkpoint; other entries: state_dict" in note
            for note in model.notes
        )


@pytest.mark.job
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_floats_are_read(dtype: torch.dtype, weights: Path, tmp_path: Path) -> None:
    state = {key: value.to(dtype) for key, value in random_state(lookup(NAME, img_size=32).spec).items()}
    save_file(state, tmp_path / "a.safetensors")
    model = adapt(NAME, weights=tmp_path / "a.safetensors", img_size=32)
    assert torch.equal(model.vit.state_dict()["norm.bias"], state["norm.bias"].float())
    state["norm.bias"][0] = torch.finfo(dtype).max * (2 if dtype != torch.float64 else 1)  # beyond float32
    save_file(state, tmp_path / "a.safetensors")
    with pytest.raises(NumericsError, match=r"norm\.bias: NaN or Inf in the checkpoint"):
        adapt(NAME, weights=tmp_path / "a.safetensors", img_size=32)


@pytest.fixture
def double_by_default() -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(before)


@pytest.mark.usefixtures("double_by_default")
def test_torchs_default_dtype_changes_nothing(weights: Path, make_vit: Callable[..., VisionTransformer]) -> None:
    models = [adapt(NAME, weights=weights, img_size=32), adapt(NAME, weights=weights, img_size=48), adapt(make_vit())]
    for model in models:
        assert {value.dtype for value in model.vit.state_dict().values()} == {torch.float32}
        assert model.parity_db is None or model.parity_db > 100


@pytest.mark.timm
@pytest.mark.usefixtures("double_by_default")
def test_torchs_default_dtype_and_a_model_of_timm() -> None:
    import timm

    model = adapt(timm.create_model(NAME, img_size=32, depth=1, proj_bias=False, pos_embed="none"))
    assert {value.dtype for value in model.vit.state_dict().values()} == {torch.float32}
    assert model.parity_db is not None
    assert model.parity_db > 100


def test_single_fields_of_the_preprocessing(weights: Path, make_vit: Callable[..., VisionTransformer]) -> None:
    given = {"mean": list(IMAGENET_MEAN), "std": IMAGENET_STD, "crop_pct": 1, "interpolation": "bilinear"}
    model = adapt(NAME, weights=weights, img_size=32, preprocessing=given)
    assert model.preprocessing == Preprocessing((32, 32), IMAGENET_MEAN, IMAGENET_STD, "bilinear", 1)
    assert model.overridden == tuple(given)
    model = adapt(NAME, weights=weights, img_size=32, preprocessing={"std": 0.25})
    assert model.preprocessing == Preprocessing((32, 32), HALF, (0.25, 0.25, 0.25), "bicubic", 0.9)
    assert adapt(NAME, weights=weights, img_size=32, preprocessing={}).overridden == ()
    vit = make_vit()
    assert any("are assumed" in note for note in adapt(vit, preprocessing={"mean": 0.4}).notes)
    assert adapt(vit, preprocessing={"mean": 0.4, "std": [0.2]}).notes == ()
    grey = adapt(make_vit(in_chans=1), preprocessing={"mean": 0.4, "std": 0.2})
    assert grey.preprocessing.mean == (0.4,)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"mean": (0.5, 0.5)}, r"preprocessing mean: bad value. Got \(0\.5, 0\.5\), expected one value per channel"),
        ({"mean": float("nan")}, "preprocessing mean: bad value"),
        ({"mean": ("a", "b", "c")}, "preprocessing mean: bad value"),
        ({"mean": None}, "preprocessing mean: bad value"),
        ({"mean": True}, "preprocessing mean: bad value"),
        ({"std": 0}, "preprocessing std: bad value"),
        ({"std": float("inf")}, "preprocessing std: bad value"),
        ({"std": (0.5, 0.5, -0.5)}, "preprocessing std: bad value"),
        ({"crop_pct": 1.5}, "preprocessing crop_pct: bad value"),
        ({"crop_pct": float("nan")}, "preprocessing crop_pct: bad value"),
        ({"crop_pct": "1"}, "preprocessing crop_pct: bad value"),
        ({"interpolation": "lanczos"}, "Got 'lanczos', expected bicubic or bilinear"),
        ({"interpolation": ["bicubic"]}, "preprocessing interpolation: bad value"),
        ({"crop": 1}, "unknown field. Got 'crop', expected one of img_size, mean, std, interpolation, crop_pct"),
        ({3: 1}, "unknown field"),
        ({"img_size": 32}, "preprocessing img_size: bad value"),
        ({"img_size": (16, 16)}, "does not match the input shape of the model"),
        ("bicubic", "not a preprocessing. Got str"),
    ],
)
def test_bad_values_of_the_preprocessing(given: Any, message: str, weights: Path) -> None:
    with pytest.raises(VitquantError, match=message) as caught:
        adapt(NAME, weights=weights, img_size=32, preprocessing=given)
    assert isinstance(caught.value, ConfigError | ModelError)
    assert "\n" not in str(caught.value)
