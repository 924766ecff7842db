"""The quantized Vision Transformer: plain ViT, DeiT, DeiT III, DINOv2."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Protocol

from torch import Tensor, nn

from vitquant.architectures.float_vit import Block, LayerScale, VisionTransformer, ViTSpec
from vitquant.architectures.model import QuantModel, pair
from vitquant.config import ModelConfig, OpenConfig, QuantConfig, ResolvedConfig
from vitquant.data.preprocessing import Preprocessing
from vitquant.errors import ModelError
from vitquant.layers import (
    AttentionScores,
    IntSoftmax,
    MeanOf,
    MeanToken,
    QAct,
    QuantEmbedding,
    QuantLinear,
    QuantNorm,
    QuantPatchEmbed,
    QuantResidual,
    SelectChannels,
    SelectToken,
    SelectTokens,
    WeightedSum,
)
from vitquant.layers.layer import Composite, entrance, require_kind, require_tokens

Settings = Mapping[str, QuantConfig | None]


class QuantViT(QuantModel):
    """A :class:`VisionTransformer` whose tensors become integers at named points.

    Args:
        vit: the float model. Its tensors are copied: neither model notices what becomes of the other.
        config: settings of all points.
        preprocessing: how pixels become the model's input; its mean and standard deviation are folded into the patch
            embedding.
    """

    spec: ViTSpec

    def __init__(self, vit: VisionTransformer, config: ModelConfig, preprocessing: Preprocessing) -> None:
        super().__init__()
        spec = self.spec = own_spec(vit.spec)
        settings = config.open()
        self.patch_embed = QuantPatchEmbed(
            vit.patch_embed.proj,
            preprocessing.mean,
            preprocessing.std,
            weight_config=settings["patch_embed.weight"],
            out_config=settings["patch_embed.output"],
            layer_name="patch_embed",
        )
        self.pos_embed = QuantEmbedding(
            vit.token_table(), spec.num_prefix, settings["pos_embed"], "pos_embed", head_dim=spec.head_dim
        )
        self.blocks = nn.ModuleList(
            QuantBlock(block, settings, prefix=f"blocks.{i}.")  # type: ignore[arg-type]
            for i, block in enumerate(vit.blocks)
        )
        norm = vit.fc_norm if spec.pool == "avg" else vit.norm
        assert isinstance(norm, nn.LayerNorm)  # the other of the two is the identity
        self.final_norm = QuantNorm(norm, settings["final_norm"], "final_norm", head_dim=spec.head_dim)
        self.pool = MeanToken(spec.num_prefix, "pool") if spec.pool == "avg" else None
        self.class_token = SelectToken(0, "class_token")
        self.patch_tokens = SelectTokens(range(spec.num_prefix, spec.num_tokens), "tokens")
        distilled = spec.dist_token and spec.num_classes > 0
        self.distillation_token = SelectToken(1, "distillation_token") if distilled else None
        self.head = linear(vit.head, "head", settings) if isinstance(vit.head, nn.Linear) else None
        self.head_dist = linear(vit.head_dist, "head_dist", settings) if vit.head_dist is not None else None
        self.both_heads = MeanOf() if distilled else None
        self.close(settings, preprocessing)

    def compose(self, images: Tensor) -> dict[str, Any]:
        x = self.stream(images)
        if self.pool is not None:
            features = self.final_norm(self.pool(x))
            return {"logits": self.classified(features, x), "tokens": self.patch_tokens(x)}
        x = self.final_norm(x)
        features = self.class_token(x)
        return {"logits": self.classified(features, x), "class_token": features, "tokens": self.patch_tokens(x)}

    def stream(self, images: Tensor) -> Any:
        """The residual stream after the last block, ``[B, N, D]``."""
        x = self.pos_embed(self.patch_embed(images))
        for block in self.blocks:
            x = block(x)
        return x

    @entrance
    def forward_features(self, images: Tensor) -> Tensor:
        """Images ``[B, C, H, W]`` to the final norm: tokens ``[B, N, D]``, with average pooling ``[B, D]``."""
        x = self.stream(images)
        return self.final_norm(x if self.pool is None else self.pool(x))  # type: ignore[no-any-return]

    def classified(self, features: Any, tokens: Any) -> Any:
        """The logits; the features themselves without a head."""
        if self.head is None:
            return features
        logits = self.head(features)
        if self.distillation_token is None or self.both_heads is None:
            return logits
        return self.both_heads(logits, (self.head_dist or self.head)(self.distillation_token(tokens)))


class QuantBlock(Composite):
    """Pre-norm transformer block on the residual stream ``[B, N, D]``."""

    def __init__(self, block: Block, settings: Settings, *, prefix: str) -> None:
        super().__init__()
        self.prefix = prefix
        head_dim = block.attn.proj.in_features // block.attn.num_heads
        gain1, gain2 = (ls.gamma if isinstance(ls, LayerScale) else None for ls in (block.ls1, block.ls2))

        def norm(module: nn.LayerNorm, name: str) -> QuantNorm:
            return QuantNorm(module, settings[prefix + name], prefix + name, head_dim=head_dim)

        def residual(name: str) -> QuantResidual:
            return QuantResidual(prefix + name, settings[prefix + name], head_dim=head_dim)

        self.norm1 = norm(block.norm1, "norm1")
        self.attn = QuantAttention(block, settings, prefix=prefix, gain=gain1)
        self.residual1 = residual("residual1")
        self.norm2 = norm(block.norm2, "norm2")
        self.mlp = QuantMlp(block, settings, prefix=prefix, head_dim=head_dim, gain=gain2)
        self.residual2 = residual("residual2")

    @entrance
    def forward(self, x: Tensor) -> Tensor:
        """Attention and MLP, each added to the stream."""
        x = self.residual1(x, self.attn(self.norm1(x)))
        return self.residual2(x, self.mlp(self.norm2(x)))  # type: ignore[no-any-return]

    @property
    def label(self) -> str:
        return self.prefix.rstrip(".") or "block"

    def check_input(self, x: Tensor) -> None:
        self.attn.check_input(x)


class QuantMlp(Composite):
    """``mlp_fc1``, GELU, ``mlp_fc2`` on ``[B, N, D]``; ``gain`` is the LayerScale that follows."""

    def __init__(self, block: Block, settings: Settings, *, prefix: str, head_dim: int, gain: Tensor | None) -> None:
        super().__init__()
        self.prefix = prefix
        self.mlp_fc1 = linear(block.mlp.fc1, f"{prefix}mlp_fc1", settings, head_dim=head_dim)
        name = f"{prefix}mlp_gelu"
        self.mlp_gelu = QAct(settings[name], block.mlp.act, name, head_dim=head_dim)
        self.mlp_fc2 = linear(block.mlp.fc2, f"{prefix}mlp_fc2", settings, head_dim=head_dim, gain=gain)

    @entrance
    def forward(self, x: Tensor) -> Tensor:
        """Apply the MLP."""
        return self.mlp_fc2(self.mlp_gelu(self.mlp_fc1(x)))  # type: ignore[no-any-return]

    @property
    def label(self) -> str:
        return f"{self.prefix}mlp"

    def check_input(self, x: Tensor) -> None:
        require_kind(x, self.mlp_fc1.reference, self.label)
        require_tokens(x, self.mlp_fc1.float_weight.shape[1], self.label)


class FloatAttention(Protocol):
    """What is read of a float attention: timm's has it, and ours."""

    qkv: nn.Linear
    proj: nn.Linear
    num_heads: int
    scale: float


