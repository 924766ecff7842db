"""The QDQ graph against the simulation, in the runtimes themselves."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from numpy.typing import NDArray
from onnx import numpy_helper

import vitquant
from support.integer_models import ARCHITECTURES, pixels, quantized
from vitquant.architectures.model import QuantModel
from vitquant.errors import ConfigError, LifecycleError, MissingDependencyError
from vitquant.export.onnx.qdq import export_qdq, notes
from vitquant.layers import IntSoftmax, Point, QuantEmbedding, QuantResidual, hooked, points_of
from vitquant.numerics.quantized import QuantizedTensor, Value, on, real
from vitquant.numerics.sqnr import SqnrMeter

Array = NDArray[Any]

UNSIGNED = {"bit_type": {"signed": False}}
CHANNEL = {"calibration_mode": "channel_wise"}
OFF = {"output_quant_enable": False}
ALL_UNSIGNED = {"defaults": {"activation": UNSIGNED, "norm": UNSIGNED}}
FOUR_BITS = {"defaults": {"weight": {"bit_type": {"bits": 4}}}}
IN_GROUPS = {"defaults": {"weight": {"bit_type": {"bits": 4}, "weight_groups": 16}}}
EVEN_GROUPS = {"defaults": {"weight": {"bit_type": {"bits": 4}, "weight_groups": 8}}}
ONE_GROUP = {"defaults": {"weight": {"bit_type": {"bits": 4}, "weight_groups": 64}}}

CHANGES: dict[str, dict[str, Any]] = {
    "as shipped": {},
    "paired": {"attn_q_out": CHANNEL, "attn_k_out": CHANNEL},
    "paired, unsigned": {"attn_q_out": {**CHANNEL, **UNSIGNED}, "attn_k_out": {**CHANNEL, **UNSIGNED}},
    "not paired": {"attn_q_out": CHANNEL},
    "all unsigned": ALL_UNSIGNED,
    "unsigned stream": dict.fromkeys(("pos_embed", "residual1", "residual2"), UNSIGNED),
    "stream per channel": dict.fromkeys(("pos_embed", "residual1", "residual2"), CHANNEL),
    "all layer_wise": {
        "defaults": {kind: {"calibration_mode": "layer_wise"} for kind in ("weight", "activation", "norm")}
    },
    "all channel_wise": {"defaults": dict.fromkeys(("activation", "norm"), CHANNEL)},
    "weights of 4 bits": FOUR_BITS,
    "weights of 4 bits in groups": IN_GROUPS,
    "weights of 4 bits in one group per row": ONE_GROUP,
    "all 4 bits": {"defaults": {kind: {"bit_type": {"bits": 4}} for kind in ("weight", "activation", "norm")}},
    "wide": {"defaults": {"activation": {"bit_type": {"bits": 12}}, "norm": {"bit_type": {"bits": 16}}}},
    "wide weights": {"defaults": {"weight": {"bit_type": {"bits": 11}}}},
    "unsigned weights": {"defaults": {"weight": UNSIGNED}},
    "outputs too": {"defaults": {"outputs": {"output_quant_enable": True}}},
    "outputs too, unsigned, per channel": {
        "defaults": {"outputs": {"output_quant_enable": True, **CHANNEL, **UNSIGNED}},
        "mlp_fc1": {"output": {"calibration_mode": "head_wise"}},
    },
    "diffusion": {"intSoft": {"softmax": "diffusion"}},
    "uniform": {"intSoft": {"softmax": "uniform"}},
    "uniform per head": {"intSoft": {"softmax": "uniform", **CHANNEL}},
    "row, 12 bits": {"intSoft": {"bit_type": {"bits": 12}}},
    "float weights": {"defaults": {"weight": OFF}},
    "float norms": {"defaults": {"norm": OFF}},
    "float attention": {"attn_q_out": OFF, "attn_kv_out": OFF, "intSoft": OFF, "attn_v_input": OFF},
}

FIRST = ("pos_embed", "blocks.0.norm1", *(f"blocks.0.attn_{part}" for part in ("q_out", "k_out", "v_input", "kv_out")))
"""Points early enough that hardly a code may differ."""

SPECS: list[dict[str, Any]] = [*ARCHITECTURES, {"patch_size": (4, 2)}]


def session(model: onnx.ModelProto, **settings: Any) -> onnxruntime.InferenceSession:
    """On one thread. int8 stays int8, as ONNX Runtime's own move to uint8 trips over opset 21."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 3
    options.add_session_config_entry("session.qdqisint8allowed", "1")
    for name, value in settings.items():
        setattr(options, name, value)
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def run(model: onnx.ModelProto, images: torch.Tensor) -> torch.Tensor:
    """Logits by ONNX Runtime."""
    return torch.from_numpy(session(model).run(["logits"], {"images": images.numpy()})[0])


