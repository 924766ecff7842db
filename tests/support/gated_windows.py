"""A second family of architectures, as somebody else would add it: pre-norm blocks with windowed attention and a
relative position bias, a gated MLP, and the mean of all tokens. Float model, quantized composition, registration.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from vitquant.architectures.families import Family
from vitquant.architectures.float_vit import PatchEmbed
from vitquant.architectures.model import QuantModel
from vitquant.architectures.vit import linear
from vitquant.bounds import one_of, pair, whole
from vitquant.config import LayerSection, ModelConfig, PointKind
from vitquant.data.preprocessing import Preprocessing
from vitquant.layers import (
    AttentionScores,
    IntSoftmax,
    MeanToken,
    Product,
    QAct,
    QuantEmbedding,
    QuantNorm,
    QuantPatchEmbed,
    QuantResidual,
    SelectChannels,
    SelectTokens,
    WeightedSum,
)
from vitquant.layers.layer import Composite, entrance
from vitquant.numerics.tokens import merge_heads, split_heads


@dataclass(frozen=True)
class Spec:
    img_size: tuple[int, int] = (16, 16)
    patch_size: tuple[int, int] = (4, 4)
    in_chans: int = 3
    embed_dim: int = 24
    depth: int = 2
    num_heads: int = 3
    window: int = 2
    hidden: int = 32
    num_classes: int = 5

    @property
    def grid(self) -> tuple[int, int]:
        return self.img_size[0] // self.patch_size[0], self.img_size[1] // self.patch_size[1]

    @property
    def least_bytes(self) -> int:
        return self.depth * self.embed_dim * (4 * self.embed_dim + 3 * self.hidden)

    def into_windows(self) -> list[int]:
        """The number of each token when they are put window by window, each ``window`` by ``window`` tokens."""
        (rows, columns), side = self.grid, self.window
        numbers = np.arange(rows * columns).reshape(rows // side, side, columns // side, side)
        return numbers.swapaxes(1, 2).flatten().tolist()  # type: ignore[no-any-return]


class Block(nn.Module):
    def __init__(self, spec: Spec) -> None:
        super().__init__()
        dim, self.num_heads, self.tokens = spec.embed_dim, spec.num_heads, spec.window**2
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.qkv, self.proj = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        self.position = nn.Parameter(torch.randn(spec.num_heads, self.tokens, self.tokens))
        self.fc1, self.gate, self.fc2 = (
            nn.Linear(dim, spec.hidden),
            nn.Linear(dim, spec.hidden),
            nn.Linear(spec.hidden, dim),
        )
        self.order = spec.into_windows()

    def forward(self, x: Tensor) -> Tensor:
        batch, count, dim = x.shape
        windows = self.norm1(x)[:, self.order].reshape(-1, self.tokens, dim)
        q, k, v = (split_heads(part, self.num_heads) for part in self.qkv(windows).chunk(3, -1))
        scores = q @ k.transpose(-1, -2) * (dim // self.num_heads) ** -0.5 + self.position
        attended = self.proj(merge_heads(scores.softmax(-1) @ v)).reshape(batch, count, dim)
        x = x + attended[:, np.argsort(self.order)]
        y = self.norm2(x)
        return x + self.fc2(nn.functional.silu(self.fc1(y)) * self.gate(y))  # type: ignore[no-any-return]


class GatedWindows(nn.Module):
    def __init__(self, spec: Spec) -> None:
        super().__init__()
        self.spec = spec
        self.patch_embed = PatchEmbed(spec)  # type: ignore[arg-type]
        self.pos_embed = nn.Parameter(torch.randn(1, spec.grid[0] * spec.grid[1], spec.embed_dim) * 0.1)
        self.blocks = nn.Sequential(*(Block(spec) for _ in range(spec.depth)))
        self.norm, self.head = nn.LayerNorm(spec.embed_dim), nn.Linear(spec.embed_dim, spec.num_classes)

    def forward(self, images: Tensor) -> Tensor:
        x = self.blocks(self.patch_embed(images) + self.pos_embed)
        return self.head(self.norm(x.mean(1)))  # type: ignore[no-any-return]


class QuantBlock(Composite):
    def __init__(self, block: Block, settings: Any, prefix: str, spec: Spec) -> None:
        super().__init__()
        dim, order = spec.embed_dim // spec.num_heads, spec.into_windows()
        windows = len(order) // block.tokens

        def act(name: str, function: nn.Module | None = None) -> QAct:
            return QAct(settings[prefix + name], function, prefix + name, head_dim=dim)

        def matrix(module: nn.Linear, name: str) -> Any:
            return linear(module, prefix + name, settings, head_dim=dim)

        self.norm1, self.norm2 = (
            QuantNorm(norm, settings[prefix + name], prefix + name, head_dim=dim)
            for norm, name in ((block.norm1, "norm1"), (block.norm2, "norm2"))
        )
        self.to_windows = SelectTokens(order, f"{prefix}windows")
        self.attn_qkv = matrix(block.qkv, "attn_qkv")
        self.q, self.k, self.v = (SelectChannels(i, 3) for i in range(3))
        self.attn_q_out, self.attn_k_out = act("attn_q_out"), act("attn_k_out")
        name, table = f"{prefix}attn_kv_out", block.position
        self.scores = AttentionScores(spec.num_heads, dim**-0.5, name, windows=windows, table=table)
        self.attn_kv_out, self.softmax = (
            act("attn_kv_out"),
            IntSoftmax(settings[f"{prefix}intSoft"], f"{prefix}intSoft"),
        )
        self.attn_v_input = act("attn_v_input")
        self.weighted_sum = WeightedSum(spec.num_heads, f"{prefix}attn_v_out", windows=windows)
        self.attn_v_out = act("attn_v_out")
        self.from_windows = SelectTokens(np.argsort(order).tolist(), f"{prefix}image")
        self.attn_proj = matrix(block.proj, "attn_proj")
        self.residual1, self.residual2 = (
            QuantResidual(prefix + name, settings[prefix + name], head_dim=dim) for name in ("residual1", "residual2")
        )
        self.mlp_fc1, self.mlp_gate, self.mlp_fc2 = (
            matrix(module, name)
            for module, name in ((block.fc1, "mlp_fc1"), (block.gate, "mlp_gate"), (block.fc2, "mlp_fc2"))
        )
        self.mlp_gelu, self.mlp_product = act("mlp_gelu", nn.SiLU()), act("mlp_product")
        self.product = Product(f"{prefix}product")

    @entrance
    def forward(self, x: Tensor) -> Tensor:
        qkv = self.attn_qkv(self.to_windows(self.norm1(x)))
        scores = self.scores(self.attn_q_out(self.q(qkv)), self.attn_k_out(self.k(qkv)))
        weights, v = self.softmax(self.attn_kv_out(scores)), self.attn_v_input(self.v(qkv))
        attended = self.from_windows(self.attn_v_out(self.weighted_sum(weights, v)))
        x = self.residual1(x, self.attn_proj(attended))
        y = self.norm2(x)
        gated = self.mlp_product(self.product(self.mlp_gelu(self.mlp_fc1(y)), self.mlp_gate(y)))
        return self.residual2(x, self.mlp_fc2(gated))  # type: ignore[no-any-return]


class QuantGatedWindows(QuantModel):
    def __init__(self, model: GatedWindows, config: ModelConfig, preprocessing: Preprocessing) -> None:
        super().__init__()
        spec, settings = model.spec, config.open()
        self.spec, dim = spec, spec.embed_dim // spec.num_heads
        self.patch_embed = QuantPatchEmbed(
            model.patch_embed.proj,
            preprocessing.mean,
            preprocessing.std,
            weight_config=settings["patch_embed.weight"],
            out_config=settings["patch_embed.output"],
            layer_name="patch_embed",
        )
        self.pos_embed = QuantEmbedding(model.pos_embed, 0, settings["pos_embed"], "pos_embed", head_dim=dim)
        self.blocks = nn.ModuleList(
            QuantBlock(block, settings, f"blocks.{i}.", spec)  # type: ignore[arg-type]
            for i, block in enumerate(model.blocks)
        )
        self.pool = MeanToken(0, "pool")
        self.final_norm = QuantNorm(model.norm, settings["final_norm"], "final_norm", head_dim=dim)
        self.head = linear(model.head, "head", settings)
        self.close(settings, preprocessing)

    def compose(self, images: Tensor) -> dict[str, Any]:
        x = self.pos_embed(self.patch_embed(images))
        for block in self.blocks:
            x = block(x)
        return {"logits": self.head(self.final_norm(self.pool(x))), "tokens": x}


GATED_WINDOWS = Family(
    "gated_windows",
    Spec,
    GatedWindows,
    QuantGatedWindows,
    bounds={
        "img_size": pair(1024),
        "patch_size": pair(64),
        "in_chans": one_of(1, 3),
        **dict.fromkeys(("embed_dim", "depth", "num_heads", "window", "hidden", "num_classes"), whole(1, 4096)),
    },
    layers=(
        LayerSection("mlp_gate", "mlp", None, "second linear layer on the input of the MLP, a factor of its first"),
        LayerSection("mlp_product", "mlp", PointKind.ACTIVATION, "product of both, input of mlp_fc2"),
    ),
)
