"""Configurations written back: the resolved table and the migration of a global file."""

from collections.abc import Callable
from pathlib import Path

import pytest

from vitquant.config import LAYERS, ModelConfig, ResolvedConfig, load_config_from_yaml, migrate, point_names
from vitquant.errors import ConfigError

Write = Callable[[str], Path]


def reread(text: str, write: Write, depth: int) -> ResolvedConfig:
    return ModelConfig.from_yaml(write(text)).resolve(point_names(depth))


def test_the_commonest_settings_become_the_section_and_the_rest_overrides(
    resolve: Callable[..., ResolvedConfig], write: Write
) -> None:
    table = resolve(
        """
        attn_q_out: {bit_type: {bits: 6}}
        overrides:
          blocks.0.attn_q_out: {bit_type: {bits: 4}}
          blocks.2.attn_k_out: {percentile_sigma: 1.0e-5}
        """
    )
    text = table.to_yaml()
    assert text == (
        "attn_q_out:\n"
        "  calibration_mode: layer_wise\n"
        "  bit_type: {bits: 6, signed: true}\n"
        "  observer_type: MinmaxObserver\n"
        "overrides:\n"
        "  blocks.0.attn_q_out:\n"
        "    bit_type: {bits: 4}\n"
        "  blocks.2.attn_k_out:\n"
        "    calibration_mode: layer_wise\n"
        "    bit_type: {bits: 8, signed: true}\n"
        "    observer_type: MinmaxObserver\n"
        "    percentile_sigma: 1.0e-05\n"
    )
    assert reread(text, write, 3) == table


def test_a_table_without_any_quantized_point(resolve: Callable[..., ResolvedConfig], write: Write) -> None:
    text = resolve("defaults: {}").to_yaml()
    assert text == "defaults: {}\n"
    assert set(reread(text, write, 3).values()) == {None}


def test_the_resolved_form_of_intsoft_keeps_its_fields(resolve: Callable[..., ResolvedConfig], write: Write) -> None:
    table = resolve("intSoft: {softmax: row, approximation: ibert, bit_type: {signed: false}}")
    assert reread(table.to_yaml(), write, 3) == table
    assert "  softmax: uniform\n  approximation: table\n" in resolve("intSoft: {}").to_yaml()


GLOBALS = [
    "weight: {bit_type: {bits: 6}}",
    "outputs: {calibration_mode: channel_wise, bit_type: {signed: false}}",
    "activation: {observer_type: PercentileObserver, percentile_alpha: 0.999, percentile_sigma: 0.5}",
    "norm: {kl_bins: 64, quantization_method: power_of_two, enable_profiler: true}",
    "intsoft: {softmax: row, approximation: shiftmax, bit_type: {signed: false}}",
    "output: {output_quant_enable: false}\nweight: {}",
    "weight: {}\noutputs: {kl_bins: 64}\nactivation: {kl_bins: 128}\nnorm: {kl_bins: 256}\nintsoft: {kl_bins: 512}",
]


@pytest.mark.parametrize("text", GLOBALS)
def test_a_migrated_file_gives_the_identical_table(write: Write, text: str) -> None:
    path, points = write(text), point_names(2, distilled=True)
    before = ModelConfig.from_yaml(path).resolve(points)
    migrated = write(migrate(path))
    config = ModelConfig.from_yaml(migrated)
    assert config.document.form == "per-layer"
    assert config.resolve(points) == before
    assert any(before.values())


def test_a_migrated_file_spells_out_every_layer_and_tells_what_it_is(write: Write) -> None:
    text = migrate(write("weight: {}\noutputs: {}"))
    loaded = load_config_from_yaml(write(text))
    assert list(loaded) == [layer.name for layer in LAYERS.values()]
    assert text.startswith("# Generated from a.yaml")
    for comment in (
        "# embedding",
        "# attention",
        "# mlp",
        "# head",
        *(f"# {layer.about}" for layer in LAYERS.values()),
    ):
        assert f"\n{comment}\n" in text


def test_layers_that_stay_float_are_named(write: Write) -> None:
    text = migrate(write("weight: {}"))
    assert "# attn_q_out stays float\n" in text
    assert "# attn_qkv stays float" not in text


@pytest.mark.parametrize(("text", "form"), [("attn_q_out: {}", "per-layer"), ("defaults: {weight: {}}", "model")])
def test_only_global_files_are_migrated(write: Write, text: str, form: str) -> None:
    with pytest.raises(ConfigError, match=f"only a file in the global format can be migrated. Got the {form} format"):
        migrate(write(text))
