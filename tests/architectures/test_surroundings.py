"""What else is set in torch, or done to the model, changes no figure; or it is refused in one line."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor

import vitquant
from vitquant.adapters.adapt import FloatModel
from vitquant.architectures.float_vit import VisionTransformer
from vitquant.data import Preprocessing
from vitquant.errors import DataError, ModelError, NumericsError, VitquantError
from vitquant.layers import only

PREPROCESSING = Preprocessing((8, 8), (0.5, 0.4, 0.3), (0.2, 0.3, 0.4))
CONFIGS: dict[str, Any] = {
    "shipped": "vit_int8.yaml",
    "row": {"outputs": {}, "activation": {}, "weight": {}, "norm": {}, "intSoft": {"bit_type": {"signed": False}}},
    "channels": {
        "weight": {"calibration_mode": "channel_wise"},
        "activation": {"calibration_mode": "channel_wise", "observer_type": "KLObserver"},
        "norm": {"observer_type": "PercentileObserver"},
        "intSoft": {"softmax": "log2", "approximation": "ibert", "bit_type": {"signed": False}},
    },
}
PIXELS = torch.randint(0, 256, (6, 3, 8, 8), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
IMAGES = PREPROCESSING.normalize(PIXELS)


@contextmanager
def double_by_default() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)


@contextmanager
def deterministic() -> Iterator[None]:
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


SURROUNDINGS: dict[str, Callable[[], Any]] = {
    "autocast": lambda: torch.autocast("cpu", dtype=torch.bfloat16),
    "inference mode": torch.inference_mode,
    "gradients": torch.enable_grad,
    "default device": lambda: torch.device("meta"),
    "default type": double_by_default,
    "deterministic": deterministic,
}


def everything(vit: VisionTransformer, config: Any, folder: Any) -> list[Any]:
    model = vitquant.quantize(FloatModel("s", vit, PREPROCESSING), config, calibration=PIXELS)
    found: list[Any] = [model(IMAGES), model.forward_features(IMAGES), vitquant.evaluate(model, PIXELS)]
    found += [[(p.sqnr_isolated_db, p.sqnr_cumulative_db) for p in vitquant.profile(model, PIXELS).points]]
    vitquant.save(model, folder)
    found.append(vitquant.load(folder)(IMAGES))
    found.append(vitquant.load(folder, vit=vit)(IMAGES))
    try:
        found.append(vitquant.Reference(vitquant.compile(model))(PIXELS).codes)
    except VitquantError as error:
        found.append(str(error))
    return found


def equal(a: Any, b: Any) -> bool:
    return a.dtype == b.dtype and torch.equal(a, b) if isinstance(a, Tensor) else a == b


@pytest.fixture(scope="module", params=CONFIGS)
def alone(request: Any, make_vit: Callable[..., VisionTransformer], tmp_path_factory: Any) -> tuple[Any, list[Any]]:
    """A configuration, and what it gives where nothing else is set."""
    config = CONFIGS[request.param]
    return config, everything(make_vit(depth=1), config, tmp_path_factory.mktemp("alone"))


@pytest.mark.job
@pytest.mark.parametrize("name", SURROUNDINGS)
def test_no_figure_changes(
    name: str, alone: tuple[Any, list[Any]], make_vit: Callable[..., VisionTransformer], tmp_path: Any
) -> None:
    config, wanted = alone
    vit = make_vit(depth=1)
    with SURROUNDINGS[name]():
        found = everything(vit, config, tmp_path)
    assert all(equal(a, b) for a, b in zip(found, wanted, strict=True))
    assert not any(t.requires_grad or t.is_inference() for t in found if isinstance(t, Tensor))


@pytest.fixture
def model(make_vit: Callable[..., VisionTransformer]) -> vitquant.QuantModel:
    return vitquant.quantize(FloatModel("s", make_vit(), PREPROCESSING), "vit_int8.yaml", calibration=PIXELS)


def test_training_mode_means_nothing(model: vitquant.QuantModel) -> None:
    wanted = model(IMAGES)
    assert torch.equal(model.train()(IMAGES), wanted)
    assert not any(p.requires_grad for p in model.parameters())


@pytest.mark.parametrize("part", [lambda m: m, lambda m: m.blocks[0], lambda m: m.head, lambda m: m.blocks[1].norm1])
@pytest.mark.parametrize(
    "convert",
    [
        lambda m: m.half(),
        lambda m: m.bfloat16(),
        lambda m: m.to(torch.float16),
        lambda m: m.to("cpu", torch.bfloat16),
        lambda m: m.type(torch.int8),
    ],
)
def test_short_floats_are_refused(convert: Any, part: Any, model: vitquant.QuantModel) -> None:
    wanted = model(IMAGES)
    with pytest.raises(ModelError, match=r"cannot be converted to this type\. Got \w+, expected float32 or float64"):
        convert(part(model))
    assert torch.equal(model(IMAGES), wanted)


def test_float64_is_simulated(model: vitquant.QuantModel) -> None:
    wanted = model(IMAGES)
    model.double()
    assert (model.dtype, model(IMAGES.double()).dtype) == (torch.float64, torch.float64)
    vitquant.evaluate(model, PIXELS)
    vitquant.profile(model, PIXELS[:2])
    with pytest.raises(DataError, match=r"expected float64 on cpu.*normalize and \.to\(model\.dtype\)"):
        model(IMAGES)
    assert torch.equal(model.float()(IMAGES), wanted)
    vitquant.calibrate(model.double(), PIXELS)


WRONG: dict[str, Any] = {
    "int64": PIXELS.long(),
    "half": IMAGES.half(),
    "float64": IMAGES.double(),
    "one image": IMAGES[0],
    "no images": IMAGES[:0],
    "grey": IMAGES[:, :1],
    "larger": torch.zeros(2, 3, 16, 16),
    "flat": IMAGES.flatten(1),
    "another device": IMAGES.to("meta"),
}


@pytest.mark.parametrize("name", WRONG)
def test_other_images_are_refused_in_one_line(name: str, model: vitquant.QuantModel) -> None:
    for forward in (model, model.forward_features):
        with pytest.raises(DataError, match=r"^images: images that the model does not take\. Got .*normalize\.$"):
            forward(WRONG[name])


@torch.no_grad()
def test_pixels_are_the_same_images(model: vitquant.QuantModel) -> None:
    assert torch.equal(model(PIXELS), model(IMAGES))
    with only([], model):
        assert torch.equal(model(PIXELS), model(IMAGES))


def test_what_is_no_tensor_is_refused(model: vitquant.QuantModel) -> None:
    for wrong in (None, [1], "a.png", IMAGES.numpy()):
        with pytest.raises(DataError, match="the input is no tensor"):
            model(wrong)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_no_number_passes_an_entrance(value: float, model: vitquant.QuantModel) -> None:
    images = IMAGES.clone()
    images[3, 1, 2, 2] = value
    for mode in (vitquant.Mode.QUANTIZED, vitquant.Mode.FP32):
        model.set_mode(mode)
        with pytest.raises(NumericsError, match=r"^images, image 3: NaN or Inf in the input\. Got 1 values that are"):
            model(images)
    block: Any = model.blocks[0]
    tokens = torch.zeros(2, 5, 16)
    tokens[1, 0, 0] = value
    parts: Any = (
        (block, tokens),
        (block.attn, tokens),
        (block.mlp, tokens),
        (model.head, tokens),
        (block.norm1, tokens),
    )
    for part, x in parts:
        with pytest.raises(NumericsError, match=r"^\S+, image 1: NaN or Inf in the input"):
            part(x)


def test_other_tokens_are_refused_in_one_line(model: vitquant.QuantModel) -> None:
    block: Any = model.blocks[0]
    for part in (block, block.attn, block.mlp):
        for x in (torch.zeros(5, 16), torch.zeros(2, 5, 7), torch.zeros(0, 5, 16), torch.zeros(2, 5, 16).double()):
            with pytest.raises(DataError, match=r"^blocks\.0\S*: "):
                part(x)


def test_an_output_that_is_not_finite(make_vit: Callable[..., VisionTransformer]) -> None:
    """The head stays float, so no point before it can find its NaN."""
    vit = make_vit()
    model = vitquant.quantize(FloatModel("s", vit, PREPROCESSING), {"activation": {}}, calibration=PIXELS)
    vit.head.bias.data[2] = float("nan")  # type: ignore[operator]
    bad = vitquant.prepare(FloatModel("s", vit, PREPROCESSING), {"activation": {}})
    with pytest.raises(NumericsError, match=r"^output, image 0, batch 1 .*: the model's output is not finite"):
        vitquant.calibrate(bad, PIXELS)
    assert bad.mode is vitquant.Mode.FP32
    with torch.no_grad():
        model.head.float_bias[2] = float("nan")
    with pytest.raises(NumericsError, match=r"^output, image 0: the model's output is not finite"):
        model(IMAGES)
    with pytest.raises(NumericsError, match=r"^batch 1: the float model's output is not finite"):
        vitquant.evaluate(model, PIXELS)
