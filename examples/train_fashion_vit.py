"""Train the small ViT that vitquant ships, on Fashion-MNIST (Xiao et al., 2017; MIT licence).

    python examples/train_fashion_vit.py /usr/share/datasets/fashion-mnist OUT_DIR

The folder holds the four ``*-ubyte.gz`` files (Debian: ``apt-get install dataset-fashion-mnist``). Writes
``fashion_vit.safetensors`` and ``fashion_images.npz``: 512 calibration images from the training set and the first
2,000 images of the test set, each with its labels. About 45 minutes on two cores.
"""

from __future__ import annotations

import argparse
import gzip
import math
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from vitquant.adapters.fashion import FASHION_SPEC, MEAN, STD
from vitquant.architectures.float_vit import VisionTransformer

CALIBRATION, TEST = 512, 2000


def read_idx(path: Path) -> Tensor:
    """Read one IDX file of unsigned bytes (LeCun's MNIST format)."""
    data = gzip.decompress(path.read_bytes())
    ndim = data[3]
    shape = [int.from_bytes(data[4 + 4 * i : 8 + 4 * i], "big") for i in range(ndim)]
    return torch.from_numpy(np.frombuffer(data, np.uint8, offset=4 + 4 * ndim).reshape(shape).copy())


def normalize(images: Tensor) -> Tensor:
    """``uint8 [B, 28, 28]`` to normalised ``float32 [B, 1, 28, 28]``."""
    return (images.unsqueeze(1).float() / 255 - MEAN[0]) / STD[0]


def augment(images: Tensor, generator: torch.Generator) -> Tensor:
    """Mirror half of the images and shift all by up to two pixels."""
    flip = torch.rand(len(images), generator=generator) < 0.5
    images = torch.where(flip[:, None, None], images.flip(-1), images)
    dy, dx = (int(torch.randint(-2, 3, (), generator=generator)) for _ in range(2))
    return torch.roll(images, (dy, dx), dims=(-2, -1))


@torch.no_grad()
def top1(model: nn.Module, images: Tensor, labels: Tensor) -> float:
    """Share of images whose highest logit is the label's, in percent."""
    hits = [
        (model(normalize(x)).argmax(1) == y).sum() for x, y in zip(images.split(500), labels.split(500), strict=True)
    ]
    return 100.0 * float(sum(hits)) / len(images)


def train(data: Path, out: Path, epochs: int, batch: int, seed: int) -> None:
    """Train with AdamW, a warm-up and a cosine schedule; write weights and images."""
    x, y = read_idx(data / "train-images-idx3-ubyte.gz"), read_idx(data / "train-labels-idx1-ubyte.gz").long()
    tx, ty = read_idx(data / "t10k-images-idx3-ubyte.gz"), read_idx(data / "t10k-labels-idx1-ubyte.gz").long()
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    model = VisionTransformer(FASHION_SPEC)
    for module in model.modules():
        if isinstance(module, nn.Linear):
            nn.init.xavier_uniform_(module.weight)
            nn.init.zeros_(module.bias)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.05)
    steps = epochs * (len(x) // batch)

    def rate(step: int) -> float:
        return min(1.0, (step + 1) / 500) * 0.5 * (1 + math.cos(math.pi * step / steps))

    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, rate)
    for epoch in range(epochs):
        model.train()
        for index in torch.randperm(len(x), generator=generator).split(batch)[: len(x) // batch]:
            with torch.autocast("cpu", torch.bfloat16):
                logits = model(normalize(augment(x[index], generator)))
            loss = nn.functional.cross_entropy(logits.float(), y[index], label_smoothing=0.1)
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
        print(f"epoch {epoch + 1:2d}  loss {loss.item():.3f}  top-1 {top1(model.eval(), tx, ty):.2f} %", flush=True)
        out.mkdir(parents=True, exist_ok=True)
        save_file({k: v.contiguous() for k, v in model.state_dict().items()}, out / "fashion_vit.safetensors")
    pick = torch.randperm(len(x), generator=torch.Generator().manual_seed(seed))[:CALIBRATION]
    np.savez_compressed(
        out / "fashion_images.npz",
        calibration_images=x[pick].numpy(),
        calibration_labels=y[pick].numpy(),
        test_images=tx[:TEST].numpy(),
        test_labels=ty[:TEST].numpy(),
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    train(args.data, args.out, args.epochs, args.batch, args.seed)
