import pytest

from vitquant.config import LAYERS, POINT_KINDS, PointKind, point_names, section_of
from vitquant.errors import ConfigError


def test_points_of_one_block_in_model_order() -> None:
    assert point_names(1) == (
        "patch_embed.weight",
        "patch_embed.output",
        "pos_embed",
        "blocks.0.norm1",
        "blocks.0.attn_qkv.weight",
        "blocks.0.attn_qkv.output",
        "blocks.0.attn_q_out",
        "blocks.0.attn_k_out",
        "blocks.0.attn_kv_out",
        "blocks.0.intSoft",
        "blocks.0.attn_v_input",
        "blocks.0.attn_v_out",
        "blocks.0.attn_proj.weight",
        "blocks.0.attn_proj.output",
        "blocks.0.residual1",
        "blocks.0.norm2",
        "blocks.0.mlp_fc1.weight",
        "blocks.0.mlp_fc1.output",
        "blocks.0.mlp_gelu",
        "blocks.0.mlp_fc2.weight",
        "blocks.0.mlp_fc2.output",
        "blocks.0.residual2",
        "final_norm",
        "head.weight",
        "head.output",
    )


def test_models_without_a_head_or_with_two() -> None:
    assert point_names(0, head=False)[-1] == "final_norm"
    assert point_names(0, head=False, distilled=True)[-1] == "final_norm"
    assert point_names(0, distilled=True)[-3:] == ("head.output", "head_dist.weight", "head_dist.output")


def test_every_point_reads_the_section_of_its_layer() -> None:
    for point in point_names(12, distilled=True):
        assert point.endswith(section_of(point)) or point.startswith("head_dist")
    assert section_of("head_dist.weight") == "head.weight"
    assert set(map(section_of, point_names(1))) == set(POINT_KINDS)


def test_a_foreign_point_is_refused_with_the_closest_name() -> None:
    with pytest.raises(ConfigError, match=r"blocks\.0\.attn_kv_ot: not a point.*attn_kv_out"):
        section_of("blocks.0.attn_kv_ot")


def test_linear_layers_have_two_points_and_others_one() -> None:
    assert {layer.name for layer in LAYERS.values() if layer.linear} == {
        "patch_embed",
        "attn_qkv",
        "attn_proj",
        "mlp_fc1",
        "mlp_fc2",
        "head",
    }
    assert [point for point, kind in POINT_KINDS.items() if kind is PointKind.INTSOFT] == ["intSoft"]
    assert [point for point, kind in POINT_KINDS.items() if kind is PointKind.NORM] == ["norm1", "norm2", "final_norm"]
