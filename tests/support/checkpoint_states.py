"""For the tests of checkpoints: a small model, random parameters for it."""

import torch
from torch import Tensor

from vitquant.architectures.float_vit import VisionTransformer, ViTSpec

SMALL = ViTSpec(img_size=(16, 16), patch_size=(4, 4), embed_dim=8, depth=2, num_heads=2, mlp_hidden=12, num_classes=5)


def random_state(spec: ViTSpec = SMALL, seed: int = 0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    with torch.device("meta"):
        shapes = {key: value.shape for key, value in VisionTransformer(spec).state_dict().items()}
    return {key: torch.randn(shape, generator=generator) * 0.2 for key, shape in shapes.items()}


def prefixed(state: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {prefix + key: value for key, value in state.items()}


def equal(found: dict[str, Tensor], wanted: dict[str, Tensor]) -> bool:
    return found.keys() == wanted.keys() and all(torch.equal(found[key], wanted[key]) for key in wanted)