def db(reference: torch.Tensor, other: torch.Tensor) -> float:
    """Signal over noise."""
    meter = SqnrMeter()
    meter.add(reference, other)
    return meter.db


def simulated(model: QuantModel, images: torch.Tensor) -> torch.Tensor:
    """Logits of the simulation, for pixels."""
    with torch.no_grad():
        logits: torch.Tensor = model(model.preprocessing.normalize(images))
    return logits


def simulated_codes(model: QuantModel, images: torch.Tensor) -> dict[str, torch.Tensor]:
    """The codes of every active point of the simulation but weights."""
    seen: dict[str, torch.Tensor] = {}

    def note(point: Point, _: object, after: Value) -> None:
        if point.active and not point.name.endswith(".weight"):
            seen[point.name] = codes_of(point, after)

    with hooked(points_of(model), note):
        simulated(model, images)
    return seen


def codes_of(point: Point, x: Value) -> torch.Tensor:
    """What a point passed on, as integers; probabilities of a row as shares of its largest."""
    if isinstance(x, QuantizedTensor):
        return x.codes.long()
    assert isinstance(point, IntSoftmax)
    assert isinstance(x, torch.Tensor)
    if not point.observes:
        return (x * (((1 << point.require_config().bit_type.bits) - 1) / x.amax(-1, keepdim=True))).round().long()
    return on(x, point.require_params()).codes.long()


def settled_in_float(self: Point, x: Value) -> Value:
    """What passes a point, as real numbers whatever it rounds to."""
    self.observe(x)
    return real(self.show(x, real(x) if self.acting is None else on(real(x), self.acting)))


@pytest.fixture
def float_between_points(monkeypatch: pytest.MonkeyPatch) -> None:
    """The simulation without integer arithmetic: points pass on real numbers, so layers compute in float and round."""
    monkeypatch.setattr(Point, "settle", settled_in_float)
    monkeypatch.setattr(QuantResidual, "forward", lambda self, x, y: self.settle(real(x) + real(y)))
    embed = lambda self, patches: self.settle(self.placed(real(patches)) + self.table)  # noqa: E731
    monkeypatch.setattr(QuantEmbedding, "forward", embed)


def graph_codes(graph: onnx.ModelProto, model: QuantModel, images: torch.Tensor) -> dict[str, torch.Tensor]:
    """The codes of every QuantizeLinear that is named after a point, as the point means them."""
    points = model.point_modules()
    names = [n.output[0] for n in graph.graph.node if n.op_type == "QuantizeLinear"]
    names = [name for name in names if name.rpartition("/")[0] in points]
    whole = onnx.ModelProto()
    whole.CopyFrom(graph)
    whole.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
    codes = session(whole).run(names, {"images": model.preprocessing.normalize(images).numpy()})
    found = {}
    for name, stored in zip(names, codes, strict=True):
        bits = points[name.rpartition("/")[0]].require_config().bit_type
        moved = 128 if bits.signed and stored.dtype == np.uint8 else 0
        found[name.rpartition("/")[0]] = torch.from_numpy(stored.astype(np.int64) - moved)
    return found


def check_graph(graph: onnx.ModelProto) -> None:
    """Valid, and every shape known but for the batch."""
    onnx.checker.check_model(graph, full_check=True)
    inferred = onnx.shape_inference.infer_shapes(graph, check_type=True, strict_mode=True, data_prop=True)
    (logits,) = inferred.graph.output
    batch, width = logits.type.tensor_type.shape.dim
    assert batch.dim_param == "batch"
    assert width.dim_value > 0


