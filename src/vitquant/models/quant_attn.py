"""The quantized attention block: eight layers, each with settings of its own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from torch import Tensor, nn

from vitquant.config import ModelConfig, ResolvedConfig
from vitquant.errors import ModelError
from vitquant.layers import IntSoftmax, QAct, QuantLinear
from vitquant.models.vit import merge_heads, split_heads
from vitquant.numerics.pairing import pair_scales

POINTS = (
    "attn_qkv.weight",
    "attn_qkv.output",
    "attn_q_out",
    "attn_k_out",
    "attn_kv_out",
    "intSoft",
    "attn_v_input",
    "attn_v_out",
    "attn_proj.weight",
    "attn_proj.output",
)


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


class QuantAttention(nn.Module):
    """Multi-head self-attention on ``[B, N, D]`` whose tensors become integers point by point.

    Args:
        block: any block with ``.attn.qkv``, ``.attn.proj``, ``.attn.num_heads`` and ``.attn.scale``.
        configs: what :func:`vitquant.load_config_from_yaml` returns, in either form (a layer that is missing falls
            back to the global sections), or a resolved table.
        prefix: put before the names of the points, such as ``"blocks.3."``.
        gain: LayerScale that follows the attention, ``[D]``; folded into ``attn_proj``.

    Raises:
        ConfigError: the settings do not fit these layers.
        ModelError: the attention has a norm inside, which this one does not compute.
    """

    def __init__(
        self,
        block: HasAttention,
        configs: Mapping[str, Any] | ResolvedConfig,
        *,
        prefix: str = "",
        gain: Tensor | None = None,
    ) -> None:
        super().__init__()
        attn = block.attn
        require_plain(attn)
        self.num_heads, self.scale = attn.num_heads, float(attn.scale)
        head_dim = attn.proj.in_features // attn.num_heads
        if not isinstance(configs, ResolvedConfig):
            configs = ModelConfig.from_dict(configs).resolve([prefix + name for name in POINTS])
        resolved = configs

        def linear(module: nn.Linear, name: str, gain: Tensor | None = None) -> QuantLinear:
            return QuantLinear(
                input_module=module,
                out_config=resolved[f"{prefix}{name}.output"],
                weight_config=resolved[f"{prefix}{name}.weight"],
                layer_name=prefix + name,
                head_dim=head_dim,
                gain=gain,
            )

        def act(name: str) -> QAct:
            return QAct(quant_config=resolved[prefix + name], layer_name=prefix + name, head_dim=head_dim)

        self.attn_qkv = linear(attn.qkv, "attn_qkv")
        self.attn_q_out = act("attn_q_out")
        self.attn_k_out = act("attn_k_out")
        self.attn_kv_out = act("attn_kv_out")
        self.intSoft = IntSoftmax(quant_config=resolved[prefix + "intSoft"], layer_name=prefix + "intSoft")
        self.attn_v_input = act("attn_v_input")
        self.attn_v_out = act("attn_v_out")
        self.attn_proj = linear(attn.proj, "attn_proj", gain)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.attn_qkv(x).chunk(3, dim=-1)
        q = split_heads(self.attn_q_out(q), self.num_heads)
        k = split_heads(self.attn_k_out(k), self.num_heads)
        scores = self.attn_kv_out((q * self.scale) @ k.transpose(-2, -1))
        weights = self.intSoft(scores, self.attn_kv_out.grid)
        v = split_heads(self.attn_v_input(v), self.num_heads)
        return self.attn_proj(self.attn_v_out(merge_heads(weights @ v)))  # type: ignore[no-any-return]

    @property
    def paired(self) -> bool:
        """Whether Q and K have a scale per channel each, and so must agree on them."""
        return all(p.active and p.layout.dim is not None and p.layout.group == 1 for p in self.qk)

    @property
    def qk(self) -> tuple[QAct, QAct]:
        """The points of Q and K."""
        return self.attn_q_out, self.attn_k_out

    def finish(self) -> None:
        """Turn the statistics of a calibration into grids, pair Q and K, fold the grid of ``attn_v_out``."""
        for point in (self.attn_qkv.output, self.attn_kv_out, self.intSoft, self.attn_v_input, self.attn_v_out):
            point.finish()
        if self.paired:
            (scale_q, low_q), (scale_k, low_k) = (point.tight_scale() for point in self.qk)
            power_of_two = any(p.require_config().quantization_method == "power_of_two" for p in self.qk)
            no_range = [int((scale == 0).sum()) for scale in (scale_q, scale_k)]
            scale_q, scale_k = pair_scales(scale_q, scale_k, self.num_heads, power_of_two)
            self.attn_q_out.adopt(scale_q, low_q)
            self.attn_k_out.adopt(scale_k, low_k)
            self.attn_q_out.no_range, self.attn_k_out.no_range = no_range
        else:
            for point in self.qk:
                point.finish()
        self.attn_proj.fold(self.attn_v_out.params)
        self.attn_proj.output.finish()


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
