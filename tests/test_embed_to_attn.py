"""Quantize the embedding and the first attention block of the embedded ViT; show what each of their layers loses.

    python tests/test_embed_to_attn.py

From the pixels of real images to the output of the attention, with the settings of ``configs/embed_config.yaml`` and
``configs/attn_config.yaml``. As a script it needs nothing but vitquant, so nothing here imports pytest.
"""

from __future__ import annotations

from functools import cache
from typing import Any

from torch import Tensor

from test_quant_attn import LAYERS as ATTENTION_LAYERS
from test_quant_attn import compare, print_table
from vitquant import calibrate_batches, load_config_from_yaml, load_fashion, load_fashion_images, prepare
from vitquant.adapters.adapt import FloatModel
from vitquant.architectures.vit import QuantBlock
from vitquant.layers.layer import Composite, entrance

LAYERS = ("patch_embed", "pos_embed", *ATTENTION_LAYERS)


class EmbedToAttention(Composite):
    """Images to tokens, the norm, the attention: the beginning of a quantized model."""

    def __init__(self, model: FloatModel) -> None:
        super().__init__()
        embed, attention = (load_config_from_yaml(f"configs/{part}_config.yaml") for part in ("embed", "attn"))
        whole = prepare(model, embed | attention)
        block = whole.blocks[0]
        assert isinstance(block, QuantBlock)
        self.patch_embed, self.pos_embed = whole.patch_embed, whole.pos_embed
        self.norm1, self.attention = block.norm1, block.attn

    @entrance
    def forward(self, images: Tensor) -> Tensor:
        return self.attention(self.norm1(self.pos_embed(self.patch_embed(images))))  # type: ignore[no-any-return]


def quantize_embed_to_attention(calibration: int = 64, evaluation: int = 64) -> dict[str, tuple[float, float]]:
    """SQNR of the ten layers, each alone and all together."""
    model = load_fashion()
    calibration_images, _, test_images, _ = load_fashion_images()
    module = EmbedToAttention(model)
    calibrate_batches(module, calibration_images[:calibration, None].split(16))
    images = test_images[:evaluation, None]
    return compare(module, lambda: module(images), LAYERS)


# Least SQNR alone and with all layers, in dB: measured, less a margin of 2. NaN is not at least anything.
LEAST = {
    "patch_embed": (42, 42),
    "pos_embed": (78, 43),
    "attn_qkv": (47, 42),
    "attn_q_out": (39, 37),
    "attn_k_out": (38, 37),
    "attn_kv_out": (38, 37),
    "intSoft": (31, 28),
    "attn_v_input": (40, 37),
    "attn_v_out": (36, 29),
    "attn_proj": (43, 30),
}


@cache
def measured() -> dict[str, tuple[float, float]]:
    return quantize_embed_to_attention()


def pytest_generate_tests(metafunc: Any) -> None:
    """One test for each layer; pytest calls this."""
    if "layer" in metafunc.fixturenames:
        metafunc.parametrize("layer", LAYERS)


def test_all_ten_layers_are_measured() -> None:
    assert tuple(measured()) == LAYERS == tuple(LEAST)


def test_a_layer_keeps_its_signal(layer: str) -> None:
    alone, together = measured()[layer]
    assert LEAST[layer][0] <= alone < 110
    assert LEAST[layer][1] <= together < 110


if __name__ == "__main__":
    print_table("Embedding and attention of block 0, configs/{embed,attn}_config.yaml", quantize_embed_to_attention())
