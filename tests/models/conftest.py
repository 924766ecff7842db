"""The embedded model, and small models of every architecture with random weights everywhere."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from vitquant.models.adapt import FloatModel
from vitquant.models.fashion import load_fashion, load_fashion_images
from vitquant.models.vit import VisionTransformer, ViTSpec


@pytest.fixture(scope="session")
def fashion() -> FloatModel:
    return load_fashion()


@pytest.fixture(scope="session")
def fashion_images(fashion: FloatModel) -> Tensor:
    """Sixteen test images, normalised."""
    _, _, images, _ = load_fashion_images()
    return fashion.preprocessing.normalize(images[:16, None])


@pytest.fixture(scope="session")
def calibration_images() -> Tensor:
    """Pixels of 32 calibration images."""
    images, *_ = load_fashion_images()
    return images[:32, None]


@pytest.fixture(scope="session")
def make_vit() -> Callable[..., VisionTransformer]:
    """Build a small model; no parameter is at its neutral start."""

    def make(**settings: object) -> VisionTransformer:
        small: dict[str, object] = {
            "img_size": (8, 8),
            "patch_size": (4, 4),
            "embed_dim": 16,
            "depth": 2,
            "num_heads": 2,
            "mlp_hidden": 24,
            "num_classes": 5,
        }
        vit = VisionTransformer(ViTSpec(**(small | settings))).eval()  # type: ignore[arg-type]
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for name, value in vit.named_parameters():
                near_one = "norm" in name and name.endswith("weight")
                value.copy_(torch.randn(value.shape, generator=generator) * 0.25 + near_one)
        return vit

    return make
