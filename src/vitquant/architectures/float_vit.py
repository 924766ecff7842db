"""The float Vision Transformer that everything starts from.

Plain ViT (Dosovitskiy et al., 2021), DeiT with its distillation token (Touvron et al., 2021) and DINOv2 with
LayerScale and register tokens (Oquab et al., 2023; Darcet et al., 2024) are one architecture with a few switches.
The parameter names are timm's, so that a timm checkpoint loads as it is.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vitquant.errors import ModelError
from vitquant.numerics.tokens import merge_heads, pad_prefix, patchify, split_heads


@dataclass(frozen=True)
class ViTSpec:
    """Everything that fixes the shape of a :class:`VisionTransformer`.

    ``img_size`` and ``patch_size`` are ``(height, width)`` in pixels. ``num_classes == 0`` means no head: the model
    returns the pooled final norm. ``pool`` is ``"token"`` (class token) or ``"avg"`` (mean of the patch tokens).
    ``pos_covers_prefix`` tells whether the position embedding has rows for the class, distillation and register tokens.

    Raises:
        ModelError: if the patches do not tile the image, the heads the channels, or the tokens do not suit the pool.
    """

    img_size: tuple[int, int] = (224, 224)
    patch_size: tuple[int, int] = (16, 16)
    in_chans: int = 3
    embed_dim: int = 384
    depth: int = 12
    num_heads: int = 6
    mlp_hidden: int = 1536
    num_classes: int = 1000
    qkv_bias: bool = True
    class_token: bool = True
    dist_token: bool = False
    reg_tokens: int = 0
    pos_covers_prefix: bool = True
    layer_scale: bool = False
    pool: str = "token"
    norm_eps: float = 1e-6

    def __post_init__(self) -> None:
        if any(size < patch or size % patch for size, patch in zip(self.img_size, self.patch_size, strict=True)):
            raise ModelError(
                "the patches do not tile the image",
                where="img_size",
                got="{}x{}".format(*self.img_size),
                expected="multiples of the patch, {}x{}".format(*self.patch_size),
                fix="take {}x{}".format(*map(_nearest_multiple, self.img_size, self.patch_size)),
            )
        if self.embed_dim % self.num_heads:
            raise ModelError(
                "the heads do not divide the channels",
                where="num_heads",
                got=self.num_heads,
                expected=f"a divisor of embed_dim {self.embed_dim}",
            )
        if self.pool not in ("token", "avg"):
            raise ModelError("unknown pool", where="pool", got=repr(self.pool), expected="token or avg")
        if (self.pool == "token" or self.dist_token) and not self.class_token:
            raise ModelError("there is no class token to read", where="class_token", got=False, expected="True")
        if self.pool == "avg" and self.dist_token:
            raise ModelError("a distilled model reads its tokens", where="pool", got="'avg'", expected="token")

    @property
    def grid(self) -> tuple[int, int]:
        """Patches per column and per row."""
        return self.img_size[0] // self.patch_size[0], self.img_size[1] // self.patch_size[1]

    @property
    def num_prefix(self) -> int:
        """Tokens that stand before the patches: class, distillation, registers."""
        return int(self.class_token) + int(self.dist_token) + self.reg_tokens

    @property
    def num_tokens(self) -> int:
        """Length of the token sequence, prefix included."""
        return self.num_prefix + self.grid[0] * self.grid[1]

    @property
    def head_dim(self) -> int:
        """Channels per attention head."""
        return self.embed_dim // self.num_heads

    @property
    def least_bytes(self) -> int:
        """Bytes of all weights at one byte each, norms and biases left out."""
        dim, patch = self.embed_dim, self.in_chans * math.prod(self.patch_size)
        block = dim * (4 * dim + 2 * self.mlp_hidden)
        return dim * (patch + self.num_tokens + self.num_classes) + self.depth * block


def _nearest_multiple(size: int, patch: int) -> int:
    return max(1, round(size / patch)) * patch


class PatchEmbed(nn.Module):
    """Images ``[B, C, H, W]`` to patch tokens ``[B, grid_h * grid_w, D]``.

    The convolution's stride is its kernel, so it is a matrix product over flattened patches. It is computed as one,
    here and in the quantized model, so that both round alike.
    """

    def __init__(self, spec: ViTSpec) -> None:
        super().__init__()
        self.patch_size = spec.patch_size
        self.proj = nn.Conv2d(spec.in_chans, spec.embed_dim, spec.patch_size, stride=spec.patch_size)

    def forward(self, images: Tensor) -> Tensor:
        return F.linear(patchify(images, self.patch_size), self.proj.weight.flatten(1), self.proj.bias)


class Attention(nn.Module):
    """Multi-head self-attention on ``[B, N, D]``."""

    def __init__(self, spec: ViTSpec) -> None:
        super().__init__()
        self.num_heads = spec.num_heads
        self.scale = spec.head_dim**-0.5
        self.qkv = nn.Linear(spec.embed_dim, 3 * spec.embed_dim, bias=spec.qkv_bias)
        self.proj = nn.Linear(spec.embed_dim, spec.embed_dim)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (split_heads(t, self.num_heads) for t in self.qkv(x).chunk(3, dim=-1))
        scores = (q * self.scale) @ k.transpose(-2, -1)
        return self.proj(merge_heads(scores.softmax(dim=-1) @ v))  # type: ignore[no-any-return]


class LayerScale(nn.Module):
    """Multiplies every channel by a learned gain (Touvron et al., 2021, CaiT)."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(dim))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gamma


