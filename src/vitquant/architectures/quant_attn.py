"""The quantized attention block: eight layers, each with settings of its own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from vitquant.config import ModelConfig, ResolvedConfig
from vitquant.errors import ModelError
from vitquant.layers import IntSoftmax, QAct, QuantLinear
from vitquant.layers.layer import Layer, entrance, require_kind, require_tokens
from vitquant.layers.memory import memory_named
from vitquant.layers.regrid import centred_codes, centred_limit, channels, land
from vitquant.numerics.affine import QuantParams
from vitquant.numerics.limits import INT32_MAX, LOG2_ROW_LIMIT
from vitquant.numerics.matmul import int_matmul
from vitquant.numerics.pairing import pair_scales, product_per_head
from vitquant.numerics.softmax import LOG2_MAX, divide, division_bits
from vitquant.numerics.tokens import merge_heads, split_heads

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


class QuantAttention(Layer):
    """Multi-head self-attention on ``[B, N, D]`` whose tensors become integers point by point.

    Args:
        block: any block with ``.attn.qkv``, ``.attn.proj``, ``.attn.num_heads`` and ``.attn.scale``. Its tensors are
            copied.
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
        self.num_heads, self.scale, self.prefix = attn.num_heads, float(attn.scale), prefix
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

    @property
    def label(self) -> str:
        return f"{self.prefix}attn"

    def check_input(self, x: Tensor) -> None:
        require_kind(x, self.attn_qkv.reference, self.label)
        require_tokens(x, self.attn_qkv.float_weight.shape[1], self.label)

    @entrance
    def forward(self, x: Tensor, input_grid: QuantParams | None = None, target: QuantParams | None = None) -> Tensor:
        """Attend. ``input_grid`` is the grid of ``x`` and ``target`` the one that the result is rounded to next, where
        they have one; between two known grids every step is computed in integers.
        """
        inputs = (self.attn_q_out, self.attn_k_out, self.attn_v_input)
        qkv = self.attn_qkv(x, input_grid, [point.grid for point in inputs]).chunk(3, dim=-1)
        width = qkv[0].shape[-1]
        grids = [channels(self.attn_qkv.output.grid, slice(i * width, (i + 1) * width)) for i in range(3)]
        q, k = (point(t, grid) for point, t, grid in zip(self.qk, qkv[:2], grids[:2], strict=True))
        with memory_named(self.attn_kv_out.name, x):
            scores = self.scores(q, k)
        scores = self.attn_kv_out(scores)
        weights = self.intSoft(scores, self.attn_kv_out.grid)
        v = self.attn_v_input(qkv[2], grids[2])
        with memory_named(self.attn_v_out.name, x):
            mixed = self.mix(weights, v)
        return self.attn_proj(self.attn_v_out(mixed), self.attn_v_out.grid, (target,))  # type: ignore[no-any-return]

    def scores(self, q: Tensor, k: Tensor) -> Tensor:
        """``Q K^T`` times the attention's scale, ``[B, H, N, N]``."""
        q_grid, k_grid, target = (point.grid for point in (*self.qk, self.attn_kv_out))
        if q_grid is not None and k_grid is not None and target is not None:
            unit = product_per_head(q_grid.scale, k_grid.scale, self.num_heads)
            limit = q.shape[-1] // self.num_heads * centred_limit(q_grid) * centred_limit(k_grid)
            if unit is not None and limit <= INT32_MAX:
                a, b = (split_heads(centred_codes(t, g), self.num_heads) for t, g in ((q, q_grid), (k, k_grid)))
                landed = land(int_matmul(a, b.transpose(-2, -1)), unit[:, None, None] * self.scale, target)
                if landed is not None:
                    return landed
        q, k = (split_heads(t, self.num_heads) for t in (q, k))
        return (q * self.scale) @ k.transpose(-2, -1)

    def mix(self, weights: Tensor, v: Tensor) -> Tensor:
        """The probabilities times V, ``[B, N, D]``."""
        grid, target, soft = self.attn_v_input.grid, self.attn_v_out.grid, self.intSoft
        if soft.rounding and self.attn_kv_out.rounding and grid is not None and target is not None:
            p = soft.weights(weights)
            form = soft.require_config().softmax
            rows = LOG2_ROW_LIMIT if form == "log2" else p.shape[-1] * soft.weight_limit
            if rows * centred_limit(grid) <= INT32_MAX:
                acc = int_matmul(p, split_heads(centred_codes(v, grid), self.num_heads))
                unit = grid.scale.double()
                if form == "row":
                    reciprocal, fraction = division_bits(centred_limit(grid))
                    acc = divide(acc, p.sum(-1, keepdim=True, dtype=torch.int64), reciprocal, fraction)
                    unit = unit * 2.0**-fraction
                elif form == "log2":
                    unit = unit * 2.0**-LOG2_MAX
                else:
                    per_head = soft.require_params().scale.double().reshape(-1)
                    unit = unit * per_head.expand(self.num_heads).repeat_interleave(v.shape[-1] // self.num_heads)
                landed = land(merge_heads(acc), unit, target)
                if landed is not None:
                    return landed
        return merge_heads(weights @ split_heads(v, self.num_heads))

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