class HasAttention(Protocol):
    """A transformer block, as far as its attention is concerned."""

    @property
    def attn(self) -> FloatAttention: ...


class QuantAttention(Composite):
    """Multi-head self-attention on ``[B, N, D]`` whose tensors become integers point by point.

    Args:
        block: any block with ``.attn.qkv``, ``.attn.proj``, ``.attn.num_heads`` and ``.attn.scale``. Its tensors are
            copied.
        configs: what :func:`vitquant.load_config_from_yaml` returns, in either form (a layer that is missing falls
            back to the global sections), or a table of settings by point.
        prefix: put before the names of the points, such as ``"blocks.3."``.
        gain: LayerScale that follows the attention, ``[D]``; folded into ``attn_proj``.

    Raises:
        ConfigError: the settings do not fit these layers.
        ModelError: the attention has a norm inside, which this one does not compute.
    """

    def __init__(
        self,
        block: HasAttention,
        configs: Mapping[str, Any] | ResolvedConfig | OpenConfig,
        *,
        prefix: str = "",
        gain: Tensor | None = None,
    ) -> None:
        super().__init__()
        attn = block.attn
        require_plain(attn)
        self.num_heads, self.scale, self.prefix = attn.num_heads, float(attn.scale), prefix
        head_dim = attn.proj.in_features // attn.num_heads
        own = None if isinstance(configs, ResolvedConfig | OpenConfig) else ModelConfig.from_dict(configs).open()
        settings: Settings = configs if own is None else own

        def act(name: str) -> QAct:
            return QAct(settings[prefix + name], None, prefix + name, head_dim=head_dim)

        self.attn_qkv = linear(attn.qkv, f"{prefix}attn_qkv", settings, head_dim=head_dim)
        self.q, self.k, self.v = (SelectChannels(index, 3) for index in range(3))
        self.attn_q_out = act("attn_q_out")
        self.attn_k_out = act("attn_k_out")
        self.scores = AttentionScores(attn.num_heads, self.scale, f"{prefix}attn_kv_out")
        self.attn_kv_out = act("attn_kv_out")
        self.intSoft = IntSoftmax(settings[f"{prefix}intSoft"], f"{prefix}intSoft")
        self.attn_v_input = act("attn_v_input")
        self.weighted_sum = WeightedSum(attn.num_heads, f"{prefix}attn_v_out")
        self.attn_v_out = act("attn_v_out")
        self.attn_proj = linear(attn.proj, f"{prefix}attn_proj", settings, head_dim=head_dim, gain=gain)
        if own is not None:
            own.close()

    @entrance
    def forward(self, x: Tensor) -> Tensor:
        """Attend."""
        qkv = self.attn_qkv(x)
        q, k = self.attn_q_out(self.q(qkv)), self.attn_k_out(self.k(qkv))
        weights = self.intSoft(self.attn_kv_out(self.scores(q, k)))
        v = self.attn_v_input(self.v(qkv))
        return self.attn_proj(self.attn_v_out(self.weighted_sum(weights, v)))  # type: ignore[no-any-return]

    @property
    def label(self) -> str:
        return f"{self.prefix}attn"

    def check_input(self, x: Tensor) -> None:
        require_kind(x, self.attn_qkv.reference, self.label)
        require_tokens(x, self.attn_qkv.float_weight.shape[1], self.label)


def linear(
    module: nn.Linear, name: str, settings: Settings, *, head_dim: int | None = None, gain: Tensor | None = None
) -> QuantLinear:
    """A linear layer with the settings of its two points."""
    weight, output = settings[f"{name}.weight"], settings[f"{name}.output"]
    return QuantLinear(module, output, weight, name, head_dim=head_dim, gain=gain)


def own_spec(given: ViTSpec) -> ViTSpec:
    """The same values, none of which the caller can change, should they be lists."""
    return replace(given, img_size=pair(given.img_size), patch_size=pair(given.patch_size))


def require_plain(attn: FloatAttention) -> None:
    """Refuse an attention with norms of its own (timm's ``qk_norm`` and ``scale_norm``).

    Raises:
        ModelError: there is one.
    """
    norms = {name: getattr(attn, name, None) for name in ("q_norm", "k_norm", "norm")}
    found = [
        f"{name} {type(norm).__name__}" for name, norm in norms.items() if not isinstance(norm, nn.Identity | None)
    ]
    if found:
        raise ModelError(
            "this attention normalises its queries or keys, or its output",
            where=type(attn).__name__,
            got=", ".join(found),
            expected="softmax(Q K^T) V without norms inside",
        )
