"""A quantized model owns what it has: nothing that happens to the caller's objects changes it, nor the reverse."""

import copy
import pickle
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

import vitquant
from vitquant.adapters.adapt import FloatModel
from vitquant.architectures.families import VIT
from vitquant.architectures.float_vit import VisionTransformer, ViTSpec
from vitquant.architectures.vit import QuantBlock
from vitquant.artifact.outline import outline
from vitquant.artifact.storage import TENSORS, restore, state
from vitquant.data import Preprocessing
from vitquant.layers import QAct, set_mode
from vitquant.program.program import IntegerProgram

PREPROCESSING = Preprocessing((8, 8), (0.5, 0.4, 0.3), (0.2, 0.3, 0.4))
FLOAT_PARTS: dict[str, Any] = {"activation": {}}  # weights and biases stay float
SETTINGS: list[dict[str, Any]] = [
    {},
    {"layer_scale": True},
    {"class_token": False, "pool": "avg"},
    {"dist_token": True},
]


def pixels() -> Tensor:
    return torch.randint(0, 256, (6, 3, 8, 8), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)


def scribble(*tensors: Tensor | np.ndarray) -> None:
    with torch.no_grad():
        for tensor in tensors:
            if isinstance(tensor, Tensor):
                tensor.fill_(7)
            else:
                tensor.flags.writeable = True
                tensor[...] = 7


def arrays(program: IntegerProgram) -> Iterator[np.ndarray]:
    for _, array in program.tensors():
        yield array
    for value in program.values().values():
        yield from (value.scale, value.zero_point)


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
@pytest.mark.parametrize("config", ["vit_int8.yaml", FLOAT_PARTS], ids=["int8", "float weights"])
def test_nothing_of_the_caller_is_shared(
    config: Any, settings: dict[str, Any], make_vit: Callable[..., VisionTransformer], tmp_path: Path
) -> None:
    vit, images, x = make_vit(**settings), pixels(), PREPROCESSING.normalize(pixels())
    settings_given = copy.deepcopy(config)
    lists: Any = Preprocessing([8, 8], [0.5, 0.4, 0.3], [0.2, 0.3, 0.4])  # type: ignore[arg-type]
    model = vitquant.quantize(FloatModel("small", vit, lists), settings_given, calibration=images)
    vitquant.save(model, tmp_path)
    beside = vitquant.load(tmp_path, vit=vit)
    wanted, wanted_float = model(x), beside_float(beside, x)

    scribble(images, *vit.parameters())
    vit.double().train()
    vit.blocks[0].mlp.act.approximate = "tanh"  # type: ignore[union-attr]
    if isinstance(settings_given, dict):
        settings_given["activation"]["bit_type"] = {"bits": 2}
    for values in (lists.img_size, lists.mean, lists.std):
        if isinstance(values, list):
            values[0] = 99

    assert torch.equal(model(x), wanted)
    assert torch.equal(beside(x), wanted)
    assert torch.equal(beside_float(beside, x), wanted_float)
    assert model.preprocessing == PREPROCESSING


def beside_float(model: vitquant.QuantModel, x: Tensor) -> Tensor:
    model.set_mode(vitquant.Mode.FP32)
    y: Tensor = model(x)
    model.set_mode(vitquant.Mode.QUANTIZED)
    return y


def snapshot(vit: VisionTransformer) -> dict[str, Any]:
    return {
        "tensors": {n: (p, p._version, p.dtype, p.device, p.requires_grad) for n, p in vit.named_parameters()},
        "modes": [m.training for m in vit.modules()],
        "hooks": [(len(m._forward_hooks), len(m._forward_pre_hooks)) for m in vit.modules()],
        "modules": [id(m) for m in vit.modules()],
    }


def same(before: dict[str, Any], after: dict[str, Any]) -> bool:
    rest = all(before[key] == after[key] for key in ("modes", "hooks", "modules"))
    pairs = ((before["tensors"][name], after["tensors"][name]) for name in before["tensors"])
    return rest and all(a[0] is b[0] and a[1:] == b[1:] for a, b in pairs)


def test_the_float_model_is_left_alone(make_vit: Callable[..., VisionTransformer], tmp_path: Path) -> None:
    vit = make_vit()
    hooks: list[str] = []
    vit.blocks[0].mlp.act.register_forward_hook(lambda *_: hooks.append("act"))  # type: ignore[union-attr]
    vit.blocks[0].norm1.register_forward_hook(lambda *_: hooks.append("norm"))  # type: ignore[union-attr]
    vit.blocks[1].requires_grad_(False)
    before, values = snapshot(vit), [p.clone() for p in vit.parameters()]

    model = vitquant.prepare(FloatModel("small", vit, PREPROCESSING), "vit_int8.yaml", device="cpu")
    vitquant.calibrate(model, pixels())
    vitquant.evaluate(model, pixels())
    vitquant.profile(model, pixels())
    vitquant.save(model, tmp_path)
    vitquant.load(tmp_path, vit=vit).double()
    model.train().double().to("meta")

    assert same(before, snapshot(vit))
    assert all(torch.equal(a, b) for a, b in zip(values, vit.parameters(), strict=True))
    assert hooks == [], "the layers of the float model are not run"


