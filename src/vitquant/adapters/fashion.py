"""The small ViT embedded in the package, trained on Fashion-MNIST by ``examples/train_fashion_vit.py``."""

from __future__ import annotations

from importlib import resources
from io import BytesIO

import numpy as np
import torch
from safetensors.torch import load
from torch import Tensor

from vitquant.adapters.adapt import FloatModel
from vitquant.adapters.checkpoint import build
from vitquant.architectures.float_vit import ViTSpec
from vitquant.data.preprocessing import Preprocessing
from vitquant.errors import ArtifactError

FASHION_SPEC = ViTSpec(
    img_size=(28, 28), patch_size=(4, 4), in_chans=1, embed_dim=96, depth=6, num_heads=3, mlp_hidden=384, num_classes=10
)
FASHION = "fashion_vit"
"""The embedded model's name."""

MEAN, STD = (0.2860,), (0.3530,)
CLASSES = ("T-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot")


def load_fashion() -> FloatModel:
    """The embedded model, with its weights: ``[B, 1, 28, 28]`` to ten logits, in the order of ``CLASSES``.

    Raises:
        ArtifactError: the file is missing from the installation.
    """
    vit = build(FASHION_SPEC, load(_asset("fashion_vit.safetensors")))
    return FloatModel(FASHION, vit, Preprocessing((28, 28), MEAN, STD, crop_pct=1.0))


def load_fashion_images() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Real images of Fashion-MNIST (Xiao et al., 2017; MIT licence).

    Returns:
        Calibration images ``uint8 [512, 28, 28]`` (from the training set) and labels ``int64 [512]``, test images
        ``uint8 [2000, 28, 28]`` and labels ``int64 [2000]``.

    Raises:
        ArtifactError: the file is missing from the installation.
    """
    with np.load(BytesIO(_asset("fashion_images.npz")), allow_pickle=False) as arrays:
        images, labels, test_images, test_labels = (
            torch.from_numpy(arrays[f"{part}_{kind}"])
            for part in ("calibration", "test")
            for kind in ("images", "labels")
        )
    return images, labels.long(), test_images, test_labels.long()


def _asset(name: str) -> bytes:
    file = resources.files("vitquant") / "assets" / name
    if not file.is_file():
        raise ArtifactError("a file of the package is missing", where=str(file), fix="reinstall vitquant")
    return file.read_bytes()
