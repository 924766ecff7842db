"""The files of ``configs/``: every one loads and resolves, and attn_config.yaml is the specification's."""

from itertools import chain

import pytest
import yaml

from vitquant.config import (
    POINT_KINDS,
    BitType,
    ModelConfig,
    PointKind,
    QuantConfig,
    ResolvedConfig,
    load_config_from_yaml,
    point_names,
    section_of,
    shipped_names,
)

POINTS = point_names(12)


def resolved(name: str) -> ResolvedConfig:
    return ModelConfig.from_yaml(name).resolve(POINTS)


def spoken_for(name: str) -> set[str]:
    return {section_of(point) for point, config in resolved(name).items() if config}


def test_the_files_that_are_shipped() -> None:
    assert set(shipped_names()) >= {
        "attn_config.yaml",
        "block_config.yaml",
        "embed_config.yaml",
        "head_config.yaml",
        "linears_int8.yaml",
        "mlp_config.yaml",
        "vit_int8.yaml",
    }


@pytest.mark.parametrize("name", shipped_names())
def test_every_file_resolves_and_reads_back(name: str) -> None:
    table = resolved(name)
    assert any(table.values())
    assert ModelConfig.from_dict(yaml.safe_load(table.to_yaml())).resolve(POINTS) == table
    assert ModelConfig.from_dict(load_config_from_yaml(name)).resolve(POINTS) == table


def test_attn_config_has_exactly_the_specified_settings() -> None:
    def setting(signed: bool, enabled: bool = True) -> QuantConfig:
        return QuantConfig(
            calibration_mode="channel_wise",
            bit_type=BitType(bits=8, signed=signed),
            observer_type="MinmaxObserver",
            enable_profiler=True,
            output_quant_enable=enabled,
        )

    linear = {"weight": setting(signed=True), "output": setting(signed=False, enabled=False)}
    assert load_config_from_yaml("configs/attn_config.yaml") == {
        "attn_qkv": linear,
        "attn_proj": linear,
        "attn_q_out": setting(signed=True),
        "attn_k_out": setting(signed=True),
        "attn_v_input": setting(signed=True),
        "attn_kv_out": setting(signed=True),
        "attn_v_out": setting(signed=True),
        "intSoft": setting(signed=False),
    }


def test_the_layer_files_cover_their_parts_of_the_model() -> None:
    attention = spoken_for("attn_config.yaml")
    assert attention == {s for s in POINT_KINDS if s.startswith("attn_") or s == "intSoft"}
    assert spoken_for("embed_config.yaml") == {"patch_embed.weight", "patch_embed.output", "pos_embed"}
    mlp = spoken_for("mlp_config.yaml")
    assert mlp == {"norm2", "residual2", *(s for s in POINT_KINDS if s.startswith("mlp_"))}
    assert spoken_for("block_config.yaml") == {*attention, *mlp, "norm1", "residual1"}
    assert spoken_for("head_config.yaml") == {"final_norm", "head.weight", "head.output"}
    assert spoken_for("vit_int8.yaml") == set(POINT_KINDS)


def test_the_block_file_says_of_the_mlp_what_the_mlp_file_says() -> None:
    block, mlp = resolved("block_config.yaml"), resolved("mlp_config.yaml")
    assert all(block[point] == config for point, config in mlp.items() if config)


@pytest.mark.parametrize("name", ["vit_int8.yaml", "block_config.yaml", "embed_config.yaml", "mlp_config.yaml"])
def test_what_integers_need_of_a_whole_model(name: str) -> None:
    for point, config in resolved(name).items():
        section = section_of(point)
        if config is None:
            continue
        if section in ("pos_embed", "residual1", "residual2"):
            assert (config.bit_type.bits, config.calibration_mode) == (16, "layer_wise")
            assert config.bit_type.signed
        else:
            assert config.bit_type.bits == 8
        if POINT_KINDS[section] is PointKind.OUTPUT:
            assert config.output_quant_enable == (section == "mlp_fc1.output")
        else:
            assert config.output_quant_enable
        if section == "mlp_fc1.output":  # the integer GELU is a table from these codes, one for each scale
            assert config.calibration_mode != "channel_wise"
        if section == "intSoft":
            assert config.softmax == "row"


def test_linears_int8_quantizes_weights_and_inputs_of_linear_layers_only() -> None:
    weights = [s for s, kind in POINT_KINDS.items() if kind is PointKind.WEIGHT]
    inputs = ["norm1", "attn_v_out", "norm2", "mlp_gelu", "final_norm"]
    assert spoken_for("linears_int8.yaml") == {*weights, *inputs}
    configs = chain.from_iterable([c] for c in resolved("linears_int8.yaml").values() if c)
    assert all(config.bit_type.bits == 8 and config.output_quant_enable for config in configs)
