"""``vitquant check``: verdicts, exit codes, and no torch without ``--model``."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

SHIPPED = ["attn_config.yaml", "vit_int8.yaml", "linears_int8.yaml", "block_config.yaml"]


@pytest.mark.parametrize("config", SHIPPED)
def test_shipped_files_pass(config: str, run: Callable[..., Any]) -> None:
    outcome = run("check", config)
    assert outcome.code == 0, outcome.err
    assert "points are integer-executable" in outcome.out


def test_the_attention_file_as_specified(run: Callable[..., Any]) -> None:
    verdicts = {v["point"]: v for v in json.loads(run("check", "attn_config.yaml", "--depth", "1", "--json").out)}
    assert len(verdicts) == 10
    assert all(v["ships"] for v in verdicts.values())
    assert "paired" in verdicts["blocks.0.attn_q_out"]["action"]
    assert "folded into the weights of attn_proj" in verdicts["blocks.0.attn_v_out"]["action"]


def test_a_whole_model_needs_settings_for_all_points(run: Callable[..., Any]) -> None:
    outcome = run("check", "attn_config.yaml", "--model", "deit_tiny_patch16_224")
    assert outcome.code == 2
    assert outcome.error.startswith("error: patch_embed.weight: integers cannot execute this: it stays float (")
    assert "add `patch_embed.weight: {bit_type: {bits: 8}}`" in outcome.error
    assert run("check", "vit_int8.yaml", "--model", "deit_tiny_distilled_patch16_224").code == 0


@pytest.mark.parametrize(
    ("section", "point", "problem", "fix"),
    [
        ("residual1: {calibration_mode: channel_wise}", "residual1", "inside the sums of the LayerNorm", "layer_wise"),
        (
            "attn_q_out: {calibration_mode: channel_wise}",
            "attn_q_out",
            "unless attn_k_out has one",
            "both channel_wise",
        ),
        ("attn_v_out: {output_quant_enable: false}", "attn_v_out", "stays float", "output_quant_enable: True"),
    ],
)
def test_what_only_a_simulation_can_do(
    section: str, point: str, problem: str, fix: str, tmp_path: Path, run: Callable[..., Any]
) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(f"{section}\n")
    outcome = run("check", str(file), "--depth", "2", "--json")
    assert outcome.code == 2
    (verdict, *_) = (v for v in json.loads(outcome.out) if v["point"] == f"blocks.0.{point}")
    assert problem in verdict["problem"]
    assert fix in verdict["fix"]
    assert not verdict["ships"]
    assert f"error: blocks.0.{point}: integers cannot execute this" in outcome.error