def check_codes(changes: dict[str, Any], **spec: Any) -> None:
    model, images = quantized(changes, **spec), pixels(7, seed=1)
    graph = export_qdq(model)
    check_graph(graph)
    found, expected = graph_codes(graph, model, images), simulated_codes(model, images)
    active = {name for name, p in model.point_modules().items() if p.active and not name.endswith(".weight")}
    assert set(found) == active
    for name, codes in found.items():
        wanted = expected[name].reshape(len(images), -1, expected[name].shape[-1])
        codes = codes.reshape(len(images), -1, codes.shape[-1])
        step = 2 ** max(0, model.point_modules()[name].require_config().bit_type.bits - 8)
        share = float(((codes - wanted[:, : codes.shape[1]]).abs() >= step).double().mean())
        limit = 0.02 if name in FIRST else 0.25 if name.startswith("blocks.0.") else 0.9
        assert share < limit, f"{name}: {share:.2%} of the codes differ by 1/256 of their range or more"
    outputs = run(graph, model.preprocessing.normalize(images))
    assert outputs.shape == (7, model.spec.num_classes or model.spec.embed_dim)
    assert db(simulated(model, images), outputs) > 25
    first = run(graph, model.preprocessing.normalize(images[:1]))
    torch.testing.assert_close(first, outputs[:1], rtol=1e-3, atol=1e-4)


# Both sides add floats in another order, and biases carry zero points rounded to accumulators, so a number that all but
# stands between two codes may fall on either side; in so small a model each such number moves many others later on. A
# fold that is wrong moves all codes of a point at once.


@pytest.mark.usefixtures("float_between_points")
@pytest.mark.parametrize("changes", CHANGES.values(), ids=CHANGES.keys())
def test_codes_are_those_of_float_between_points(changes: dict[str, Any]) -> None:
    """Folding, pairing and moving zero points change no code but where float rounding differs on the way."""
    check_codes(changes)


@pytest.mark.usefixtures("float_between_points")
@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_architectures(spec: dict[str, Any]) -> None:
    check_codes({}, **spec)


@pytest.mark.usefixtures("float_between_points")
def test_two_float_heads() -> None:
    check_codes(CHANGES["float weights"], dist_token=True)


@pytest.mark.usefixtures("float_between_points")
@pytest.mark.filterwarnings("ignore::vitquant.calibration.repair.run.RepairWarning")
def test_corrected_biases_are_in_the_graph() -> None:
    changes = {"repair": ["bias_correction"]}
    check_codes(changes)
    graphs = [export_qdq(quantized(settings)) for settings in (changes, {})]
    arrays = [{array.name: numpy_helper.to_array(array) for array in graph.graph.initializer} for graph in graphs]
    moved = {name for name, array in arrays[0].items() if not np.array_equal(array, arrays[1][name])}
    assert moved
    assert all(".bias" in name for name in moved)


@pytest.mark.usefixtures("float_between_points")
@pytest.mark.filterwarnings("ignore::vitquant.calibration.repair.run.RepairWarning")
def test_weights_and_scales_of_gptq_are_in_the_graph() -> None:
    check_codes({"repair": ["gptq"]})


@pytest.mark.parametrize("changes", [{}, ALL_UNSIGNED, CHANGES["paired"], CHANGES["outputs too"]], ids=str)
def test_close_to_the_simulation(changes: dict[str, Any]) -> None:
    """Integer LayerNorm and requantization move some codes by one: less than quantization costs, by far."""
    model, images = quantized(changes), pixels(16, seed=1)
    images = model.preprocessing.normalize(images)
    graph = export_qdq(model)
    with torch.no_grad():
        expected = model(images)
        model.set_mode(vitquant.Mode.FP32)
        exact = model(images)
    assert db(expected, run(graph, images)) > db(exact, expected) + 6
    assert notes(graph).keys() <= {name for name in model.config if "attn_" in name}


