"""The integer ONNX file in ONNX Runtime: the same bits as the reference, for every setting that ships."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

import vitquant
from support.integer_models import ARCHITECTURES, CONFIGS, pixels, quantized
from support.random_programs import programs, tangled_programs
from vitquant.errors import ProgramError
from vitquant.executors.reference import EXECUTE, Reference
from vitquant.executors.reference.tensors import Inputs
from vitquant.export.onnx.graph import GraphTensor, OnnxGraph
from vitquant.export.onnx.integer import EMIT, METADATA, OPSET, SCALES, arithmetic, export_integer
from vitquant.export.onnx.integer.shared import GraphValues
from vitquant.export.onnx.integer.step import NodeWriter
from vitquant.export.onnx.runtime import in_onnxruntime, onnx_session
from vitquant.numerics.affine import QuantParams
from vitquant.numerics.layernorm import integer_layernorm
from vitquant.program.ops import LayerNorm, Linear, Mix, Operation, Pool, SoftmaxDiffusion, SoftmaxLog2
from vitquant.program.program import IntegerProgram, Output
from vitquant.program.values import Array, Value

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")


def expected(program: IntegerProgram, images: torch.Tensor) -> Array:
    codes: Array = Reference(program)(images).codes.numpy()
    return codes


def assert_same_bits(program: IntegerProgram, seed: int) -> None:
    """One graph, three batches; checked by ONNX itself, and free of floats."""
    model = export_integer(program)
    onnx.checker.check_model(model, full_check=True)
    assert_integers_only(model)
    session = onnx_session(model.SerializeToString(), threads=1)
    for count in (1, 3, 7):
        images = pixels(count, seed=seed)
        logits = session.run(["logits"], {"image": images.numpy()})[0]
        assert logits.dtype == np.int32
        np.testing.assert_array_equal(logits, expected(program, images))


def assert_integers_only(model: Any) -> None:
    """Every tensor of the graph, intermediate ones too, has an integer type, or is a comparison's outcome."""
    kinds = onnx.TensorProto
    signed, unsigned = {kinds.INT8, kinds.INT16, kinds.INT32, kinds.INT64}, {kinds.UINT8, kinds.UINT32, kinds.UINT64}
    graph = onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True, data_prop=True).graph
    found = {v.name: v.type.tensor_type.elem_type for v in (*graph.value_info, *graph.input, *graph.output)}
    found |= {t.name: t.data_type for t in graph.initializer}
    comparisons = {node.output[0] for node in graph.node if node.op_type in ("GreaterOrEqual", "Less")}
    assert {name for node in graph.node for name in (*node.input, *node.output)} <= found.keys()
    for name, element in found.items():
        assert element == kinds.BOOL if name in comparisons else element in signed | unsigned, name
    assert {node.domain for node in graph.node} == {""}
    bytes_multiplied = [name for node in graph.node if node.op_type == "MatMulInteger" for name in node.input]
    assert {found[name] for name in bytes_multiplied} <= {kinds.UINT8}  # all others saturate on some machines


@pytest.mark.job
@pytest.mark.parametrize("changes", CONFIGS.values(), ids=CONFIGS.keys())
def test_settings(changes: dict[str, Any]) -> None:
    assert_same_bits(vitquant.compile(quantized(changes)), seed=1)


@pytest.mark.parametrize("spec", ARCHITECTURES, ids=str)
def test_architectures(spec: dict[str, Any]) -> None:
    assert_same_bits(vitquant.compile(quantized(**spec)), seed=2)


def test_every_value_has_its_name_type_and_codes() -> None:
    """What a runtime shows between the operators are the program's values."""
    program = vitquant.compile(quantized({"intSoft": {"softmax": "log2"}}))
    model, images = export_integer(program), pixels(3, seed=3)
    values = {op.out.name: op.out for op in program.needed(["logits"]) if op.out.name != "logits"}
    inferred = {v.name: v for v in onnx.shape_inference.infer_shapes(model).graph.value_info}
    model.graph.output.extend(inferred[name] for name in values)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    found = session.run(list(values), {"image": images.numpy()})
    reference = Reference(program).run(images, keep=list(values))
    for (name, value), array in zip(values.items(), found, strict=True):
        assert array.dtype == value.dtype, name
        assert array.shape == (3, *value.shape), name
        np.testing.assert_array_equal(array, reference[name].numpy(), err_msg=name)


