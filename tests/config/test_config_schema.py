"""The JSON Schema, judged by a small validator written from the standard's text."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from vitquant.config import LAYERS, ModelConfig, QuantConfig, json_schema, shipped_names
from vitquant.config.locate import shipped_folder
from vitquant.errors import ConfigError

TYPES: dict[str, Any] = {
    "object": dict,
    "array": list,
    "integer": int,
    "number": (int, float),
    "boolean": bool,
    "string": str,
}
IGNORED = {"$schema", "title", "description", "default", "$defs"}


def valid(value: Any, schema: dict[str, Any], root: dict[str, Any]) -> bool:
    return all(_holds(keyword, value, schema, root) for keyword in schema if keyword not in IGNORED)


def _holds(keyword: str, value: Any, schema: dict[str, Any], root: dict[str, Any]) -> bool:
    wanted = schema[keyword]
    number = isinstance(value, int | float) and not isinstance(value, bool)
    is_object = isinstance(value, dict)
    match keyword:
        case "$ref":
            return valid(value, root["$defs"][wanted.removeprefix("#/$defs/")], root)
        case "type":
            return isinstance(value, TYPES[wanted]) and (wanted == "boolean") == isinstance(value, bool)
        case "enum":
            return value in wanted
        case "minimum":
            return not number or value >= wanted
        case "maximum":
            return not number or value <= wanted
        case "exclusiveMinimum":
            return not number or value > wanted
        case "multipleOf":
            return not number or value % wanted == 0
        case "properties":
            return not is_object or all(valid(value[k], wanted[k], root) for k in wanted if k in value)
        case "additionalProperties":
            known = schema.get("properties", {})
            rest = [v for k, v in value.items() if k not in known] if is_object else []
            return not rest if wanted is False else all(valid(v, wanted, root) for v in rest)
        case "required":
            return not is_object or all(key in value for key in wanted)
        case "minProperties":
            return not is_object or len(value) >= wanted
        case "maxProperties":
            return not is_object or len(value) <= wanted
        case "items":
            return not isinstance(value, list) or all(valid(item, wanted, root) for item in value)
        case "minItems":
            return not isinstance(value, list) or len(value) >= wanted
        case "anyOf":
            return any(valid(value, option, root) for option in wanted)
        case "not":
            return not valid(value, wanted, root)
        case _:
            raise AssertionError(f"the validator does not know {keyword}")


@pytest.mark.parametrize("name", shipped_names())
def test_every_shipped_file_is_valid(name: str) -> None:
    schema = json_schema()
    assert valid(yaml.safe_load((shipped_folder() / name).read_text()), schema, schema)


GOOD = [
    "weight: {}",
    "outputs: {calibration_mode: head_wise}",
    "attn_qkv: {weight: {bit_type: {bits: 4}}}\nactivation: {percentile_alpha: 1}",
    "intSoft: {softmax: row, approximation: ibert, bit_type: {signed: false}}",
    "defaults: {}",
    "overrides: {'*.weight': {kl_bins: 64}, 'blocks.0.mlp_fc1': {weight: {}, output: {}}}",
    "repair: [bias_correction, {bias_correction: {}}, {bias_correction: {images: 16}}]",
    "repair: [gptq, {gptq: {damping: 0.05, images: 16}}, bias_correction]",
]
BAD = [
    "attn_qout: {}",
    "weight: {observer_typ: KLObserver}",
    "weight: {bit_type: {bits: 1}}",
    "weight: {bit_type: {bits: 17}}",
    "weight: {bit_type: {bits: 3.5}}",
    "weight: {bit_type: {bits: true}}",
    "weight: {bit_type: {bit: 8}}",
    "weight: {kl_bins: 65}",
    "weight: {percentile_alpha: 0.5}",
    "weight: {percentile_sigma: 1e-5}",
    "weight: {observer_type: Minmax}",
    "weight: 8",
    "attn_q_out: {softmax: row}",
    "attn_qkv: {}",
    "attn_qkv: {kl_bins: 64}",
    "output: {}\noutputs: {}",
    "defaults: {attn_qkv: {}}",
    "overrides: {'blocks.*': {bits: 8}}",
    "repair: bias_correction",
    "repair: {bias_correction: {}}",
    "repair: [bias]",
    "repair: [{}]",
    "repair: [{bias_correction: {images: 0}}]",
    "repair: [{bias_correction: {image: 1}}]",
    "repair: [{bias_correction: {damping: 0.01}}]",
    "repair: [{gptq: {damping: 0}}]",
    "repair: [{gptq: {damping: 1.5}}]",
    "repair: [[bias_correction]]",
]


@pytest.mark.parametrize("text", GOOD)
def test_valid_to_the_schema_and_to_the_reader(text: str) -> None:
    schema = json_schema()
    assert valid(yaml.safe_load(text), schema, schema)
    ModelConfig.from_dict(yaml.safe_load(text))


@pytest.mark.parametrize("text", BAD)
def test_invalid_to_the_schema_and_to_the_reader(text: str, write: Callable[[str], Path]) -> None:
    schema = json_schema()
    assert not valid(yaml.safe_load(text), schema, schema)
    with pytest.raises(ConfigError):
        ModelConfig.from_yaml(write(text))


def test_an_editor_finds_every_layer_and_field_described() -> None:
    schema = json_schema()
    assert json.loads(json.dumps(schema)) == schema
    assert {layer.name for layer in LAYERS.values()} < set(schema["properties"])
    assert all(entry["description"] for entry in schema["properties"].values())
    fields = schema["$defs"]["intsoft"]["properties"] | schema["$defs"]["weight"]["properties"]
    assert set(fields) == set(QuantConfig.model_fields)
    assert all(field["description"] for field in (*fields.values(), *fields["bit_type"]["properties"].values()))
    assert fields["observer_type"]["enum"] == ["MinmaxObserver", "PercentileObserver", "KLObserver", "OmseObserver"]
