"""Quantize one attention block of the embedded ViT and show what each of its eight layers loses.

    python tests/test_quant_attn.py

The images are real, the weights trained; the settings are those of ``configs/attn_config.yaml``. As a script it needs
nothing but vitquant, so nothing here imports pytest.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from vitquant import QuantAttention, calibrate_batches, load_config_from_yaml, load_fashion, load_fashion_images
from vitquant.adapters.adapt import sqnr_db
from vitquant.layers import Mode, only, points_of, set_mode
from vitquant.numerics.quantized import real

LAYERS = ("attn_qkv", "attn_q_out", "attn_k_out", "attn_kv_out", "intSoft", "attn_v_input", "attn_v_out", "attn_proj")
BLOCK = 2


def layer_outputs(module: nn.Module, forward: Callable[[], Tensor]) -> dict[str, Tensor]:
    """Run ``forward`` and catch what leaves each layer of ``module``, by the layer's name."""
    caught: dict[str, Tensor] = {}
    for point in points_of(module):  # the last point of a layer is its output
        point.hook = lambda p, before, after: caught.update({layer_of(p.name): real(after)})
    try:
        with torch.no_grad():
            forward()
    finally:
        for point in points_of(module):
            point.hook = None
    return caught


def layer_of(point: str) -> str:
    """``blocks.2.attn_qkv.weight`` belongs to ``attn_qkv``."""
    return point.removesuffix(".weight").removesuffix(".output").rsplit(".", 1)[-1]


def compare(module: nn.Module, forward: Callable[[], Tensor], layers: Iterable[str]) -> dict[str, tuple[float, float]]:
    """SQNR in dB of every layer's output against the float model's: with only this layer quantized, and with all."""
    set_mode(module, Mode.FP32)
    exact = layer_outputs(module, forward)
    set_mode(module, Mode.QUANTIZED)
    together = layer_outputs(module, forward)
    result = {}
    for layer in layers:
        own = [point for point in points_of(module) if layer_of(point.name) == layer]
        with only(own, module):
            alone = layer_outputs(module, forward)
        result[layer] = (sqnr_db(exact[layer], alone[layer]), sqnr_db(exact[layer], together[layer]))
    return result


def print_table(title: str, rows: dict[str, tuple[float, float]]) -> None:
    print(f"\n{title}\n\n{'layer':<14}{'alone':>10}{'with all':>12}   SQNR in dB, float against quantized")
    for layer, (alone, together) in rows.items():
        print(f"{layer:<14}{alone:>10.2f}{together:>12.2f}")


def quantize_attention(calibration: int = 64, evaluation: int = 64) -> dict[str, tuple[float, float]]:
    """SQNR of the eight layers of one real attention block, each alone and all together."""
    model = load_fashion()
    calibration_images, _, test_images, _ = load_fashion_images()

    @torch.no_grad()
    def tokens(images: Tensor) -> Tensor:
        """What the block's attention gets to see: ``[B, N, D]``."""
        x = model.vit.embed(model.preprocessing.normalize(images[:, None]))
        for block in model.vit.blocks[:BLOCK]:
            x = block(x)
        return model.vit.blocks[BLOCK].norm1(x)  # type: ignore[no-any-return]

    attention = QuantAttention(model.vit.blocks[BLOCK], load_config_from_yaml("configs/attn_config.yaml"))
    calibrate_batches(attention, tokens(calibration_images[:calibration]).split(16))
    seen = tokens(test_images[:evaluation])
    return compare(attention, lambda: attention(seen), LAYERS)


# Least SQNR alone and with all layers, in dB: measured, less a margin of 2. NaN is not at least anything.
LEAST = {
    "attn_qkv": (45, 45),
    "attn_q_out": (38, 37),
    "attn_k_out": (38, 37),
    "attn_kv_out": (35, 34),
    "intSoft": (29, 27),
    "attn_v_input": (39, 38),
    "attn_v_out": (29, 28),
    "attn_proj": (44, 30),
}


@cache
def measured() -> dict[str, tuple[float, float]]:
    return quantize_attention()


def pytest_generate_tests(metafunc: Any) -> None:
    """One test for each layer; pytest calls this."""
    if "layer" in metafunc.fixturenames:
        metafunc.parametrize("layer", LAYERS)


def test_all_eight_layers_are_measured() -> None:
    assert tuple(measured()) == LAYERS == tuple(LEAST)


def test_a_layer_keeps_its_signal(layer: str) -> None:
    alone, together = measured()[layer]
    assert LEAST[layer][0] <= alone < 100, "rounded, and not beyond what 8 bits can do"
    assert LEAST[layer][1] <= together < 100


if __name__ == "__main__":
    print_table(f"Attention of block {BLOCK}, configs/attn_config.yaml", quantize_attention())
