"""The three formats of a file, and what ``load_config_from_yaml`` makes of them."""

from collections.abc import Callable
from pathlib import Path

import pytest

from vitquant.config import (
    BitType,
    ModelConfig,
    QuantConfig,
    get_layer_config,
    load_config_from_yaml,
    point_names,
)
from vitquant.errors import ConfigError

Write = Callable[[str], Path]
Refusal = Callable[[str], str]

GLOBAL = """
outputs: {calibration_mode: channel_wise, bit_type: {bits: 7, signed: false}}
weight: {bit_type: {bits: 6}}
activation: {observer_type: KLObserver}
"""

PER_LAYER = """
attn_qkv:
  weight: {bit_type: {bits: 4}}
attn_q_out: {kl_bins: 64}
activation: {observer_type: KLObserver, kl_bins: 128}
outputs: {output_quant_enable: false}
"""

MODEL = """
defaults:
  weight: {calibration_mode: channel_wise}
  intsoft: {bit_type: {signed: false}, softmax: row}
attn_kv_out: {bit_type: {bits: 10}}
mlp_fc2:
  output: {}
overrides:
  blocks.0.attn_kv_out: {bit_type: {bits: 12}}
  blocks.*.mlp_fc2:
    weight: {bit_type: {bits: 5}}
"""


def test_global_form(write: Write) -> None:
    configs = load_config_from_yaml(write(GLOBAL))
    assert configs == {
        "output": QuantConfig(calibration_mode="channel_wise", bit_type=BitType(bits=7, signed=False)),
        "weight": QuantConfig(bit_type=BitType(bits=6)),
        "activation": QuantConfig(observer_type="KLObserver"),
    }


def test_output_is_another_spelling_of_outputs(write: Write) -> None:
    assert load_config_from_yaml(write("output: {kl_bins: 64}")) == {"output": QuantConfig(kl_bins=64)}


def test_global_norm_and_intsoft(write: Write) -> None:
    configs = load_config_from_yaml(write("norm: {}\nintsoft: {softmax: log2, bit_type: {bits: 4, signed: false}}"))
    assert configs == {
        "norm": QuantConfig(),
        "intsoft": QuantConfig(softmax="log2", bit_type=BitType(bits=4, signed=False)),
    }


def test_per_layer_form_merges_each_section_over_its_global_one(write: Write) -> None:
    configs = load_config_from_yaml(write(PER_LAYER))
    assert configs == {
        "attn_qkv": {"weight": QuantConfig(bit_type=BitType(bits=4)), "output": QuantConfig(output_quant_enable=False)},
        "attn_q_out": QuantConfig(observer_type="KLObserver", kl_bins=64),
        "activation": QuantConfig(observer_type="KLObserver", kl_bins=128),
        "output": QuantConfig(output_quant_enable=False),
    }


def test_a_part_of_a_linear_layer_that_nothing_speaks_for_is_none(write: Write) -> None:
    configs = load_config_from_yaml(write("attn_qkv: {weight: {}}"))
    assert configs == {"attn_qkv": {"weight": QuantConfig(), "output": None}}


def test_model_form_spells_out_every_layer(write: Write) -> None:
    configs = load_config_from_yaml(write(MODEL))
    weight = QuantConfig(calibration_mode="channel_wise")
    linear = {"weight": weight, "output": None}
    assert configs == {
        "patch_embed": linear,
        "attn_qkv": linear,
        "attn_kv_out": QuantConfig(bit_type=BitType(bits=10)),
        "intSoft": QuantConfig(bit_type=BitType(signed=False), softmax="row"),
        "attn_proj": linear,
        "mlp_fc1": linear,
        "mlp_fc2": {"weight": weight, "output": QuantConfig()},
        "head": linear,
        "overrides": {
            "blocks.0.attn_kv_out": {"bit_type": {"bits": 12}},
            "blocks.*.mlp_fc2.weight": {"bit_type": {"bits": 5}},
        },
    }


@pytest.mark.parametrize("text", [GLOBAL, PER_LAYER, MODEL])
def test_the_loaded_dict_resolves_like_the_file(write: Write, text: str) -> None:
    path, points = write(text), point_names(2, distilled=True)
    loaded = ModelConfig.from_dict(load_config_from_yaml(path)).resolve(points)
    assert loaded == ModelConfig.from_yaml(path).resolve(points)
    assert any(config is not None for config in loaded.values())


