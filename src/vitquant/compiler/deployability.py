"""What integers will do at each point, and which settings only a simulation can follow.

Works on the resolved configuration alone, so a file can be checked before there is a model.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from vitquant.config import QuantConfig, ResolvedConfig
from vitquant.config.catalogue import section_of
from vitquant.errors import DeployabilityError
from vitquant.numerics.limits import MAX_NORM_CHANNELS


class Dimensions(Protocol):
    """What is read of a model's shape."""

    @property
    def embed_dim(self) -> int: ...
    @property
    def head_dim(self) -> int: ...
    @property
    def num_tokens(self) -> int: ...


KEPT_FLOAT = "float"
"""The action at a point that stays float."""


@dataclass(frozen=True)
class Verdict:
    """What integers do at one point. ``problem`` is ``None`` where it ships; ``fix`` is what would ship."""

    point: str
    action: str
    problem: str | None = None
    fix: str | None = None
    configured: bool = True

    @property
    def ships(self) -> bool:
        """Whether integers can execute the point."""
        return self.problem is None

    @property
    def stays_float(self) -> bool:
        """Whether the point has no integers although the model's integers would need some there."""
        return self.action == KEPT_FLOAT


FOLDED = {
    "norm1": "attn_qkv",
    "attn_v_out": "attn_proj",
    "norm2": "mlp_fc1",
    "mlp_gelu": "mlp_fc2",
    "final_norm": "head",
}
"""Points whose scales leave the sum of the linear layer after them by being folded into its weights."""

MADE = {
    **dict.fromkeys(("norm1", "norm2", "final_norm"), "integer LayerNorm; "),
    "mlp_gelu": "table from mlp_fc1's codes; ",
}
"""How the integers at some of these points come about."""

STREAM = ("pos_embed", "residual1", "residual2")
NORMS = ("norm1", "norm2", "final_norm")
DIRECT = {
    "patch_embed.output": "pos_embed",
    "attn_qkv.output": "attn_q_out, attn_k_out and attn_v_input",
    "attn_proj.output": "residual1",
    "mlp_fc2.output": "residual2",
    "head.output": "the logits",
}
"""Outputs of linear layers that need no grid of their own, and where their accumulators go instead."""

SOFTMAX = {
    "row": "table of exponentials; one division a row after the product with V",
    "uniform": "table of exponentials; shares of the row's sum on an affine grid",
    "log2": "table of exponentials; shares rounded to powers of two",
}


def verdicts(config: ResolvedConfig, dimensions: Dimensions | None = None) -> list[Verdict]:
    """One verdict for each point, in order; with ``dimensions`` also on what depends on the model's shape."""
    return [verdict(name, config, dimensions) for name in config]


def require_deployable(config: ResolvedConfig, dimensions: Dimensions) -> None:
    """Refuse a configuration that integers cannot execute as a whole model.

    Raises:
        DeployabilityError: naming the points, the reasons and the nearest settings that ship.
    """
    found = verdicts(config, dimensions)
    if not all(v.ships for v in found):
        raise refusal(found)


def refusal(found: Sequence[Verdict]) -> DeployabilityError:
    """The error about the verdicts that do not ship, of which there is at least one."""
    refused = [v for v in found if not v.ships]
    first, more = refused[0], len(refused) - 1
    names = ", ".join(v.point for v in refused[1:6]) + (", ..." if more > 5 else "")
    others = f" ({more} more: {names})" if more else ""
    return DeployabilityError(
        f"integers cannot execute this: {first.problem}{others}",
        where=first.point,
        fix=f"{first.fix}; `vitquant check` lists every point",
    )


def verdict(name: str, config: Mapping[str, QuantConfig | None], dimensions: Dimensions | None = None) -> Verdict:
    """What integers do at the point ``name``."""
    section, own = section_of(name), config[name]
    configured = own is not None
    if own is None or not own.output_quant_enable:
        if section in DIRECT:
            return Verdict(name, f"not rounded: accumulators go straight to {DIRECT[section]}", configured=configured)
        settings = "calibration_mode: layer_wise, bit_type: {bits: 16}" if section in STREAM else "bit_type: {bits: 8}"
        fix = f"add `{section}: {{{settings}}}`" if own is None else "set output_quant_enable: True"
        return Verdict(name, KEPT_FLOAT, "it stays float", fix, configured)
    if section.endswith(".weight"):
        return Verdict(name, weight_action(own))
    if section in STREAM:
        return stream_verdict(name, own)
    if section in NORMS and dimensions is not None and dimensions.embed_dim > MAX_NORM_CHANNELS:
        problem = f"integer LayerNorm would overflow beyond {MAX_NORM_CHANNELS} channels, here {dimensions.embed_dim}"
        return Verdict(name, "", problem, "a model with fewer channels")
    if section in ("attn_q_out", "attn_k_out"):
        return pairing_verdict(name, section, config, dimensions)
    if section == "attn_v_input" and dimensions is not None:
        overflow = mix_overflow(own, config[name.replace("attn_v_input", "intSoft")], dimensions)
        if overflow:
            return Verdict(name, "", overflow, "give attn_v_input or intSoft fewer bits")
    return Verdict(name, ACTIONS.get(section, output_action)(section, own))


