"""The integer program against the simulation: what was measured is what ships, to the bit."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from integer_models import disagreements, pixels, quantized

import vitquant
from vitquant.integer.reference import Reference

UNSIGNED = {"bit_type": {"signed": False}}

CONFIGS: dict[str, dict[str, Any]] = {
    "as shipped": {},
    "paired": {"attn_q_out": {"calibration_mode": "channel_wise"}, "attn_k_out": {"calibration_mode": "channel_wise"}},
    "paired, unsigned": {
        "attn_q_out": {"calibration_mode": "channel_wise", **UNSIGNED},
        "attn_k_out": {"calibration_mode": "channel_wise", **UNSIGNED},
    },
    "all unsigned": {"defaults": {"activation": UNSIGNED, "norm": UNSIGNED}},
    "unsigned stream": dict.fromkeys(("pos_embed", "residual1", "residual2"), UNSIGNED),
    "all layer_wise": {
        "defaults": {kind: {"calibration_mode": "layer_wise"} for kind in ("weight", "activation", "norm")}
    },
    "all channel_wise": {"defaults": {kind: {"calibration_mode": "channel_wise"} for kind in ("activation", "norm")}},
    "4 bits": {"defaults": {kind: {"bit_type": {"bits": 4}} for kind in ("weight", "activation", "norm")}},
    "16 bits": {"defaults": {"activation": {"bit_type": {"bits": 12}}, "norm": {"bit_type": {"bits": 16}}}},
    "wide weights": {"defaults": {"weight": {"bit_type": {"bits": 11}}}},
    "unsigned weights": {"defaults": {"weight": UNSIGNED}},
    "outputs too": {"defaults": {"outputs": {"output_quant_enable": True}}},
    "outputs too, unsigned, per channel": {
        "defaults": {"outputs": {"output_quant_enable": True, "calibration_mode": "channel_wise", **UNSIGNED}},
        "mlp_fc1": {"output": {"calibration_mode": "head_wise"}},
    },
    "power of two": {
        "defaults": {kind: {"quantization_method": "power_of_two"} for kind in ("weight", "activation", "norm")}
    },
    "uniform": {"intSoft": {"softmax": "uniform"}},
    "uniform per head": {
        "intSoft": {"softmax": "uniform", "calibration_mode": "channel_wise", "bit_type": {"bits": 12}}
    },
    "log2": {"intSoft": {"softmax": "log2"}},
    "log2, 3 bits": {"intSoft": {"softmax": "log2", "bit_type": {"bits": 3}}},
    "I-BERT": {"intSoft": {"approximation": "ibert"}},
    "Shiftmax": {"intSoft": {"approximation": "shiftmax", "softmax": "uniform"}},
    "row, 12 bits": {"intSoft": {"bit_type": {"bits": 12}}},
    "scores signed, per head": {"attn_kv_out": {"calibration_mode": "channel_wise", "bit_type": {"signed": True}}},
}

ARCHITECTURES: tuple[dict[str, Any], ...] = (
    {"num_classes": 0},
    {"dist_token": True},
    {"reg_tokens": 3, "pos_covers_prefix": False},
    {"layer_scale": True},
    {"pool": "avg"},
    {"pool": "avg", "class_token": False, "num_classes": 0},
    {"qkv_bias": False},
    {"num_heads": 1, "depth": 1},
)


@pytest.mark.parametrize("changes", CONFIGS.values(), ids=CONFIGS.keys())
@torch.no_grad()
def test_simulation_and_integers_are_equal(changes: dict[str, Any]) -> None:
    model = quantized(changes)
    program = vitquant.compile(model)
    images = pixels(7, seed=1)
    assert disagreements(model, program, images) == {}
    simulated = model(model.preprocessing.normalize(images))
    integer = Reference(program)(images).real()
    torch.testing.assert_close(integer, simulated, rtol=1e-4, atol=1e-4 * float(simulated.abs().max()))


@pytest.mark.parametrize("spec", ARCHITECTURES, ids=str)
@torch.no_grad()
def test_architectures(spec: dict[str, Any]) -> None:
    model = quantized(**spec)
    program = vitquant.compile(model)
    images = pixels(5, seed=2)
    assert disagreements(model, program, images) == {}
    simulated = model(model.preprocessing.normalize(images))
    integer = Reference(program)(images).real()
    torch.testing.assert_close(integer, simulated, rtol=1e-4, atol=1e-4 * float(simulated.abs().max()))


def test_a_difference_would_be_seen() -> None:
    """The comparison has teeth: other weights, other codes."""
    model, other = quantized(), quantized(seed=1)
    assert len(disagreements(model, vitquant.compile(other), pixels(3))) > 10
