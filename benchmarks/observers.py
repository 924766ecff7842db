"""What calibration's statistics cost: python benchmarks/observers.py [--batches 2] [--threads 2].

Feeds the tensors of a ViT-S/14 at 224 pixels (12 blocks, 257 tokens, batches of 8) to every observer in every mode,
then asks each for its range, and prints milliseconds per image, with the choice of ranges spread over 128 images.
For scale: the same model's float linear layers, attention products, softmax and GELU on the same batch.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import torch
from torch import Tensor

from vitquant.observers import OBSERVERS, ChannelLayout, Observer, make_observer

BATCH, TOKENS, DIM, HIDDEN, HEADS, BLOCKS, IMAGES = 8, 257, 384, 1536, 6, 12, 128


def block_tensors() -> list[tuple[str, Tensor]]:
    q, k, v = torch.randn(BATCH, TOKENS, 3 * DIM).chunk(3, dim=-1)
    tensors = [("attn_q_out", q), ("attn_k_out", k), ("attn_v_input", v)]
    tensors += [
        (name, torch.randn(BATCH, TOKENS, DIM)) for name in ("norm1", "attn_v_out", "residual1", "norm2", "residual2")
    ]
    scores = torch.randn(BATCH, HEADS, TOKENS, TOKENS) * 2
    gelu = torch.nn.functional.gelu(torch.randn(BATCH, TOKENS, HIDDEN))
    return [*tensors, ("mlp_gelu", gelu), ("attn_kv_out", scores), ("intSoft", scores.softmax(-1))]


def layout(name: str, x: Tensor, mode: str) -> ChannelLayout:
    if mode == "layer_wise":
        return ChannelLayout(None)
    if name in ("attn_kv_out", "intSoft"):
        return ChannelLayout(1)
    return ChannelLayout(-1, group=1 if mode == "channel_wise" else x.shape[-1] // HEADS)


def float_block() -> Callable[[], None]:
    x, h = torch.randn(BATCH * TOKENS, DIM), torch.randn(BATCH * TOKENS, HIDDEN)
    weights = [torch.randn(out, DIM) for out in (3 * DIM, DIM, HIDDEN)]
    back = torch.randn(DIM, HIDDEN)
    q = torch.randn(BATCH, HEADS, TOKENS, DIM // HEADS)

    def run() -> None:
        for weight in weights:
            torch.nn.functional.linear(x, weight)
        torch.nn.functional.gelu(h)
        torch.nn.functional.linear(h, back)
        (q @ q.transpose(-2, -1)).softmax(-1) @ q

    return run


def seconds(run: Callable[[], object]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def observers(name: str, mode: str, tensors: list[tuple[str, Tensor]]) -> list[tuple[str, Observer]]:
    return [
        (
            point,
            make_observer(name, layout(point, x, mode), percentile_alpha=0.99999, percentile_sigma=0.01, kl_bins=2048),
        )
        for _ in range(BLOCKS)
        for point, x in tensors
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batches", type=int, default=2, help="timed, after one to warm up")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--unsigned", action="store_true", help="choose unsigned ranges everywhere")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    tensors = block_tensors()
    data = dict(tensors)

    block = float_block()
    block()
    forward = min(seconds(block) for _ in range(5)) * BLOCKS * 1e3 / BATCH
    print(f"float linear layers, attention and GELU: {forward:.1f} ms/image, {args.threads} threads")
    print(f"{'observer':20}{'mode':14}{'channels':>9}{'observe':>9}{'range':>8}{'ms/image':>10}{'of float':>10}")
    for name in OBSERVERS:
        for mode in ("layer_wise", "channel_wise", "head_wise"):
            points = observers(name, mode, tensors)

            def observe(points: list[tuple[str, Observer]] = points) -> None:
                for point, observer in points:
                    observer.observe(data[point])

            def choose(points: list[tuple[str, Observer]] = points) -> None:
                for point, observer in points:
                    observer.range(bits=8, signed=point != "intSoft" and not args.unsigned)

            observe()
            observing = min(seconds(observe) for _ in range(args.batches)) * 1e3 / BATCH
            choosing = seconds(choose) * 1e3 / IMAGES
            channels = sum(len(observer.extremes.low) for _, observer in points)
            total = observing + choosing
            print(f"{name:20}{mode:14}{channels:9}{observing:9.2f}{choosing:8.2f}{total:10.2f}{total / forward:10.2f}")


if __name__ == "__main__":
    main()