class Mlp(nn.Module):
    """Two linear layers with an exact (erf) GELU between them."""

    def __init__(self, spec: ViTSpec) -> None:
        super().__init__()
        self.fc1 = nn.Linear(spec.embed_dim, spec.mlp_hidden)
        self.act = nn.GELU()
        self.fc2 = nn.Linear(spec.mlp_hidden, spec.embed_dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.act(self.fc1(x)))  # type: ignore[no-any-return]


class Block(nn.Module):
    """Pre-norm transformer block on ``[B, N, D]``."""

    def __init__(self, spec: ViTSpec) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(spec.embed_dim, eps=spec.norm_eps)
        self.attn = Attention(spec)
        self.ls1 = LayerScale(spec.embed_dim) if spec.layer_scale else nn.Identity()
        self.norm2 = nn.LayerNorm(spec.embed_dim, eps=spec.norm_eps)
        self.mlp = Mlp(spec)
        self.ls2 = LayerScale(spec.embed_dim) if spec.layer_scale else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.ls1(self.attn(self.norm1(x)))
        return x + self.ls2(self.mlp(self.norm2(x)))  # type: ignore[no-any-return]


class VisionTransformer(nn.Module):
    """The float model: images ``[B, C, H, W]`` to logits ``[B, num_classes]`` (or pooled features without a head)."""

    def __init__(self, spec: ViTSpec) -> None:
        super().__init__()
        self.spec = spec
        dim = spec.embed_dim
        self.patch_embed = PatchEmbed(spec)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, dim)) if spec.class_token else None
        self.dist_token = nn.Parameter(torch.zeros(1, 1, dim)) if spec.dist_token else None
        self.reg_token = nn.Parameter(torch.zeros(1, spec.reg_tokens, dim)) if spec.reg_tokens else None
        rows = spec.num_tokens if spec.pos_covers_prefix else spec.num_tokens - spec.num_prefix
        self.pos_embed = nn.Parameter(torch.randn(1, rows, dim) * 0.02)
        self.blocks = nn.ModuleList(Block(spec) for _ in range(spec.depth))
        # With average pooling timm normalises after the pool, under another name.
        self.norm = nn.Identity() if spec.pool == "avg" else nn.LayerNorm(dim, eps=spec.norm_eps)
        self.fc_norm = nn.LayerNorm(dim, eps=spec.norm_eps) if spec.pool == "avg" else nn.Identity()
        self.head = nn.Linear(dim, spec.num_classes) if spec.num_classes else nn.Identity()
        self.head_dist = nn.Linear(dim, spec.num_classes) if spec.dist_token and spec.num_classes else None

    def token_table(self) -> Tensor:
        """What is added to the patch tokens: prefix tokens and position embedding, ``[1, N, D]``."""
        tokens: list[Tensor] = [t for t in (self.cls_token, self.dist_token, self.reg_token) if t is not None]
        count = self.spec.num_prefix
        if not count:
            return self.pos_embed
        prefix = torch.cat(tokens, dim=1)
        if not self.spec.pos_covers_prefix:
            return torch.cat([prefix, self.pos_embed], dim=1)
        return torch.cat([prefix + self.pos_embed[:, :count], self.pos_embed[:, count:]], dim=1)

    def embed(self, images: Tensor) -> Tensor:
        """Images to the start of the residual stream, ``[B, N, D]``."""
        return pad_prefix(self.patch_embed(images), self.spec.num_prefix) + self.token_table()

    def pool(self, x: Tensor) -> Tensor:
        """Tokens ``[B, N, D]`` to what the head reads: ``[B, D]``, or ``[B, 2, D]`` with a distillation token."""
        if self.spec.pool == "avg":
            return x[:, self.spec.num_prefix :].mean(dim=1)
        return x[:, :2] if self.spec.dist_token else x[:, 0]

    def forward(self, images: Tensor) -> Tensor:
        x = self.embed(images)
        for block in self.blocks:
            x = block(x)
        pooled = self.fc_norm(self.pool(self.norm(x)))
        if self.spec.dist_token:  # DeiT averages its two heads when it does not train
            second = self.head if self.head_dist is None else self.head_dist
            return (self.head(pooled[:, 0]) + second(pooled[:, 1])) / 2  # type: ignore[no-any-return]
        return self.head(pooled)  # type: ignore[no-any-return]
