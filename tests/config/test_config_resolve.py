"""Which rule wins at which point: merging, fallback, overrides, and contradictions (rows 4 to 6)."""

from collections.abc import Callable
from fnmatch import fnmatchcase
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from vitquant.config import (
    POINT_KINDS,
    ModelConfig,
    QuantConfig,
    ResolvedConfig,
    load_config_from_yaml,
    point_names,
    section_of,
)
from vitquant.config.pattern import Pattern

Resolve = Callable[..., ResolvedConfig]
Refusal = Callable[[str], str]


def bits(table: ResolvedConfig, point: str) -> int:
    config = table[point]
    assert config is not None
    return config.bit_type.bits


def test_a_point_that_nothing_speaks_for_stays_float(resolve: Resolve) -> None:
    table = resolve("attn_q_out: {}")
    assert {point for point, config in table.items() if config} == {f"blocks.{i}.attn_q_out" for i in range(3)}
    assert table["blocks.0.attn_q_out"] == QuantConfig()
    assert table.source("blocks.0.attn_q_out") == "attn_q_out:1"
    assert table.source("head.weight") == "no rule, stays float"
    assert tuple(table) == point_names(3)


@pytest.mark.parametrize(
    ("present", "expected"),
    [
        ("weight", {"weight"}),
        ("outputs", {"output", "activation", "norm", "intsoft"}),
        ("activation", {"activation", "norm", "intsoft"}),
        ("norm", {"norm"}),
        ("intsoft", {"intsoft"}),
    ],
)
def test_kinds_that_fall_back_to_a_global_section(resolve: Resolve, present: str, expected: set[str]) -> None:
    table = resolve(f"{present}: {{}}")
    assert {POINT_KINDS[section_of(point)].value for point, config in table.items() if config} == expected


def test_the_first_global_section_answers_alone(resolve: Resolve) -> None:
    table = resolve("outputs: {kl_bins: 64}\nactivation: {bit_type: {bits: 7}}\nnorm: {bit_type: {bits: 6}}")
    assert table["pos_embed"] == QuantConfig.model_validate({"bit_type": {"bits": 7}})
    assert table["final_norm"] == QuantConfig.model_validate({"bit_type": {"bits": 6}})
    assert table["blocks.0.intSoft"] == table["pos_embed"]


def test_fields_merge_even_inside_bit_type(resolve: Resolve) -> None:
    table = resolve(
        """
        defaults:
          activation: {calibration_mode: channel_wise, bit_type: {bits: 7, signed: false}, kl_bins: 64}
        attn_q_out: {bit_type: {bits: 6}, kl_bins: 128}
        overrides:
          blocks.*.attn_q_out: {bit_type: {signed: true}}
          blocks.1.attn_q_out: {kl_bins: 256}
        """
    )
    expected = {"calibration_mode": "channel_wise", "bit_type": {"bits": 6, "signed": True}, "kl_bins": 128}
    assert table["blocks.0.attn_q_out"] == QuantConfig.model_validate(expected)
    assert table["blocks.1.attn_q_out"] == QuantConfig.model_validate({**expected, "kl_bins": 256})
    assert table.source("blocks.1.attn_q_out") == (
        "defaults.activation:3, attn_q_out:4 (bits), overrides.blocks.*.attn_q_out:6 (signed), "
        "overrides.blocks.1.attn_q_out:7 (kl_bins)"
    )


def test_the_more_specific_override_wins_wherever_it_stands(resolve: Resolve) -> None:
    rules = ["'*': {kl_bins: 64}", "'*.weight': {kl_bins: 128}", "blocks.*.weight: {kl_bins: 256}"]
    rules += ["blocks.1.mlp_fc1.weight: {kl_bins: 512}"]
    for order in (rules, rules[::-1]):
        table = resolve("overrides:\n" + "".join(f"  {rule}\n" for rule in order))
        found = {point: config.kl_bins for point, config in table.items() if config}
        assert len(found) == len(point_names(3))
        assert found["pos_embed"] == 64
        assert found["head.weight"] == 128
        assert found["blocks.0.mlp_fc1.weight"] == 256
        assert found["blocks.1.mlp_fc1.weight"] == 512


def test_an_exact_name_beats_a_glob_with_as_many_literals() -> None:
    patterns = ["*", "*.weight", "blocks.?.attn_qkv.weight", "blocks.[!0]*.attn_qkv.weight*", "head.weight"]
    assert [Pattern.parse(p).specificity for p in patterns] == [
        (False, 0),
        (False, 7),
        (False, 23),
        (False, 23),
        (True, 11),
    ]
    assert max(patterns, key=lambda p: Pattern.parse(p).specificity) == "head.weight"


