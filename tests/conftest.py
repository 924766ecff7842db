"""Shared by all tests: few threads, a profile for hypothesis, the choice of fast tests, a timm that imports beside a
foreign torchvision, and small models."""

import importlib.util
import os
import signal
import sys
from collections.abc import Callable
from itertools import chain
from pathlib import Path

import pytest

# Before torch is loaded: OpenMP's threads that spin while they wait are slow beside other work.
os.environ.setdefault("GOMP_SPINCOUNT", "0")

import torch
from hypothesis import settings
from torch import Tensor

from vitquant.adapters.adapt import FloatModel
from vitquant.adapters.fashion import load_fashion, load_fashion_images
from vitquant.architectures.float_vit import VisionTransformer, ViTSpec

torch.set_num_threads(2)  # the tensors are small

# Background jobs of shells and ``nohup`` ignore signals, and the processes that tests start would inherit that.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
for name in ("SIGHUP", "SIGTERM"):
    if signal.getsignal(getattr(signal, name, signal.SIGINT)) is signal.SIG_IGN:
        signal.signal(getattr(signal, name), signal.SIG_DFL)
if "PYTEST_XDIST_WORKER" in os.environ:  # processes side by side, each with several threads, wait for each other
    torch.set_num_threads(1)
    os.environ["OMP_NUM_THREADS"] = "1"  # of the processes that a test starts

# The same examples in every run; new ones with --hypothesis-profile=explore.
settings.register_profile("default", deadline=None, max_examples=50, derandomize=True)
settings.register_profile("explore", deadline=None, max_examples=1000)
settings.load_profile("default")


PACKAGES = {"timm": ("timm", "torchvision"), "native": ("vitquant_runtime",)}
"""What the tests with each of these markers need. All other tests pass where these packages are not installed."""


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--fast", action="store_true", help="only tests that are quick and need no optional package")


def pytest_configure(config: pytest.Config) -> None:
    """The optional packages are hidden from the fast tests, so that one that needs them but lacks the marker fails."""
    if config.getoption("--fast"):
        config.option.markexpr = " and ".join(f"not {marker}" for marker in ("slow", "job", *PACKAGES))
        for package in chain.from_iterable(PACKAGES.values()):
            sys.modules[package] = None  # type: ignore[assignment]


def pytest_runtest_setup(item: pytest.Item) -> None:
    for marker, packages in PACKAGES.items():
        if item.get_closest_marker(marker):
            for package in packages:
                pytest.importorskip(package)


def torchvision_loads() -> bool:
    """Whether torchvision's operators can be loaded; where it is not installed, none are missed."""
    spec = importlib.util.find_spec("torchvision")
    if spec is None or spec.origin is None:
        return True
    try:
        for binary in Path(spec.origin).parent.glob("_C.*"):
            torch.ops.load_library(str(binary))
    except OSError:
        return False
    return True


def declare_operators() -> torch.library.Library:
    """Declare the two operators that torchvision's Python code needs on import; timm imports it, and calls neither."""
    library = torch.library.Library("torchvision", "DEF")
    for name in ("nms", "qnms"):
        library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    return library


# A torchvision built for another torch cannot be imported otherwise. The declaration lives as long as this object.
TORCHVISION_OPERATORS = None if torchvision_loads() else declare_operators()


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