def test_layers_fall_back_to_the_global_sections_as_specified(write: Write) -> None:
    configs = load_config_from_yaml(write(GLOBAL))
    assert get_layer_config(configs, "attn_qkv") == {"weight": configs["weight"], "output": configs["output"]}
    assert get_layer_config(configs, "attn_q_out") == configs["activation"]
    assert get_layer_config(configs, "intSoft") == configs["activation"]
    assert get_layer_config(configs, "norm1") == configs["activation"]
    del configs["activation"]
    assert get_layer_config(configs, "attn_q_out") == configs["output"]
    assert get_layer_config(configs, "norm1") == configs["output"]
    assert get_layer_config({"weight": QuantConfig()}, "attn_q_out") is None
    assert get_layer_config({"activation": QuantConfig()}, "attn_qkv") is None


def test_a_layers_own_section_goes_before_the_global_ones(write: Write) -> None:
    configs = load_config_from_yaml(write(PER_LAYER))
    assert get_layer_config(configs, "attn_qkv") == configs["attn_qkv"]
    assert get_layer_config(configs, "attn_q_out") == configs["attn_q_out"]
    assert get_layer_config(configs, "attn_k_out") == configs["activation"]
    assert get_layer_config(configs, "attn_proj") == {"weight": None, "output": configs["output"]}


def test_a_quant_config_from_python_states_all_its_fields() -> None:
    points = ["attn_q_out", "intSoft"]
    general = {"activation": {"kl_bins": 64}, "intsoft": {"softmax": "row", "bit_type": {"signed": False}}}
    table = ModelConfig.from_dict({**general, "attn_q_out": QuantConfig(), "intSoft": QuantConfig()}).resolve(points)
    assert table["attn_q_out"] == QuantConfig()
    assert table["intSoft"] == QuantConfig()


def test_a_quant_config_with_a_softmax_form_fits_intsoft_only() -> None:
    row = QuantConfig(softmax="row", bit_type=BitType(signed=False))
    assert ModelConfig.from_dict({"intSoft": row}).resolve(["intSoft"])["intSoft"] == row
    with pytest.raises(ConfigError, match=r"configuration attn_q_out\.softmax: `softmax` applies to intSoft only"):
        ModelConfig.from_dict({"attn_q_out": row}).resolve(["attn_q_out"])


def test_python_dicts_may_hold_configs_anywhere_a_section_stands() -> None:
    table = ModelConfig.from_dict(
        {
            "defaults": {"weight": QuantConfig(kl_bins=64)},
            "attn_q_out": {"bit_type": BitType(bits=3)},
            "overrides": {
                "blocks.0.*": QuantConfig(kl_bins=128),
                "blocks.0.attn_qkv": {"weight": QuantConfig(kl_bins=256)},
            },
        }
    ).resolve(point_names(2))
    assert table["blocks.0.attn_q_out"] == QuantConfig(kl_bins=128)
    assert table["blocks.1.attn_q_out"] == QuantConfig(bit_type=BitType(bits=3))
    assert table["blocks.0.attn_qkv.weight"] == QuantConfig(kl_bins=256)
    assert table["blocks.1.attn_qkv.weight"] == QuantConfig(kl_bins=64)


def test_an_empty_dict_leaves_all_float_and_other_things_are_refused() -> None:
    assert set(ModelConfig.from_dict({}).resolve(point_names(1)).values()) == {None}
    with pytest.raises(ConfigError, match="not a configuration"):
        ModelConfig.from_dict([])  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"configuration attn_q_out\.bit_type\.bits: value not allowed\. Got 1"):
        ModelConfig.from_dict({"attn_q_out": {"bit_type": {"bits": 1}}})