def test_patterns_match_whole_names_only(resolve: Resolve) -> None:
    table = resolve("overrides: {blocks.1.attn_q_out: {}}", depth=12)
    assert [point for point, config in table.items() if config] == ["blocks.1.attn_q_out"]
    table = resolve("overrides: {'blocks.[12].attn_*_out': {}}", depth=13)
    names = ("attn_q_out", "attn_k_out", "attn_kv_out", "attn_v_out")
    assert [p for p, config in table.items() if config] == [f"blocks.{i}.{name}" for i in (1, 2) for name in names]


def test_an_override_of_a_linear_layer_nests_its_parts(resolve: Resolve) -> None:
    table = resolve("overrides:\n  blocks.*.mlp_fc2:\n    weight: {bit_type: {bits: 5}}\n    output: {}\n")
    assert bits(table, "blocks.2.mlp_fc2.weight") == 5
    assert bits(table, "blocks.2.mlp_fc2.output") == 8
    assert table["blocks.2.mlp_fc1.weight"] is None


def test_the_second_head_reads_the_section_head() -> None:
    config = ModelConfig.from_dict(
        {"head": {"weight": {"bit_type": {"bits": 6}}}, "overrides": {"head_dist.weight": {"bit_type": {"bits": 5}}}}
    )
    table = config.resolve(point_names(0, distilled=True))
    assert (bits(table, "head.weight"), bits(table, "head_dist.weight"), table["head_dist.output"]) == (6, 5, None)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            "overrides:\n  blocks.*.atn_kv_out: {}\n",
            "a.yaml:2 overrides.blocks.*.atn_kv_out: `blocks.*.atn_kv_out` matches no point of the model. Expected a "
            "name such as blocks.*.attn_kv_out, ",
        ),
        ("overrides:\n  blocks.7.attn_kv_out: {}\n", "Expected a name such as blocks."),
        (
            "overrides:\n  attn_kv_out: {}\n",
            "matches no point of the model. Expected a name such as blocks.*.attn_kv_out",
        ),
        ("overrides:\n  blocks.0.mlp_fc2: {}\n", "such as blocks.0.mlp_fc2.weight, blocks.0.mlp_fc2.output."),
        (
            "overrides:\n  xyz: {}\n",
            "a.yaml:2 overrides.xyz: `xyz` matches no point of the model. Fix: list the points",
        ),
        (
            "overrides:\n  'blocks.0.*':\n    kl_bins: 64\n  '*.intSoft':\n    kl_bins: 64\n  '*.0.intSoft':\n"
            "    softmax: row\n",
            "a.yaml:7 overrides.*.0.intSoft.softmax, for blocks.0.intSoft: softmax: row needs an unsigned bit_type. "
            "Got bit_type.signed: true, expected bit_type.signed: false.",
        ),
        (
            "overrides:\n  blocks.0.*:\n    softmax: uniform\n",
            "a.yaml:3 overrides.blocks.0.*.softmax: `softmax` applies to intSoft only, but the rule matches "
            "blocks.0.norm1. Fix: use blocks.*.intSoft.",
        ),
        (
            "overrides:\n  blocks.0.*:\n    weight_groups: 32\n",
            "a.yaml:3 overrides.blocks.0.*.weight_groups: `weight_groups` applies to weights only, but the rule "
            "matches blocks.0.norm1. Fix: use *.weight.",
        ),
        (
            "weight:\n  weight_groups: 32\n",
            "a.yaml:2 weight.weight_groups, for patch_embed.weight: weight_groups needs a signed bit_type of few bits. "
            "Got bit_type: {bits: 8, signed: true}, expected at most 4 bits",
        ),
        (
            "weight:\n  calibration_mode: head_wise\n",
            "a.yaml:2 weight.calibration_mode: the rows of patch_embed.weight do not belong to attention heads. Got "
            "head_wise, expected layer_wise or channel_wise. Fix: use head_wise for attn_qkv.weight and",
        ),
        (
            "mlp_fc1:\n  weight: {calibration_mode: head_wise}\n",
            "a.yaml:2 mlp_fc1.weight.calibration_mode: the rows of",
        ),
    ],
)
def test_what_cannot_be_resolved(refusal: Refusal, text: str, expected: str) -> None:
    assert expected in refusal(text)


def test_head_wise_is_for_all_outputs_and_the_weights_of_heads(resolve: Resolve) -> None:
    table = resolve(
        """
        outputs: {calibration_mode: head_wise}
        attn_qkv: {weight: {calibration_mode: head_wise}}
        attn_proj: {weight: {calibration_mode: head_wise}}
        """
    )
    float_points = {point for point, config in table.items() if config is None}
    assert all(point.endswith(".weight") for point in float_points)
    assert {c.calibration_mode for c in table.values() if c} == {"head_wise"}


