"""A JSON Schema of configuration files, for completion and checks in an editor."""

from __future__ import annotations

from typing import Any

from vitquant.config.catalogue import LAYERS, PointKind
from vitquant.config.document import GLOBAL_KEYS
from vitquant.config.quant_config import ONLY_FOR, QuantConfig
from vitquant.config.repair import REPAIR_SETTINGS, StepSettings

_ABOUT_GLOBAL = {
    PointKind.WEIGHT: "All weights of linear layers.",
    PointKind.OUTPUT: "All outputs of linear layers; also all other points, except weights, whose kind has no section.",
    PointKind.ACTIVATION: "All activations; also norm and intsoft if they have no section.",
    PointKind.NORM: "All LayerNorm outputs.",
    PointKind.INTSOFT: "All attention probabilities.",
}


def json_schema() -> dict[str, Any]:
    """The schema (draft 2020-12) of all three formats of a file."""
    sections = {key: _described(_ref_of(kind), _ABOUT_GLOBAL[kind]) for key, kind in GLOBAL_KEYS.items()}
    layers = {
        layer.name: _described(_ref("linear") if layer.kind is None else _ref_of(layer.kind), layer.about)
        for layer in LAYERS.values()
    }
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "vitquant configuration",
        "description": "How each point of a Vision Transformer is quantized.",
        **_mapping(
            {**sections, **layers, "defaults": _defaults(sections), "overrides": _overrides(), "repair": _repair()}
        ),
        "minProperties": 1,
        "not": {"required": ["output", "outputs"]},
        "$defs": {
            "tensor": _tensor(None),
            "weight": _tensor(PointKind.WEIGHT),
            "intsoft": _tensor(PointKind.INTSOFT),
            "linear": {**_mapping({"weight": _ref("weight"), "output": _ref("tensor")}), "minProperties": 1},
        },
    }


def _tensor(kind: PointKind | None) -> dict[str, Any]:
    schema = QuantConfig.model_json_schema()
    fields = {name: _plain(_inlined(field, schema)) for name, field in schema["properties"].items()}
    kept = {name: field for name, field in fields.items() if ONLY_FOR.get(name, kind) is kind}
    return _mapping(kept)


def _inlined(field: dict[str, Any], schema: dict[str, Any]) -> dict[str, Any]:
    """A field's schema with the reference to a nested model replaced by that model's schema."""
    reference = next((part["$ref"] for part in (field, *field.get("allOf", ())) if "$ref" in part), None)
    return {**schema["$defs"][reference.rpartition("/")[2]], **field} if reference else field


def _plain(field: dict[str, Any]) -> dict[str, Any]:
    """The schema without pydantic's titles, which repeat the names, and without the replaced references."""
    plain = {key: value for key, value in field.items() if key not in ("$ref", "allOf", "title")}
    if "properties" in plain:
        plain["properties"] = {name: _plain(inner) for name, inner in plain["properties"].items()}
    return plain


def _defaults(sections: dict[str, Any]) -> dict[str, Any]:
    about = "Settings by kind, for layers without a section and for fields that their sections omit."
    return _described({**_mapping(sections), "not": {"required": ["output", "outputs"]}}, about)


def _overrides() -> dict[str, Any]:
    return {
        "type": "object",
        "description": "Settings by point (blocks.0.attn_kv_out) or pattern (blocks.*.mlp_fc2.output); the more "
        "specific name wins, and fields merge. * matches any text, ? one character, [0-3] one of several "
        "characters, {0..11} one number of a range, {0,3,5} or {norm1,norm2} one item of a list.",
        "additionalProperties": {"anyOf": [_ref("intsoft"), _ref("weight"), _ref("linear")]},
    }


def _repair() -> dict[str, Any]:
    steps = {name: _step(kind) for name, kind in REPAIR_SETTINGS.items()}
    with_settings = {**_mapping(steps), "minProperties": 1, "maxProperties": 1}
    return {
        "type": "array",
        "description": "Methods that change the calibrated model block by block, in order.",
        "items": {"anyOf": [{"type": "string", "enum": list(steps)}, with_settings]},
    }


def _step(kind: type[StepSettings]) -> dict[str, Any]:
    schema = kind.model_json_schema()
    fields = {name: _plain(field) for name, field in schema.get("properties", {}).items()}
    return _described(_mapping(fields), schema["description"].partition("\n")[0])


def _mapping(properties: dict[str, Any]) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "additionalProperties": False}


def _ref(name: str) -> dict[str, Any]:
    return {"$ref": f"#/$defs/{name}"}


def _ref_of(kind: PointKind) -> dict[str, Any]:
    return _ref(kind.value if kind in ONLY_FOR.values() else "tensor")


def _described(schema: dict[str, Any], description: str) -> dict[str, Any]:
    return {**schema, "description": description}