@pytest.mark.parametrize(
    ("softmax", "told"),
    [
        ({"softmax": "log2"}, "left float"),
        ({"approximation": "ibert"}, "exact"),
        ({"approximation": "shiftmax"}, "exact"),
    ],
    ids=str,
)
def test_softmax_that_onnx_lacks_is_noted(softmax: dict[str, str], told: str) -> None:
    model, images = quantized({"intSoft": softmax}), pixels(7, seed=1)
    graph = export_qdq(model)
    check_graph(graph)
    found = notes(graph)
    assert set(found) == {"blocks.0.intSoft", "blocks.1.intSoft"}
    assert all(told in text for text in found.values())
    assert db(simulated(model, images), run(graph, model.preprocessing.normalize(images))) > 10


def test_products_of_zero_points_are_noted() -> None:
    graph = export_qdq(quantized(CHANGES["paired, unsigned"]))
    assert set(notes(graph)) == {f"blocks.{i}.attn_{part}_out" for i in range(2) for part in "qk"}
    assert "float" in notes(graph)["blocks.0.attn_q_out"]


def test_weights_are_integers_in_the_file() -> None:
    model = quantized()
    graph = export_qdq(model)
    stored = {t.name: t for t in graph.graph.initializer}
    layers = [name.removesuffix(".weight") for name in model.point_modules() if name.endswith(".weight")]
    for layer in layers:
        parts = [name for name in stored if name.startswith(f"{layer}.weight") and name.endswith("/codes")]
        assert len(parts) == (3 if "attn_qkv" in layer else 1)
        codes = np.concatenate([numpy_helper.to_array(stored[name]) for name in parts])
        assert codes.dtype == np.int8
        linear: Any = model.get_submodule(layer_path(layer))
        np.testing.assert_array_equal(codes, linear.weight_codes.numpy())
        bias = numpy_helper.to_array(stored[f"{layer}.bias/codes" if len(parts) == 1 else f"{layer}.bias/q/codes"])
        assert bias.dtype == np.int32
    floats = sum(t.ByteSize() for t in graph.graph.initializer if t.data_type == onnx.TensorProto.FLOAT)
    assert floats < graph.ByteSize() / 3


def layer_path(layer: str) -> str:
    """Where in the model the layer of this name is."""
    block, _, name = layer.rpartition(".")
    part = "attn." if name.startswith("attn_") else "mlp." if name.startswith("mlp_") else ""
    return {"patch_embed": "patch_embed.linear"}.get(layer, f"{block}{'.' if block else ''}{part}{name}")


def test_onnx_runtime_computes_in_integers(tmp_path: Path) -> None:
    """All linear layers fuse to integer kernels, and both products of attention."""
    path = tmp_path / "optimized.onnx"
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath, options.log_severity_level = str(path), 3
    graph = export_qdq(quantized())
    onnxruntime.InferenceSession(graph.SerializeToString(), options, providers=["CPUExecutionProvider"])
    kinds = [node.op_type for node in onnx.load(path).graph.node]
    assert kinds.count("QGemm") == 2 + 6 * 2  # Q, K and V apart
    assert kinds.count("MatMulIntegerToFloat") == 2 * 2
    assert not {"Gemm", "MatMul"} & set(kinds)


TENSORRT: dict[str, dict[str, Any]] = {
    name: CHANGES[name]
    for name in ("as shipped", "paired, unsigned", "all unsigned", "all layer_wise", "all 4 bits", "wide", "uniform")
} | {"unsigned weights": CHANGES["unsigned weights"], "outputs too": CHANGES["outputs too, unsigned, per channel"]}