def test_embedded_model() -> None:
    calibration, _, test, _ = vitquant.load_fashion_images()
    model = vitquant.load_fashion()
    batch = model.preprocessing.normalize(calibration[:16, None])
    program = vitquant.compile(vitquant.quantize(model, "vit_int8.yaml", calibration=batch))
    data, images = export_integer(program).SerializeToString(), test[:100, None]
    assert len(data) < 1.5 * program.nbytes
    np.testing.assert_array_equal(in_onnxruntime(data)(images.numpy()), expected(program, images))


def test_another_weight_would_be_seen(tmp_path: Path) -> None:
    """One bit of one weight of the head changes the logits of its class, and no other."""
    program, images = vitquant.compile(quantized()), pixels(7, seed=1)
    *others, head = program.operations
    assert isinstance(head, Linear)
    weight = head.weight.copy()
    weight[2, 3] ^= 1
    changed = dataclasses.replace(program, operations=(*others, dataclasses.replace(head, weight=weight)))
    onnx.save(export_integer(changed), tmp_path / "changed.onnx")
    differs = in_onnxruntime(tmp_path / "changed.onnx")(images.numpy()) != expected(program, images)
    assert differs.any(0).tolist() == [False, False, True, False, False]


def test_metadata_tells_what_the_logits_mean() -> None:
    program = vitquant.compile(quantized(), name="tiny")
    model = export_integer(program)
    told = {entry.key: json.loads(entry.value) for entry in model.metadata_props}
    assert told[METADATA] == json.loads(json.dumps(program.metadata))
    assert model.graph.name == told[METADATA]["model"] == "tiny"
    assert np.array_equal(
        np.array(told["logits" + SCALES], dtype=np.float32), Reference(program)(pixels(1)).scale.numpy()
    )


@pytest.mark.job
@settings(suppress_health_check=list(HealthCheck))
@given(programs() | tangled_programs())
def test_random_programs(program: IntegerProgram) -> None:
    """Windows, tables, gathers and products of all kinds, in any order; all outputs."""
    names = [output.name for output in program.outputs]
    try:
        model = export_integer(program, names)
    except ProgramError:  # a LayerNorm of more than 63 bits
        assume(False)
    assert_integers_only(model)
    images = np.random.default_rng(0).integers(0, 256, (2, *program.image.shape), dtype=np.uint8)
    arrays = onnx_session(model.SerializeToString(), threads=1).run(names, {"image": images})
    found = dict(zip(names, arrays, strict=True))
    for name, output in Reference(program, outputs=names).all(torch.from_numpy(images)).items():
        np.testing.assert_array_equal(found[name], output.codes.numpy(), err_msg=name)


# --- Operations that no model above takes to their limits ---


def value(name: str, shape: tuple[int, ...], low: int, high: int, zero: tuple[int, ...] = (0,)) -> Value:
    return Value(name, shape, low, high, np.ones(len(zero), np.float32), np.array(zero, np.int32))


def assert_operation(op: Operation, *inputs: tuple[Value, Array]) -> None:
    """The nodes of one operation against the reference, on codes of our choice."""
    values = {v.name: v for v, _ in inputs} | {op.out.name: op.out}
    codes = {v.name: array.astype(v.dtype) for v, array in inputs}
    program = IntegerProgram(inputs[0][0], (op,), (Output(op.out.name, op.out.name),))
    constants = Reference(program).constants[op.out.name]
    tensors = {name: torch.from_numpy(array) for name, array in codes.items()}
    reference = EXECUTE[type(op)](op, constants, Inputs(tensors, values, len(codes[inputs[0][0].name])))
    graph = OnnxGraph(OPSET)
    EMIT[type(op)](NodeWriter(graph, op.out.name), op, GraphValues(values, "image"))
    found = run_graph(graph, codes, GraphTensor(op.out.name, op.out.dtype, ("batch", *op.out.shape)))
    np.testing.assert_array_equal(found, reference.numpy())


def run_graph(graph: OnnxGraph, inputs: dict[str, Array], out: GraphTensor) -> Array:
    declared = [GraphTensor(name, array.dtype, array.shape) for name, array in inputs.items()]
    data = graph.model("part", declared, [out], {}).SerializeToString()
    found: Array = onnx_session(data, threads=1).run([out.name], inputs)[0]
    return found


