"""What the measurements have in common: arguments, the float model, and its final norm."""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from torch import Tensor, nn

from benchmarks.timing import CLOCKS
from vitquant.adapters.adapt import FloatModel, adapt
from vitquant.architectures.float_vit import VisionTransformer


def arguments(doc: str | None, *, photos: bool = True) -> argparse.ArgumentParser:
    """A parser with the arguments that all scripts take; ``doc`` is the script's docstring."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="append the table to this file")
    if photos:
        parser.add_argument("--weights", type=Path, required=True, help="checkpoint of the model")
        parser.add_argument("--photos", type=Path, required=True, help="folder of photos, split in two by the script")
        parser.add_argument("--model", default="vit_small_patch14_dinov2", help="name of the model")
        parser.add_argument("--img-size", type=int, default=224, help="input size in pixels")
        parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="of torch and of the peers")
    return parser


def add_clock(parser: argparse.ArgumentParser, rounds: int) -> None:
    """The arguments of scripts that compare times."""
    parser.add_argument("--rounds", type=int, default=rounds, help="each measurement is the median of so many")
    parser.add_argument("--clock", choices=CLOCKS, default="wall", help="cpu goes with --threads 1, on a busy machine")


def load_model(args: argparse.Namespace) -> FloatModel:
    """The float model that the arguments name."""
    torch.set_num_threads(args.threads)
    return adapt(args.model, weights=args.weights, img_size=args.img_size)


class FinalNorm(nn.Module):
    """The float model up to its final norm: images ``[B, C, h, w]`` to tokens ``[B, N, D]``."""

    def __init__(self, vit: VisionTransformer) -> None:
        super().__init__()
        self.vit = vit

    def forward(self, images: Tensor) -> Tensor:
        x = self.vit.embed(images)
        for block in self.vit.blocks:
            x = block(x)
        return self.vit.norm(x)  # type: ignore[no-any-return]


@torch.no_grad()
def float_forward(model: nn.Module, images: Tensor, batch_size: int) -> None:
    """Run the model over all images and throw the result away."""
    for batch in images.split(batch_size):
        model(batch)