@pytest.mark.parametrize("changes", TENSORRT.values(), ids=TENSORRT.keys())
def test_tensorrt_constraints(changes: dict[str, Any]) -> None:
    """int8 with zero point 0, one scale for an activation, at most one a row for weights, float biases, opset 20."""
    model, images = quantized(changes), pixels(7, seed=1)
    graph = export_qdq(model, target="tensorrt")
    check_graph(graph)
    assert [(o.domain, o.version) for o in graph.opset_import] == [("", 20)]
    arrays = {t.name: numpy_helper.to_array(t) for t in graph.graph.initializer}
    pairs = [n for n in graph.graph.node if n.op_type in ("QuantizeLinear", "DequantizeLinear")]
    assert len(pairs) >= 20
    for node in pairs:
        scale, zero = (arrays[name] for name in node.input[1:3])
        assert zero.dtype == np.int8
        assert not zero.any()
        assert (scale > 0).all()
        weights = ".weight" in node.name
        assert scale.shape == (zero.shape if weights else ())
        assert not weights or node.op_type == "DequantizeLinear"
    assert all(array.dtype in (np.float32, np.int8, np.int64) for array in arrays.values())
    exported = {n.name.removesuffix("/QuantizeLinear") for n in pairs if n.op_type == "QuantizeLinear"}
    active = {name for name, p in model.point_modules().items() if p.active and not name.endswith(".weight")}
    assert active - exported <= set(notes(graph))
    normalized = model.preprocessing.normalize(images)
    with torch.no_grad():
        expected = model(normalized)
        model.set_mode(vitquant.Mode.FP32)
        assert db(model(normalized), run(graph, normalized)) > db(model(normalized), expected) - 6


def test_tensorrt_says_what_stays_float() -> None:
    found = notes(export_qdq(quantized(), target="tensorrt"))
    stream = {"pos_embed", *(f"blocks.{i}.residual{j}" for i in range(2) for j in (1, 2))}
    assert set(found) == stream | {"blocks.0.intSoft", "blocks.1.intSoft"}
    assert all("left float" in text for text in found.values())


@pytest.mark.parametrize("opset", [18, 19, 20, 21])
def test_opsets(opset: int) -> None:
    """Gelu needs 20, codes of 4 and 16 bits need 21; before that the graph does without, and says so."""
    model, images = quantized(FOUR_BITS), pixels(7, seed=1)
    graph = export_qdq(model, opset=opset)
    check_graph(graph)
    kinds = {node.op_type for node in graph.graph.node}
    assert ("Gelu" in kinds, "Erf" in kinds) == (opset >= 20, opset < 20)
    types = {t.name: t.data_type for t in graph.graph.initializer}
    four = onnx.TensorProto.INT4 if opset >= 21 else onnx.TensorProto.INT8
    assert types["blocks.0.mlp_fc1.weight/codes"] == four
    assert all("opset 21" in text for text in notes(graph).values())
    assert ("blocks.0.residual1" in notes(graph)) == (opset < 21)
    assert db(simulated(model, images), run(graph, model.preprocessing.normalize(images))) > 15


def test_four_bit_weights_as_int8_give_the_same() -> None:
    model = quantized(FOUR_BITS)
    images = model.preprocessing.normalize(pixels(7, seed=1))
    packed, plain = (export_qdq(model, packed=packed) for packed in (True, False))
    assert not any(t.data_type == onnx.TensorProto.INT4 for t in plain.graph.initializer)
    codes = {t.name: t for t in packed.graph.initializer if t.name.endswith(".weight/codes")}
    assert len(codes["blocks.0.mlp_fc1.weight/codes"].raw_data) == 24 * 48 // 2
    assert db(run(plain, images), run(packed, images)) > 25


def test_int4_keeps_an_odd_number_of_codes() -> None:
    from vitquant.export.onnx.graph import OnnxGraph

    graph = OnnxGraph(21)
    codes = np.array([[-8, 7, -1], [0, 1, -7], [3, -4, 5]])
    graph.codes("w", codes, "int4")
    np.testing.assert_array_equal(numpy_helper.to_array(graph.initializers[0]).astype(np.int64), codes)