@pytest.mark.parametrize("channels", [1, 2, 3, 64, 1625])
@pytest.mark.parametrize("epsilon", [0.0, 1e-6, 1e3])
def test_layernorm_of_quiet_and_loud_tokens(channels: int, epsilon: float) -> None:
    rng = np.random.default_rng(channels)
    grid = QuantParams(torch.tensor(0.02), torch.tensor(3.0), -128, 127)
    gamma, beta = (torch.from_numpy(rng.normal(size=channels)) for _ in range(2))
    made = integer_layernorm(gamma, beta, epsilon, 1.0, grid)
    spans = 2 ** rng.integers(0, 17, (2, 200, 1))
    codes = rng.integers(-32768, 32768, (2, 200, channels)) % spans - spans // 2
    codes[0, :4] = np.array([0, 5, -32768, 32767])[:, None]  # constant tokens
    codes[0, 4] = np.where(np.arange(channels) % 2, -32768, 32767)
    x = value("x", (200, channels), -32768, 32767)
    op = LayerNorm(
        value("norm", (200, channels), -128, 127, (3,)),
        "x",
        made.gain.numpy(),
        made.offset.numpy(),
        made.shift.numpy().astype(np.uint8),
        np.array([made.epsilon]),
        made.headroom,
    )
    assert_operation(op, (x, codes))


def test_layernorm_that_no_compiled_program_has_is_refused() -> None:
    gain, offset = np.full(4096, 2**36), np.full(4096, 2**60)
    out = value("norm", (1, 4096), -128, 127)
    op = LayerNorm(out, "x", gain, offset, np.full(4096, 30, np.uint8), np.array([0]), 0)
    known = GraphValues({"x": value("x", (1, 4096), -128, 127), "norm": out}, "image")
    with pytest.raises(ProgramError, match=r"^norm: .* Got 64"):
        EMIT[LayerNorm](NodeWriter(OnnxGraph(OPSET), "norm"), op, known)


@pytest.mark.parametrize("last", [0, 7, 15])
@pytest.mark.parametrize("tokens", [1, 2, 40, 2000])
def test_log2_of_every_ratio(last: int, tokens: int) -> None:
    """Two heads with tables of their own, from one that falls slowly to one that is 0 soon."""
    rng = np.random.default_rng(tokens)
    slow, fast = (np.round(32767 * np.exp(-s * np.arange(256))) for s in (0.001, 0.3))
    table = np.stack([slow, fast]).astype(np.int32)
    scores = value("scores", (4, 20, tokens), 0, 255)
    codes = rng.integers(0, 256, (1, 4, 20, tokens)) // (1 << rng.integers(0, 8, (1, 4, 20, 1)))
    op = SoftmaxLog2(value("p", scores.shape, 0, 2**15), "scores", table, last)
    assert_operation(op, (scores, codes))


@pytest.mark.parametrize("tokens", [1, 2, 40, 2000])
@pytest.mark.parametrize("top", [255, 65535])
def test_diffusion(top: int, tokens: int) -> None:
    """Two heads with tables of their own; the sums of long rows of wide codes leave 32 bits."""
    rng = np.random.default_rng(tokens)
    table = np.stack([np.round(top * 256 * np.exp(-s * np.arange(256))) for s in (0.001, 0.3)]).astype(np.int32)
    scores = value("scores", (4, 20, tokens), 0, 255)
    codes = rng.integers(0, 256, (1, 4, 20, tokens)) // (1 << rng.integers(0, 8, (1, 4, 20, 1)))
    op = SoftmaxDiffusion(value("p", scores.shape, 0, top), "scores", table)
    assert_operation(op, (scores, codes))


@pytest.mark.parametrize("zero_p", [(0,), (-7,), (3, -4)])
@pytest.mark.parametrize("zero_v", [(0,), (-100,), (3, -4), tuple(range(-4, 4))])
def test_zero_points_of_both_sides(zero_p: tuple[int, ...], zero_v: tuple[int, ...]) -> None:
    rng = np.random.default_rng(0)
    p, v = value("p", (2, 9, 9), -128, 127, zero_p), value("v", (9, 8), -128, 127, zero_v)
    codes = rng.integers(-128, 128, (3, 2, 9, 9)), rng.integers(-128, 128, (3, 9, 8))
    multiplier, shift = np.arange(2**21, 2**21 + 8, dtype=np.int32), np.full(8, 31, np.uint8)
    op = Mix(value("out", (9, 8), -2000, 2000, (5,)), "p", "v", 1, False, 0, 0, multiplier, shift)
    assert_operation(op, (p, codes[0]), (v, codes[1]))