def test_parts_used_alone_own_their_tensors(make_vit: Callable[..., VisionTransformer]) -> None:
    vit, x = make_vit(layer_scale=True), torch.randn(2, 5, 16, generator=torch.Generator().manual_seed(1))
    config = vitquant.ModelConfig.from_dict({"activation": {}, "outputs": {}, "norm": {}, "intSoft": {}, "weight": {}})
    names = vitquant.QuantViT(vit, config, PREPROCESSING).point_modules()
    block: Any = vit.blocks[0]
    gain = block.ls1.gamma
    parts: list[nn.Module] = [
        QuantBlock(block, config.resolve(list(names)), prefix="blocks.0."),
        vitquant.QuantAttention(block, {"weight": {}}, gain=gain),
        vitquant.QuantLinear(block.attn.qkv, None, None, "attn_qkv", gain=None),
        vitquant.QuantLinear(block.attn.proj, None, None, "attn_proj", gain=gain),
    ]
    for part in parts[:2]:
        vitquant.calibrate_batches(part, [x])
    wanted = [part(x) for part in parts]
    scribble(*vit.parameters())
    assert all(torch.equal(part(x), y) for part, y in zip(parts, wanted, strict=True))


def test_an_activation_is_copied() -> None:
    act = nn.PReLU()
    seen: list[int] = []
    act.register_forward_hook(lambda *_: seen.append(1))
    point = QAct(None, act, "mlp_gelu")
    scribble(*act.parameters())
    assert torch.equal(point(torch.tensor([[-4.0]])), torch.tensor([[-1.0]]))
    assert seen == []


def test_observers_keep_no_views_of_a_buffer_that_is_used_again(make_vit: Callable[..., VisionTransformer]) -> None:
    images = PREPROCESSING.normalize(pixels())

    def reused() -> Iterator[Tensor]:
        buffer = torch.empty_like(images[:2])
        for start in range(0, 6, 2):
            yield buffer.copy_(images[start : start + 2])
            buffer.fill_(float("nan"))

    for observer in ("MinmaxObserver", "PercentileObserver", "KLObserver", "OmseObserver"):
        config = vitquant.ModelConfig.from_dict({"activation": {"observer_type": observer}, "outputs": {}})
        one, two = (vitquant.QuantViT(make_vit(), config, PREPROCESSING) for _ in range(2))
        vitquant.calibrate_batches(one, images.split(2))
        vitquant.calibrate_batches(two, reused())
        assert torch.equal(one(images), two(images))


def test_a_program_and_its_model_do_not_share(make_vit: Callable[..., VisionTransformer]) -> None:
    model = vitquant.quantize(FloatModel("s", make_vit(), PREPROCESSING), "vit_int8.yaml", calibration=pixels())
    x = PREPROCESSING.normalize(pixels())
    wanted = model(x)
    program, other = vitquant.compile(model), vitquant.compile(model)
    reference = vitquant.Reference(program)
    codes = reference(pixels()).codes
    scribble(*arrays(other))
    assert torch.equal(model(x), wanted)
    assert torch.equal(vitquant.Reference(vitquant.compile(model))(pixels()).codes, codes)
    logits = reference(pixels())
    scribble(logits.scale, logits.codes)
    assert torch.equal(reference(pixels()).codes, codes)
    assert not torch.equal(reference(pixels()).scale, logits.scale)
    before = [array.copy() for array in arrays(program)]
    scribble(*model.buffers(), *model.parameters())
    for point in model.point_modules().values():
        if point.params is not None:
            scribble(point.params.scale, point.params.zero_point)
    assert all(np.array_equal(a, b) for a, b in zip(before, arrays(program), strict=True))
    scribble(*arrays(program))
    assert torch.equal(reference(pixels()).codes, codes), "an executor owns what it runs"


def test_copies_are_equal_and_apart(make_vit: Callable[..., VisionTransformer]) -> None:
    model = vitquant.quantize(FloatModel("s", make_vit(), PREPROCESSING), "vit_int8.yaml", calibration=pixels())
    x = PREPROCESSING.normalize(pixels())
    wanted = model(x)
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(twin(x), wanted)
        scribble(*twin.buffers(), *twin.parameters())
        set_mode(twin, vitquant.Mode.FP32)
        assert torch.equal(model(x), wanted)


def test_restoring_copies(make_vit: Callable[..., VisionTransformer], tmp_path: Path) -> None:
    model = vitquant.quantize(FloatModel("s", make_vit(), PREPROCESSING), "vit_int8.yaml", calibration=pixels())
    vitquant.save(model, tmp_path)
    tensors = load_file(tmp_path / TENSORS)
    config = vitquant.ModelConfig.from_text(model.config.to_yaml(), "config")
    again = outline(VIT, model.spec, config, PREPROCESSING)
    assert tensors.keys() == dict(state(again)).keys()
    restore(again, tensors)
    again.set_mode(vitquant.Mode.QUANTIZED)
    scribble(*tensors.values())
    x = PREPROCESSING.normalize(pixels())
    assert torch.equal(again(x), model(x))


def test_a_specification_of_lists(make_vit: Callable[..., VisionTransformer]) -> None:
    vit = make_vit()
    size: Any = [8, 8]
    vit.spec = ViTSpec(**{**vit.spec.__dict__, "img_size": size})
    model = vitquant.QuantViT(vit, vitquant.ModelConfig.from_dict({"activation": {}}), PREPROCESSING)
    size[0] = 99
    assert model.spec.img_size == (8, 8)
