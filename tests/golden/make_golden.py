"""Write the golden artifact: a tiny saved model, and what it gives for a few images.

    python tests/golden/make_golden.py

Run it only when the format's version changes; then keep the old one beside the new. Releases must go on reading it.
"""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from vitquant.adapters.adapt import FloatModel
from vitquant.architectures.float_vit import VisionTransformer, ViTSpec
from vitquant.artifact.storage import save
from vitquant.data import Preprocessing
from vitquant.workflows.quantize import quantize

FOLDER = Path(__file__).parent / "tiny_vit_v1"
SPEC = ViTSpec(
    img_size=(8, 8),
    patch_size=(4, 4),
    embed_dim=16,
    depth=1,
    num_heads=2,
    mlp_hidden=32,
    num_classes=5,
    reg_tokens=1,
    layer_scale=True,
)
PREPROCESSING = Preprocessing((8, 8), (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


def make_vit() -> VisionTransformer:
    generator = torch.Generator().manual_seed(0)
    vit = VisionTransformer(SPEC).eval()
    with torch.no_grad():
        for name, value in vit.named_parameters():
            near_one = "norm" in name and name.endswith("weight")
            value.copy_(torch.randn(value.shape, generator=generator) * 0.3 + near_one)
    return vit


def pixels(count: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, 3, 8, 8), generator=generator, dtype=torch.uint8)


@torch.no_grad()
def main() -> None:
    float_model = FloatModel("tiny", make_vit(), PREPROCESSING)
    model = quantize(float_model, "vit_int8.yaml", calibration=pixels(64, seed=1))
    images = pixels(64, seed=2)
    outputs = model(PREPROCESSING.normalize(images))
    # Images on which no value lies so near a tie that another order of summation could round it the other way.
    again = model.double()(PREPROCESSING.normalize(images).double()).float()
    safe = ((outputs - again).abs().amax(1) < 1e-6).nonzero().flatten()[:4]
    save(model.float(), FOLDER)
    save_file({"images": images[safe], "outputs": outputs[safe].contiguous()}, FOLDER / "expected.safetensors")
    print(f"{FOLDER}: {len(safe)} images, the first gives {[round(v, 4) for v in outputs[safe[0]].tolist()]}")


if __name__ == "__main__":
    main()