@given(st.integers(1, 9), st.integers(-(2**15), 2**15), st.integers(1, 2**15), st.integers(0, 2**32))
@settings(max_examples=20)
def test_pooled_means_of_any_sign(count: int, low: int, span: int, seed: int) -> None:
    x = value("x", (count + 1, 6), low, low + span)
    codes = np.random.default_rng(seed).integers(low, low + span, (2, count + 1, 6), endpoint=True)
    assert_operation(Pool(value("pool", (1, 6), low, low + span), "x", 1), (x, codes))


# --- Arithmetic ---


def square_root(steps: int = arithmetic.NEWTON_STEPS) -> Callable[[Array], Array]:
    """The integer square root as a graph, run on int64 ``[n]``."""
    graph = OnnxGraph(OPSET)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(arithmetic, "NEWTON_STEPS", steps)
        out = arithmetic.isqrt(NodeWriter(graph, "root"), "x")
    ends = [GraphTensor(name, np.dtype("int64"), ("n", 1)) for name in ("x", out)]
    session = onnx_session(graph.model("root", ends[:1], ends[1:], {}).SerializeToString(), threads=1)
    return lambda x: session.run([out], {"x": x[:, None]})[0][:, 0]


@pytest.fixture(scope="module")
def root() -> Callable[[Array], Array]:
    return square_root()


def test_isqrt_of_small_numbers(root: Callable[[Array], Array]) -> None:
    x = np.arange(1, 2**18)
    np.testing.assert_array_equal(root(x), np.floor(np.sqrt(x)).astype(np.int64))  # exact so far below 2^52


def test_isqrt_around_squares_and_powers_of_two(root: Callable[[Array], Array]) -> None:
    """Where a step more would be needed, or one would fall below: beside squares, and far from the start."""
    rng = np.random.default_rng(0)
    roots = np.concatenate([2 ** np.arange(1, 31), 2**31 - 2 ** np.arange(30), rng.integers(2, 2**31, 20000)])
    x = np.concatenate([roots**2 - 1, roots**2, roots**2 + 1, (roots - 1) * roots, 2 ** np.arange(62)])
    x = np.unique(x[(x > 0) & (x < 2**62)])
    np.testing.assert_array_equal(root(x), np.array([math.isqrt(int(n)) for n in x]))


@given(st.lists(st.integers(1, 2**62 - 1), min_size=1, max_size=200))
@settings(max_examples=50)
def test_isqrt_of_any_number(root: Callable[[Array], Array], numbers: list[int]) -> None:
    assert root(np.array(numbers)).tolist() == [math.isqrt(n) for n in numbers]


def test_isqrt_needs_all_of_its_steps(root: Callable[[Array], Array]) -> None:
    x = np.array([(2**30 + 1) ** 2 - 1])
    assert root(x) == 2**30
    assert square_root(arithmetic.NEWTON_STEPS - 1)(x) == 2**30 + 1


@given(st.data())
@settings(max_examples=40)
def test_rescale(data: st.DataObject) -> None:
    """Against Python's integers, which shift towards minus infinity and never overflow."""
    limit = data.draw(st.sampled_from([1, 255, 2**15, 2**23, 2**31 - 1]))
    m = data.draw(st.lists(st.integers(2**21, 2**22 - 1), min_size=3, max_size=3))
    n = data.draw(st.lists(st.integers(0, 52), min_size=3, max_size=3))
    b = data.draw(st.lists(st.integers(-(2**52), 2**52), min_size=3, max_size=3))
    x = data.draw(st.lists(st.integers(-limit, limit), min_size=1, max_size=30))
    graph = OnnxGraph(OPSET)
    made = arithmetic.rescale(NodeWriter(graph, "y"), "x", np.array(m), np.array(b), np.array(n), limit)
    out = GraphTensor(made.tensor, np.dtype(made.dtype), (len(x), 3))
    y = run_graph(graph, {"x": np.array(x, np.int32)[:, None]}, out)
    exact = [[(v * m[i] + b[i] + ((1 << n[i]) >> 1)) >> n[i] for i in range(3)] for v in x]
    assert (y.astype(np.int64) - made.offset).tolist() == exact
    assert np.abs(y).max() <= made.limit