def test_an_unknown_layer_name_is_refused() -> None:
    with pytest.raises(ConfigError, match="attn_qvk: no such layer"):
        get_layer_config({"weight": QuantConfig()}, "attn_qvk")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            "attn_qout: {}\n",
            "a.yaml:1 attn_qout: unknown layer or section `attn_qout`, did you mean `attn_q_out`. Expected attn_q_out",
        ),
        ("weight: {}\nfoo: {}\n", "a.yaml:2 foo: unknown layer or section `foo`. Expected a layer, a global section"),
        ("weight:\n  observer_typ: KLObserver\n", "a.yaml:2 weight.observer_typ: unknown key `observer_typ`, did you"),
        ("attn_q_out:\n  bit_type:\n    bit: 8\n", "a.yaml:3 attn_q_out.bit_type.bit: unknown key `bit`, did you mean"),
        ("attn_q_out:\n  bits: 8\n", "Fix: write it inside bit_type, as in bit_type: {bits: ...}."),
        ("attn_q_out:\n  weight: {}\n", "a.yaml:2 attn_q_out.weight: unknown key `weight`"),
        (
            "attn_qkv:\n  calibration_mode: layer_wise\n",
            "a.yaml:2 attn_qkv.calibration_mode: unknown key `calibration_mode`. Expected weight or output, since "
            "this is a linear layer. Fix: nest the settings under attn_qkv: weight: or output:.",
        ),
        ("attn_qkv: {}\n", "a.yaml:1 attn_qkv: empty section. Expected weight, output or both."),
        (
            "attn_q_out:\n",
            "a.yaml:1 attn_q_out: not a section. Got nothing (null), expected a mapping. Fix: write {} for the "
            "built-in defaults, or remove the key.",
        ),
        ("attn_qkv:\n  weight:\n", "a.yaml:2 attn_qkv.weight: not a section. Got nothing (null)"),
        (
            "attn_q_out: MinmaxObserver\n",
            "a.yaml:1 attn_q_out: not a section. Got 'MinmaxObserver', expected a mapping",
        ),
        ("defaults: 8\n", "a.yaml:1 defaults: not a section. Got 8"),
        ("defaults:\n  attn_q_out: {}\n", "a.yaml:2 defaults.attn_q_out: unknown key `attn_q_out`"),
        ("overrides:\n  - a\n", "a.yaml:1 overrides: not a section. Got ['a']"),
        ("overrides:\n  head: {weight: {}, bits: 3}\n", "a.yaml:2 overrides.head.bits: unknown key `bits`"),
        ("output: {}\noutputs: {}\n", "a.yaml:2 outputs: duplicates `output` (a.yaml:1). Fix: remove one of"),
        ("weight: {}\ndefaults:\n  weight: {}\n", "a.yaml:3 defaults.weight: duplicates `weight` (a.yaml:1)."),
        (
            "overrides:\n  head.weight: {}\n  head:\n    weight: {}\n",
            "a.yaml:4 overrides.head.weight: duplicates overrides.head.weight (a.yaml:2). Fix: merge the two.",
        ),
        (
            "attn_q_out:\n  softmax: row\n",
            "a.yaml:2 attn_q_out.softmax: `softmax` applies to intSoft only. Fix: remove it.",
        ),
        (
            "mlp_fc1:\n  output: {weight_groups: 32}\n",
            "a.yaml:2 mlp_fc1.output.weight_groups: `weight_groups` applies to weights only. Fix: remove it.",
        ),
        ("intSoft:\n  weight_groups: 0\n", "a.yaml:2 intSoft.weight_groups: `weight_groups` applies to weights only."),
        ("activation:\n  approximation: table\n", "a.yaml:2 activation.approximation: `approximation` applies to"),
        (
            "mlp_fc1:\n  weight:\n    bit_type:\n      bits: 3.5\n",
            "a.yaml:4 mlp_fc1.weight.bit_type.bits: value not allowed. Got 3.5, expected an integer from 2 to 16.",
        ),
        (
            "mlp_gelu:\n  percentile_alpha: 2\n",
            "a.yaml:2 mlp_gelu.percentile_alpha: value not allowed. Got 2, expected a number above 0.5 and at most 1.",
        ),
        (
            "overrides:\n  blocks.0.*:\n    observer_type: Minmax\n",
            "a.yaml:3 overrides.blocks.0.*.observer_type: value not allowed. Got 'Minmax', expected one of Minmax",
        ),
    ],
)
def test_what_is_refused_with_line_and_key(refusal: Refusal, text: str, expected: str) -> None:
    assert expected in refusal(text)


def test_a_global_section_that_contradicts_itself_is_refused_on_load(write: Write) -> None:
    with pytest.raises(ConfigError, match=r"a\.yaml:1 intsoft\.softmax, for intsoft: softmax: row needs an unsigned"):
        load_config_from_yaml(write("intsoft: {softmax: row}"))