def test_groups_are_blocks() -> None:
    """INT4 with a scale per group; the last group of a row is shorter, which OpenVINO does not support."""
    model = quantized(IN_GROUPS)
    images = model.preprocessing.normalize(pixels(7, seed=1))
    packed, plain = (export_qdq(model, packed=packed) for packed in (True, False))
    check_graph(packed)
    name = "blocks.0.mlp_fc1.weight"  # 24 inputs
    node = next(node for node in packed.graph.node if node.name == f"{name}/DequantizeLinear")
    assert {a.name: a.i for a in node.attribute} == {"axis": 1, "block_size": 16}
    tensors = {t.name: t for t in packed.graph.initializer}
    codes, scale = (numpy_helper.to_array(tensors[f"{name}/{part}"]).astype(np.float64) for part in ("codes", "scale"))
    assert tensors[f"{name}/codes"].data_type == onnx.TensorProto.INT4
    assert (codes.shape, scale.shape) == ((48, 24), (48, 2))
    layer = next(layer for layer in model.linears() if layer.layer_name == "blocks.0.mlp_fc1")
    params = layer.weight.require_params()
    stored = codes * np.repeat(scale, 16, axis=1)[:, :24]
    np.testing.assert_allclose(stored, layer.weight_codes.numpy() * params.scale.numpy(), rtol=1e-6)
    assert db(run(plain, images), run(packed, images)) > 100
    for other in (plain, export_qdq(model, opset=20), export_qdq(model, target="openvino")):
        types = {t.name: t.data_type for t in other.graph.initializer}
        assert types[f"{name}/codes"] == onnx.TensorProto.INT8


@pytest.mark.parametrize(
    "changes",
    [{}, CHANGES["all layer_wise"], CHANGES["diffusion"], CHANGES["uniform"], FOUR_BITS, EVEN_GROUPS, ONE_GROUP],
    ids=str,
)
def test_openvino_gives_what_the_graph_says(changes: dict[str, Any]) -> None:
    """OpenVINO strips codes of 16 bits from a graph, so these points are left float for it."""
    openvino = pytest.importorskip("openvino")
    model, images = quantized(changes), pixels(7, seed=1)
    graph = export_qdq(model, target="openvino")
    check_graph(graph)
    assert set(notes(graph)) == {name for name in model.config if name == "pos_embed" or "residual" in name}
    settings = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": 1}
    core = openvino.Core()
    compiled = core.compile_model(core.read_model(graph.SerializeToString()), "CPU", settings)
    normalized = model.preprocessing.normalize(images)
    outputs = torch.from_numpy(compiled([normalized.numpy()])[0].copy())
    assert db(run(graph, normalized), outputs) > 30
    kinds = [str(op.get_rt_info()["layerType"].astype(str)) for op in compiled.get_runtime_model().get_ops()]
    assert "FakeQuantize" in kinds


def test_a_scale_per_head_on_signed_scores_compiles_in_openvino() -> None:
    openvino = pytest.importorskip("openvino")
    graph = export_qdq(quantized({"attn_kv_out": {**CHANNEL, "bit_type": {"signed": True}}}), target="openvino")
    core = openvino.Core()
    core.compile_model(core.read_model(graph.SerializeToString()), "CPU", {"INFERENCE_NUM_THREADS": 1})


def test_metadata() -> None:
    model = quantized()
    graph = export_qdq(model)
    metadata = {p.key: p.value for p in graph.metadata_props}
    assert metadata["target"] == "onnxruntime"
    assert vitquant.Preprocessing.from_dict(json.loads(metadata["preprocessing"])) == model.preprocessing
    assert (graph.producer_name, graph.ir_version) == ("vitquant", 10)
    assert [d.dim_value for d in graph.graph.input[0].type.tensor_type.shape.dim][1:] == [3, 16, 16]


def test_a_loaded_model_gives_the_same_graph(tmp_path: Path) -> None:
    model = quantized()
    vitquant.save(model, tmp_path / "model")
    loaded = export_qdq(vitquant.load(tmp_path / "model"))
    assert loaded.SerializeToString(deterministic=True) == export_qdq(model).SerializeToString(deterministic=True)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"target": "onnx"}, "target: unknown target. Got 'onnx', expected onnxruntime or openvino or tensorrt"),
        ({"opset": 17}, "opset: ONNX is not written in this opset. Got 17, expected 18 to 21"),
        ({"opset": 22, "target": "tensorrt"}, "expected 18 to 21"),
    ],
)
def test_what_is_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        export_qdq(quantized(), **settings)


def test_a_model_that_was_not_calibrated_is_refused() -> None:
    model = quantized()
    model.pos_embed.params = None
    with pytest.raises(LifecycleError, match="pos_embed"):
        export_qdq(model)


def test_without_onnx(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(MissingDependencyError, match=r"pip install 'vitquant\[export\]'"):
        export_qdq(quantized())
