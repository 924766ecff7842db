"""One quantized transformer block, and its MLP."""

from __future__ import annotations

from torch import Tensor, nn

from vitquant.architectures.quant_attn import QuantAttention
from vitquant.architectures.vit import Block, LayerScale
from vitquant.config import ResolvedConfig
from vitquant.layers import QAct, QuantLinear, QuantNorm, QuantResidual
from vitquant.layers.layer import Layer, entrance, require_kind, require_tokens
from vitquant.numerics.affine import QuantParams


class QuantMlp(Layer):
    """``mlp_fc1``, GELU, ``mlp_fc2`` on ``[B, N, D]``; ``gain`` is the LayerScale that follows."""

    def __init__(
        self, block: Block, configs: ResolvedConfig, *, prefix: str, head_dim: int, gain: Tensor | None
    ) -> None:
        super().__init__()
        self.prefix = prefix

        def linear(module: nn.Linear, name: str, gain: Tensor | None = None) -> QuantLinear:
            return QuantLinear(
                input_module=module,
                out_config=configs[f"{prefix}{name}.output"],
                weight_config=configs[f"{prefix}{name}.weight"],
                layer_name=prefix + name,
                head_dim=head_dim,
                gain=gain,
            )

        self.mlp_fc1 = linear(block.mlp.fc1, "mlp_fc1")
        name = prefix + "mlp_gelu"
        self.mlp_gelu = QAct(quant_config=configs[name], act_module=block.mlp.act, layer_name=name, head_dim=head_dim)
        self.mlp_fc2 = linear(block.mlp.fc2, "mlp_fc2", gain)

    @property
    def label(self) -> str:
        return f"{self.prefix}mlp"

    def check_input(self, x: Tensor) -> None:
        require_kind(x, self.mlp_fc1.reference, self.label)
        require_tokens(x, self.mlp_fc1.float_weight.shape[1], self.label)

    @entrance
    def forward(self, x: Tensor, input_grid: QuantParams | None = None, target: QuantParams | None = None) -> Tensor:
        """Apply the MLP. ``input_grid`` is the grid of ``x``, ``target`` the one that the result is rounded to next."""
        x = self.mlp_gelu(self.mlp_fc1(x, input_grid))
        return self.mlp_fc2(x, self.mlp_gelu.grid, (target,))  # type: ignore[no-any-return]

    def finish(self) -> None:
        """Turn the statistics of a calibration into grids; fold the grid of ``mlp_gelu`` into ``mlp_fc2``."""
        self.mlp_fc1.output.finish()
        self.mlp_gelu.finish()
        self.mlp_fc2.fold(self.mlp_gelu.params)
        self.mlp_fc2.output.finish()


class QuantBlock(Layer):
    """Pre-norm transformer block on the residual stream ``[B, N, D]``."""

    def __init__(self, block: Block, configs: ResolvedConfig, *, prefix: str) -> None:
        super().__init__()
        self.prefix = prefix
        head_dim = block.attn.proj.in_features // block.attn.num_heads
        gain1, gain2 = (ls.gamma if isinstance(ls, LayerScale) else None for ls in (block.ls1, block.ls2))

        def norm(module: nn.LayerNorm, name: str) -> QuantNorm:
            return QuantNorm(module, configs[prefix + name], prefix + name, head_dim=head_dim)

        def residual(name: str) -> QuantResidual:
            return QuantResidual(prefix + name, configs[prefix + name], head_dim=head_dim)

        self.norm1 = norm(block.norm1, "norm1")
        self.attn = QuantAttention(block, configs, prefix=prefix, gain=gain1)
        self.residual1 = residual("residual1")
        self.norm2 = norm(block.norm2, "norm2")
        self.mlp = QuantMlp(block, configs, prefix=prefix, head_dim=head_dim, gain=gain2)
        self.residual2 = residual("residual2")

    @property
    def label(self) -> str:
        return self.prefix.rstrip(".") or "block"

    def check_input(self, x: Tensor) -> None:
        self.attn.check_input(x)

    @entrance
    def forward(self, x: Tensor, input_grid: QuantParams | None = None) -> Tensor:
        """``input_grid`` is the grid of the stream at the block's entry, ``None`` while it is float."""
        y = self.attn(self.norm1(x, input_grid), self.norm1.grid, self.residual1.addend_grid)
        x = self.residual1(x, y, input_grid, self.attn.attn_proj.output.grid)
        stream = self.residual1.grid
        y = self.mlp(self.norm2(x, stream), self.norm2.grid, self.residual2.addend_grid)
        return self.residual2(x, y, stream, self.mlp.mlp_fc2.output.grid)  # type: ignore[no-any-return]

    def finish(self) -> None:
        """Turn the statistics of a calibration into grids; fold the grids of the norms into the linears after them."""
        for point in (self.norm1, self.residual1, self.norm2, self.residual2):
            point.finish()
        self.attn.attn_qkv.fold(self.norm1.params)
        self.attn.finish()
        self.mlp.mlp_fc1.fold(self.norm2.params)
        self.mlp.finish()
