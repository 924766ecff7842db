import math
import warnings

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from support.documents import documented
from vitquant import load_fashion, load_fashion_images
from vitquant.data import NormalizationWarning, Preprocessing, open_images
from vitquant.data.preprocessing import HALF, IMAGENET_MEAN, IMAGENET_STD

IMAGENET = Preprocessing((32, 32), IMAGENET_MEAN, IMAGENET_STD)
CENTRED = Preprocessing((32, 32), HALF, HALF)
MODELS = {"imagenet": IMAGENET, "centred": CENTRED}


def scenes(count: int = 6) -> Tensor:
    """Smooth pictures with dark and bright places, ``uint8 [N, 3, 32, 32]``."""
    coarse = torch.rand(count, 3, 5, 5, generator=torch.Generator().manual_seed(0))
    smooth = F.interpolate(coarse, size=(32, 32), mode="bicubic", align_corners=False)
    return (smooth * 255).round().clamp(0, 255).to(torch.uint8)


def message(images: Tensor, preprocessing: Preprocessing, batch_size: int = 2) -> str | None:
    """What a pass over the images warns of."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in open_images(images, preprocessing).batches(batch_size):
            pass
    assert len(caught) <= 1
    assert all(warning.category is NormalizationWarning for warning in caught)
    return str(caught[0].message) if caught else None


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
def test_what_is_normalised_is_taken(model: str, dtype: torch.dtype) -> None:
    assert message(MODELS[model].normalize(scenes()).to(dtype), MODELS[model]) is None
    assert message(scenes(), MODELS[model]) is None


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("value", [0, 40, 255])
def test_dull_pictures_that_are_normalised_are_taken(model: str, value: int) -> None:
    flat = torch.full((5, 3, 32, 32), value, dtype=torch.uint8)
    foggy = flat // 2 + 60 + scenes(5) // 16
    for pixels in (flat, foggy):
        assert message(MODELS[model].normalize(pixels), MODELS[model]) is None


@pytest.mark.parametrize("model", MODELS)
def test_pictures_resized_as_floats_are_taken(model: str) -> None:
    small = F.interpolate(MODELS[model].normalize(scenes()), size=(19, 19), mode="bicubic", antialias=True)
    assert message(small, Preprocessing((19, 19), MODELS[model].mean, MODELS[model].std)) is None


@pytest.mark.parametrize(
    ("model", "name", "looks"),
    [
        ("imagenet", "0..1", "pixels scaled to 0 ... 1"),
        ("centred", "0..1", "pixels scaled to 0 ... 1"),
        ("imagenet", "0..40", "pixels from 0 to 255"),
        ("imagenet", "-1..1", "pixels scaled to -1 ... 1"),
        ("centred", "imagenet", "images normalised with ImageNet's mean"),
        ("imagenet", "twice", "images normalised twice"),
        ("centred", "twice", "images normalised twice"),
    ],
)
def test_other_normalisations_are_recognised(model: str, name: str, looks: str) -> None:
    pixels, preprocessing = scenes(), MODELS[model]
    unit = pixels.float() / 255
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (preprocessing.mean, preprocessing.std))
    given = {
        "0..1": unit,
        "0..40": (pixels // 7).float(),
        "-1..1": unit * 2 - 1,
        "imagenet": IMAGENET.normalize(pixels),
        "twice": (preprocessing.normalize(pixels) - mean) / std,
    }[name]
    found = message(given, preprocessing)
    assert found is not None
    assert f"they look like {looks}" in found
    assert "Preprocessing.normalize" in found


@pytest.mark.parametrize("model", MODELS)
def test_unknown_ranges_are_found_by_their_width(model: str) -> None:
    noise = torch.randn(6, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    found = message(noise, MODELS[model])
    assert found is not None
    assert "look like" not in found
    resized = F.interpolate(scenes().float() / 255, size=(24, 24), mode="bicubic", antialias=True)
    assert message(resized, Preprocessing((24, 24), MODELS[model].mean, MODELS[model].std)) is not None


def test_one_pass_and_one_source_warn_once() -> None:
    unit = scenes().float() / 255
    source = open_images([unit[:3], unit[3:]], IMAGENET)
    with pytest.warns(NormalizationWarning) as caught:
        passes = [len(list(source.batches(1))) for _ in range(3)]
    assert passes == [6, 6, 6]
    assert len(caught) == 1


def test_a_channel_for_a_model_of_raw_pixels() -> None:
    raw = Preprocessing((32, 32), (0.0,) * 3, (1.0,) * 3)
    assert message(scenes().float() / 255, raw) is None
    found = message(CENTRED.normalize(scenes()), raw)
    assert found is not None
    assert "-1 ... 1" in found


def test_fashion() -> None:
    preprocessing = load_fashion().preprocessing
    images, _, test_images, _ = load_fashion_images()
    for pixels in (images[:64, None], test_images[:200, None], images[3:4, None]):
        assert message(preprocessing.normalize(pixels), preprocessing, 32) is None
    found = message(images[:16, None].numpy().astype(np.float32) / 255, preprocessing)  # type: ignore[arg-type]
    assert documented(f"warning: {found}")
    assert message(images[:16, None].float() / 127.5 - 1, preprocessing) is not None


def test_a_constant_in_range_says_nothing_about_its_normalisation() -> None:
    for value in (0.0, 0.5, -math.pi / 4):
        assert message(torch.full((3, 3, 32, 32), value), IMAGENET) is None