def weight_action(own: QuantConfig) -> str:
    """Weights: their scales leave the sum as they are, one a row at most."""
    scales = {"layer_wise": "one scale", "channel_wise": "one scale a row", "head_wise": "one scale for a head's rows"}
    wide = "" if own.bit_type.signed and own.bit_type.bits <= 8 else "; wider than 8 bits, so products take longer"
    return f"as is, {scales[own.calibration_mode]}{wide}"


def stream_verdict(name: str, own: QuantConfig) -> Verdict:
    """The residual stream must have one scale."""
    if own.calibration_mode == "layer_wise":
        return Verdict(name, "as is: both addends are requantized to the stream's scale")
    return Verdict(
        name,
        "simulation only",
        f"a {own.calibration_mode} scale would stand inside the sums of the LayerNorm after it",
        "calibration_mode: layer_wise",
    )


def pairing_verdict(
    name: str, section: str, config: Mapping[str, QuantConfig | None], dimensions: Dimensions | None
) -> Verdict:
    """Q and K: their scales must leave the sum over a head's channels as one product."""
    twin = {"attn_q_out": "attn_k_out", "attn_k_out": "attn_q_out"}[section]
    own, other = config[name], config[name.replace(section, twin)]
    assert own is not None
    if dimensions is not None and other is not None:
        limit = dimensions.head_dim * largest(own) * largest(other)
        if limit >= 2**31:
            problem = f"products of Q and K could reach {limit:.3g}, beyond 32 bits"
            return Verdict(name, "", problem, "give attn_q_out or attn_k_out fewer bits")
    if own.calibration_mode != "channel_wise":
        return Verdict(name, "as is, one scale" if own.calibration_mode == "layer_wise" else "one scale a head")
    if other is not None and other.output_quant_enable and other.calibration_mode == "channel_wise":
        return Verdict(name, f"paired with {twin}: the product of the scales is one constant a head")
    return Verdict(
        name,
        "simulation only",
        f"a scale per channel stands inside the sum of Q and K unless {twin} has one too",
        f"give both channel_wise, or {section} head_wise",
    )


def mix_overflow(v: QuantConfig, p: QuantConfig | None, dimensions: Dimensions) -> str | None:
    """Whether the product with V could leave 32 bits."""
    if p is None or p.softmax == "log2":  # the weights of log2 sum to at most sqrt(2) * 2^15 a row
        return None
    limit = dimensions.num_tokens * largest(p) * largest(v)
    return f"products with V could reach {limit:.3g}, beyond 32 bits" if limit >= 2**31 else None


def largest(config: QuantConfig) -> int:
    """Largest magnitude of a code less its zero point."""
    bits = config.bit_type.bits
    return int(2 ** (bits - 1) if config.bit_type.signed else 2**bits - 1)


def folded_action(section: str, own: QuantConfig) -> str:
    """The input of a linear layer."""
    target = FOLDED[section]
    made = (
        "integer LayerNorm; " if section in NORMS else "table from mlp_fc1's codes; " if section == "mlp_gelu" else ""
    )
    if own.calibration_mode == "layer_wise":
        return f"{made}as is, one scale"
    return f"{made}{own.calibration_mode} scales folded into the weights of {target}"


def output_action(section: str, own: QuantConfig) -> str:
    """An output that is requantized with one multiplier a channel at most."""
    scales = {"layer_wise": "as is, one scale", "channel_wise": "one scale a channel", "head_wise": "one scale a head"}
    return f"{scales[own.calibration_mode]}, at the end of the product"


def scores_action(section: str, own: QuantConfig) -> str:
    """Attention scores."""
    return "as is, one scale" if own.calibration_mode == "layer_wise" else "one scale a head"


def softmax_action(section: str, own: QuantConfig) -> str:
    """Probabilities."""
    return SOFTMAX[own.softmax]


ACTIONS: Mapping[str, Callable[[str, QuantConfig], str]] = {
    **dict.fromkeys(FOLDED, folded_action),
    "attn_kv_out": scores_action,
    "intSoft": softmax_action,
}