def test_equally_specific_rules_that_contradict_each_other(refusal: Refusal) -> None:
    text = "overrides:\n  blocks.0.*:\n    kl_bins: 64\n  blocks.*.0:\n    kl_bins: 128\n"
    assert "`blocks.*.0` matches no point" in refusal(text)
    text = "overrides:\n  '*.attn_q_out':\n    kl_bins: 64\n  'blocks.*q_ou?':\n    kl_bins: 128\n"
    assert refusal(text) == (
        "a.yaml:5 overrides.blocks.*q_ou?.kl_bins: conflicts with overrides.*.attn_q_out (a.yaml:3) at "
        "blocks.0.attn_q_out; neither is more specific. Got 128 and 64. Fix: use the exact name blocks.0.attn_q_out, "
        "or narrow one of the patterns."
    )


def test_equally_specific_rules_that_agree_or_are_overruled_are_no_contradiction(resolve: Resolve) -> None:
    two = "overrides:\n  '*.attn_q_out': {kl_bins: 64}\n  'blocks.*q_ou?': {kl_bins: %d, bit_type: {bits: 5}}\n"
    table = resolve(two % 64)
    assert bits(table, "blocks.0.attn_q_out") == 5
    exact = "".join(f"  blocks.{i}.attn_q_out: {{kl_bins: 256}}\n" for i in range(3))
    table = resolve(two % 128 + exact)
    assert {c.kl_bins for c in table.values() if c} == {256}


# Random files against an obvious second implementation of the rules.

FIELDS = st.fixed_dictionaries(
    {},
    optional={
        "bit_type": st.fixed_dictionaries({}, optional={"bits": st.integers(2, 16), "signed": st.booleans()}),
        "kl_bins": st.sampled_from([64, 128, 4096]),
        "observer_type": st.sampled_from(["KLObserver", "OmseObserver"]),
        "percentile_sigma": st.sampled_from([1e-5, 0.5]),
        "output_quant_enable": st.booleans(),
    },
)
# From the least to the most specific, no two alike.
PATTERNS = ["*", "*out", "*.weight", "blocks.0.*", "blocks.*_out", "blocks.1.attn*", "blocks.*.intSoft"]
POINTS = point_names(2)


@st.composite
def documents(draw: st.DrawFn) -> dict[str, Any]:
    kinds = draw(st.sets(st.sampled_from(["outputs", "weight", "activation", "norm", "intsoft"])))
    layers: dict[str, Any] = {}
    for section in draw(st.sets(st.sampled_from(list(POINT_KINDS)), max_size=5)):
        name, _, part = section.partition(".")
        if part:
            layers.setdefault(name, {})[part] = draw(FIELDS)
        else:
            layers[name] = draw(FIELDS)
    names = draw(st.sets(st.sampled_from([*PATTERNS, *POINTS]), max_size=5))
    return {
        "defaults": {kind: draw(FIELDS) for kind in sorted(kinds)},
        **layers,
        "overrides": {name: draw(FIELDS) for name in sorted(names)},
    }


def obvious(document: dict[str, Any], point: str) -> QuantConfig | None:
    section = section_of(point)
    name, _, part = section.partition(".")
    chain = {
        "weight": ["weight"],
        "output": ["outputs"],
        "activation": ["activation", "outputs"],
        "norm": ["norm", "activation", "outputs"],
        "intsoft": ["intsoft", "activation", "outputs"],
    }[POINT_KINDS[section].value]
    said = [document["defaults"][key] for key in chain if key in document["defaults"]][:1]
    layer = document.get(name)
    if layer is not None and (not part or part in layer):
        said.append(layer[part] if part else layer)
    for pattern in [*PATTERNS, point]:
        if pattern in document["overrides"] and fnmatchcase(point, pattern):
            said.append(document["overrides"][pattern])
    merged: dict[str, Any] = {"bit_type": {}}
    for fields in said:
        bit_type = {**merged["bit_type"], **fields.get("bit_type", {})}
        merged = {**merged, **fields, "bit_type": bit_type}
    return QuantConfig.model_validate(merged) if said else None


@settings(deadline=None)
@given(documents())
def test_resolving_agrees_with_the_obvious_implementation(document: dict[str, Any]) -> None:
    table = ModelConfig.from_dict(document).resolve(POINTS)
    assert dict(table) == {point: obvious(document, point) for point in POINTS}


@settings(max_examples=40, deadline=None)
@given(documents())
def test_a_resolved_table_written_as_yaml_reads_back_identically(document: dict[str, Any]) -> None:
    table = ModelConfig.from_dict(document).resolve(POINTS)
    again = ModelConfig.from_dict(yaml.safe_load(table.to_yaml())).resolve(POINTS)
    assert again == table
    assert again.to_yaml() == table.to_yaml()


@settings(max_examples=40, deadline=None)
@given(documents())
def test_the_loaded_dict_resolves_like_the_document(document: dict[str, Any]) -> None:
    with TemporaryDirectory() as folder:
        path = Path(folder) / "a.yaml"
        path.write_text(yaml.safe_dump(document))
        loaded = ModelConfig.from_dict(load_config_from_yaml(path)).resolve(POINTS)
        assert loaded == ModelConfig.from_yaml(path).resolve(POINTS)
