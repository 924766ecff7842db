"""The points that a configuration leaves in floating point, and their share of the model's multiplications.

Depends on the resolved configuration and the model's shape only, so it is computed before calibration.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Protocol

from vitquant.compiler.deployability import verdict
from vitquant.config import QuantConfig, ResolvedConfig
from vitquant.errors import DeployabilityError


class Shape(Protocol):
    """The fields used of a model's :class:`~vitquant.architectures.vit.ViTSpec`."""

    @property
    def patch_size(self) -> tuple[int, int]: ...
    @property
    def grid(self) -> tuple[int, int]: ...
    @property
    def in_chans(self) -> int: ...
    @property
    def embed_dim(self) -> int: ...
    @property
    def depth(self) -> int: ...
    @property
    def mlp_hidden(self) -> int: ...
    @property
    def num_classes(self) -> int: ...
    @property
    def num_tokens(self) -> int: ...


@dataclass(frozen=True)
class Product:
    """A matrix product: its multiplications per image, and the points of its operands."""

    name: str
    multiplications: int
    operands: tuple[str, ...]


@dataclass(frozen=True)
class FloatShare:
    """Points and matrix products in floating point, and their share of all multiplications, 0 to 1."""

    points: tuple[str, ...]
    products: tuple[str, ...]
    share: float

    def __str__(self) -> str:
        """One sentence.

        >>> str(FloatShare((), (), 0.0))
        'no point stays in floating point'
        >>> str(FloatShare(("head.weight", "head_dist.weight"), ("head", "head_dist"), 0.0312))
        '2 points stay in floating point, with 3.1% of the multiplications: head.weight, head_dist.weight'
        """
        if not self.points:
            return "no point stays in floating point"
        count = f"{len(self.points)} points stay" if len(self.points) > 1 else "1 point stays"
        return f"{count} in floating point, with {self.share:.1%} of the multiplications: {self.names}"

    @property
    def names(self) -> str:
        """The first five points, and the number of further points."""
        more = len(self.points) - 5
        return ", ".join(self.points[:5]) + (f" and {more} more" if more > 0 else "")


def products(shape: Shape, *, distilled: bool = False) -> Iterator[Product]:
    """All matrix products of a model; ``distilled``: with DeiT's second head."""
    tokens, dim, hidden = shape.num_tokens, shape.embed_dim, shape.mlp_hidden
    patch = shape.in_chans * shape.patch_size[0] * shape.patch_size[1]
    # The pixels are already integers.
    yield Product("patch_embed", shape.grid[0] * shape.grid[1] * patch * dim, ("patch_embed.weight",))
    for index in range(shape.depth):
        for name, multiplications, operands in (
            ("attn_qkv", tokens * dim * 3 * dim, ("norm1", "attn_qkv.weight")),
            ("attn_kv_out", tokens * tokens * dim, ("attn_q_out", "attn_k_out")),
            ("attn_v_out", tokens * tokens * dim, ("intSoft", "attn_v_input")),
            ("attn_proj", tokens * dim * dim, ("attn_v_out", "attn_proj.weight")),
            ("mlp_fc1", tokens * dim * hidden, ("norm2", "mlp_fc1.weight")),
            ("mlp_fc2", tokens * hidden * dim, ("mlp_gelu", "mlp_fc2.weight")),
        ):
            prefix = f"blocks.{index}."
            yield Product(f"{prefix}{name}", multiplications, tuple(f"{prefix}{point}" for point in operands))
    for head in ("head", "head_dist")[: 1 + distilled] if shape.num_classes else ():
        yield Product(head, dim * shape.num_classes, ("final_norm", f"{head}.weight"))


def float_share(config: Mapping[str, QuantConfig | None], shape: Shape) -> FloatShare:
    """The points and products that the configuration leaves in floating point.

    A point stays in floating point if integer execution needs it to be quantized and it is not. Outputs of linear
    layers that are requantized at another point do not count. A matrix product is float if one of its operands is.
    """
    every = list(products(shape, distilled="head_dist.weight" in config))
    kept = tuple(name for name in config if verdict(name, config).stays_float)
    in_float = [product for product in every if not set(product.operands).isdisjoint(kept)]
    total = sum(product.multiplications for product in every)
    return FloatShare(kept, tuple(p.name for p in in_float), sum(p.multiplications for p in in_float) / total)


def require_integers(config: ResolvedConfig, shape: Shape) -> None:
    """Check that a configuration leaves nothing in floating point.

    Raises:
        DeployabilityError: points stay in floating point; the message gives their share of the multiplications.
    """
    found = float_share(config, shape)
    if found.points:
        raise DeployabilityError(
            str(found),
            where="strict",
            expected="integer arithmetic at every point",
            fix="add settings for these points (`vitquant check` suggests some), or omit strict",
        )
