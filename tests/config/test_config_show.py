from collections.abc import Callable
from io import StringIO

from rich.console import Console

from vitquant.config import ModelConfig, ResolvedConfig, point_names, render_table, rich_table

Resolve = Callable[..., ResolvedConfig]


def test_blocks_that_are_alike_share_a_row(resolve: Resolve) -> None:
    table = resolve(
        """
        attn_q_out: {bit_type: {bits: 6}, observer_type: PercentileObserver}
        intSoft: {softmax: row, bit_type: {signed: false}}
        mlp_fc1: {weight: {bit_type: {bits: 4}, weight_groups: 32}}
        mlp_gelu: {observer_type: KLObserver, quantization_method: power_of_two, output_quant_enable: false}
        overrides:
          blocks.1.attn_q_out: {bit_type: {bits: 4}}
        """,
        depth=5,
    )
    rows = {row.points: row for row in render_table(table)}
    common = rows["blocks.0,2-4.attn_q_out"]
    assert (common.bits, common.sign, common.mode) == ("6", "signed", "layer_wise")
    assert (common.observer, common.method, common.enabled) == ("Percentile 0.99999, 0.01", "uniform", "yes")
    assert common.source == "attn_q_out:2"
    other = rows["blocks.1.attn_q_out"]
    assert (other.bits, other.source) == ("4", "attn_q_out:2, overrides.blocks.1.attn_q_out:7 (bits)")
    soft = rows["blocks.0-4.intSoft"]
    assert (soft.sign, soft.observer, soft.method) == ("unsigned", "none", "row, table")
    grouped = rows["blocks.0-4.mlp_fc1.weight"]
    assert (grouped.bits, grouped.observer, grouped.method) == ("4", "Minmax", "uniform, groups of 32")
    gelu = rows["blocks.0-4.mlp_gelu"]
    assert (gelu.observer, gelu.method, gelu.enabled) == ("KL 2048", "power_of_two", "no")
    assert (rows["head.weight"].enabled, rows["head.weight"].bits) == ("float", "")


def test_rows_stand_in_model_order_and_cover_every_point(resolve: Resolve) -> None:
    table = resolve("overrides: {blocks.1.norm1: {}, blocks.0.norm2: {}}")
    names = [row.points for row in render_table(table)]
    assert names[3:5] == ["blocks.0,2.norm1", "blocks.1.norm1"]
    assert names[0] == "patch_embed.weight"
    assert names[-1] == "head.output"
    assert len(names) == len(point_names(1)) + 2


def test_one_block_needs_no_range(resolve: Resolve) -> None:
    assert "blocks.0.norm1" in [row.points for row in render_table(resolve("norm1: {}", depth=1))]


def test_the_two_heads_have_a_row_each() -> None:
    table = ModelConfig.from_dict({"weight": {}}).resolve(point_names(0, distilled=True))
    assert [row.points for row in render_table(table)][-4:] == list(table)[-4:]


def test_the_printed_table_shows_every_row(resolve: Resolve) -> None:
    table = resolve("weight: {bit_type: {bits: 5}}")
    console = Console(width=200, record=True, file=StringIO())
    console.print(rich_table(table, title="a title"))
    text = console.export_text()
    assert "a title" in text
    for row in render_table(table):
        assert row.points in text
    assert text.count("weight:1") == text.count("int5") == 6
