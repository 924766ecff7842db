"""Calibration: what it changes, what it leaves, and what it refuses."""

import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from vitquant.adapters.adapt import FloatModel, sqnr_db
from vitquant.adapters.fashion import load_fashion_images
from vitquant.architectures.float_vit import VisionTransformer
from vitquant.architectures.model import QuantModel
from vitquant.architectures.vit import QuantViT
from vitquant.calibration.calibrate import RangeWarning, calibrate_batches, no_range_message
from vitquant.config import ModelConfig
from vitquant.data import Preprocessing
from vitquant.errors import DataError, LifecycleError, NumericsError
from vitquant.layers import Mode
from vitquant.numerics.quantized import real
from vitquant.workflows.quantize import calibrate, prepare, quantize

HALF = (0.5, 0.5, 0.5)
PREPROCESSING = Preprocessing((8, 8), HALF, HALF)
EVERY: dict[str, Any] = {
    "weight": {"calibration_mode": "channel_wise"},
    "outputs": {"output_quant_enable": False},
    "activation": {"calibration_mode": "channel_wise"},
}


def pixels(count: int = 8) -> Tensor:
    return torch.randint(0, 256, (count, 3, 8, 8), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)


def small(vit: VisionTransformer, config: dict[str, Any] | None = None) -> QuantModel:
    return QuantViT(vit, ModelConfig.from_dict(EVERY if config is None else config), PREPROCESSING)


def grids(model: QuantModel) -> dict[str, tuple[Tensor, Tensor]]:
    return {i.name: (i.params.scale, i.params.zero_point) for i in model.points() if i.params is not None}


def same(a: QuantModel, b: QuantModel) -> bool:
    one, two = grids(a), grids(b)
    return one.keys() == two.keys() and all(
        torch.equal(x, y) for name in one for x, y in zip(one[name], two[name], strict=True)
    )


@torch.no_grad()
def test_the_whole_job_in_one_call(fashion: FloatModel, fashion_images: Tensor, calibration_images: Tensor) -> None:
    model = quantize(fashion, "vit_int8.yaml", calibration=calibration_images)
    assert model.mode is Mode.QUANTIZED
    assert sqnr_db(fashion.vit(fashion_images), model(fashion_images)) > 28
    for info in model.points():
        assert info.shape is not None
        if info.active and not info.name.endswith("intSoft"):  # the row form needs no statistics
            assert info.params is not None
            assert info.params.scale.isfinite().all()
    model.set_mode(Mode.FP32)
    assert model.mode is Mode.FP32  # type: ignore[comparison-overlap]
    assert torch.equal(model(fashion_images), fashion.vit(fashion_images)), "calibration changes no float weight"


def test_the_shapes_are_those_of_the_tensors(make_vit: Callable[..., VisionTransformer]) -> None:
    model = calibrate(small(make_vit(depth=1)), pixels())
    shapes = {info.name.removeprefix("blocks.0."): info.shape for info in model.points()}
    tokens = dict.fromkeys(("norm1", "attn_q_out", "residual1", "mlp_fc2.output", "pos_embed", "norm2"), (5, 16))
    others = {
        "patch_embed.output": (4, 16),
        "patch_embed.weight": (16, 48),
        "attn_qkv.weight": (48, 16),
        "head.weight": (5, 16),
        "attn_qkv.output": (5, 48),
        "attn_kv_out": (2, 5, 5),
        "intSoft": (2, 5, 5),
        "mlp_gelu": (5, 24),
        "final_norm": (5, 16),
        "head.output": (5,),
    }
    assert (tokens | others).items() <= shapes.items()


def test_points_are_in_the_order_of_computation(make_vit: Callable[..., VisionTransformer]) -> None:
    model = small(make_vit(depth=1), EVERY | {"weight": {"output_quant_enable": False}})
    order: list[str] = []
    for point in model.point_modules().values():
        point.hook = lambda p, before, after: order.append(p.name)
    model(PREPROCESSING.normalize(pixels(1)))
    computed = [name for name in model.config if name in order]
    assert len(computed) == len(model.config)
    assert sorted(order, key=computed.index) == order


def test_twice_is_as_once(make_vit: Callable[..., VisionTransformer]) -> None:
    once, twice = small(make_vit()), small(make_vit())
    calibrate(once, pixels())
    calibrate(twice, 255 - pixels(6))
    assert not same(once, twice)
    calibrate(twice, pixels())
    assert same(once, twice)
    assert all(point.observer is None for point in twice.point_modules().values())


def test_the_size_of_the_batches_does_not_matter(make_vit: Callable[..., VisionTransformer]) -> None:
    a, b = (calibrate(small(make_vit()), pixels(), batch_size=size) for size in (8, 3))
    for (name, one), two in zip(grids(a).items(), grids(b).values(), strict=True):
        torch.testing.assert_close(one, two, rtol=1e-5, atol=1e-7, msg=name)


def test_the_limit_is_a_prefix(make_vit: Callable[..., VisionTransformer]) -> None:
    a = calibrate(small(make_vit()), pixels(8), limit=4, batch_size=4)
    b = calibrate(small(make_vit()), pixels(8)[:4], batch_size=4)
    assert same(a, b)


def test_norms_are_folded_into_the_layers_after_them(make_vit: Callable[..., VisionTransformer]) -> None:
    model = calibrate(small(make_vit(depth=1)), pixels())
    block: Any = model.blocks[0]
    pairs: Any = (
        (block.attn.attn_qkv, block.norm1),
        (block.attn.attn_proj, block.attn.attn_v_out),
        (block.mlp.mlp_fc1, block.norm2),
        (block.mlp.mlp_fc2, block.mlp.mlp_gelu),
        (model.head, model.final_norm),
    )
    for layer, point in pairs:
        assert torch.equal(layer.input_scale, point.require_params().scale)
        folded = layer.float_weight * layer.input_scale
        assert torch.equal(layer.weight_codes.abs().amax(1), torch.full((len(folded),), 127))
        torch.testing.assert_close(
            layer.weight.require_params().scale.flatten(), folded.abs().amax(1) / 127, rtol=1e-6, atol=0
        )


def test_without_calibration_nothing_is_quantized(make_vit: Callable[..., VisionTransformer]) -> None:
    config = {"overrides": {"blocks.3.attn_kv_out": {"bit_type": {"bits": 8}}}}
    model = small(make_vit(depth=4), config)
    with pytest.raises(LifecycleError, match=r"^no statistics for blocks\.3\.attn_kv_out\. Expected .* Fix: call vit"):
        model.set_mode(Mode.QUANTIZED)
    assert model.mode is Mode.FP32
    every = small(make_vit(depth=4))
    with pytest.raises(LifecycleError, match=r"no statistics for pos_embed \(and \d+ more points\)"):
        every.set_mode(Mode.QUANTIZED)
    calibrate(model, pixels()).set_mode(Mode.QUANTIZED)


def test_no_images_are_refused(make_vit: Callable[..., VisionTransformer]) -> None:
    model = small(make_vit())
    with pytest.raises(DataError, match=r"calibration got no images\. Fix: pass at least one batch"):
        calibrate_batches(model, [])
    assert model.mode is Mode.FP32


def test_infinity_names_point_batch_and_image(make_vit: Callable[..., VisionTransformer]) -> None:
    """A weight so large that a white image overflows, and a black one does not: the third of the second batch."""
    vit = make_vit(in_chans=1)
    vit.patch_embed.proj.weight.data[0] = 3e37
    model = QuantViT(vit, ModelConfig.from_dict({"activation": {}}), Preprocessing((8, 8), (0.0,), (1.0,)))
    images = torch.zeros(8, 1, 8, 8, dtype=torch.uint8)
    images[6] = 255
    with pytest.raises(NumericsError) as caught:
        calibrate(model, images, batch_size=4)
    assert str(caught.value).startswith(
        "pos_embed, batch 2 (image 4 ... image 7): found 4 Inf and 0 NaN, first at index 2 of"
    )
    assert model.mode is Mode.FP32


def test_nan_names_point_batch_image_and_files(make_vit: Callable[..., VisionTransformer], tmp_path: Path) -> None:
    vit = make_vit(depth=3)
    vit.blocks[1].mlp.fc2.bias.data[3] = float("nan")  # type: ignore[union-attr, operator]
    model = small(vit)
    with pytest.raises(NumericsError, match=r"^blocks\.1\.residual2, batch 1: found 0 Inf and 40 NaN, f") as e:
        calibrate_batches(model, [PREPROCESSING.normalize(pixels())])
    assert e.value.exit_code == 3

    from PIL import Image

    for index, image in enumerate(pixels(5)):
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(tmp_path / f"{index}.png")
    with pytest.raises(NumericsError, match=r"^blocks\.1\.residual2, batch 1 \(0\.png \.\.\. 1\.png\): "):
        calibrate(model, tmp_path, batch_size=2)


def test_a_later_batch_is_counted(make_vit: Callable[..., VisionTransformer]) -> None:
    good = PREPROCESSING.normalize(pixels())
    bad = good.clone()
    bad[5, 1, 2, 3] = float("nan")
    with pytest.raises(NumericsError, match=r"^patch_embed, image 5, batch 3: NaN or Inf in the input"):
        calibrate_batches(small(make_vit(), EVERY | {"outputs": {}}), [good, good, bad])


def test_an_interrupted_calibration_leaves_a_float_model(make_vit: Callable[..., VisionTransformer]) -> None:
    def batches() -> Iterator[Tensor]:
        yield PREPROCESSING.normalize(pixels())
        raise KeyboardInterrupt

    vit = make_vit()
    model = small(vit)
    with pytest.raises(KeyboardInterrupt):
        calibrate_batches(model, batches())
    assert model.mode is Mode.FP32
    x = PREPROCESSING.normalize(pixels())
    with torch.no_grad():
        assert torch.equal(model(x), vit(x))


def test_channels_of_zeros_warn_once(make_vit: Callable[..., VisionTransformer]) -> None:
    vit = make_vit()
    with torch.no_grad():
        for block, channels in ((vit.blocks[0], [2, 7]), (vit.blocks[1], [1])):
            for parameter in block.norm1.parameters():  # type: ignore[union-attr]
                parameter[channels] = 0
        vit.blocks[1].mlp.fc1.weight[4] = 0  # type: ignore[union-attr, operator]
        vit.blocks[1].mlp.fc1.bias[4] = 0  # type: ignore[union-attr, operator]
    model = small(vit)
    with pytest.warns(RangeWarning) as caught:
        calibrate(model, pixels())
    assert [str(w.message) for w in caught] == [
        "5 channels had no range during calibration, at 4 points (blocks.0.norm1, blocks.1.norm1, "
        "blocks.1.mlp_fc1.weight, blocks.1.mlp_gelu); their scale is 1 and they stay exactly 0"
    ]
    norm: Any = model.blocks[0].norm1
    assert norm.require_params().scale[[2, 7]].tolist() == [1, 1]
    seen: list[Tensor] = []
    norm.hook = lambda point, before, after: seen.append(real(after))
    x = PREPROCESSING.normalize(pixels())
    with torch.no_grad():
        assert sqnr_db(vit(x), model(x)) > 15
    assert seen[0][..., [2, 7]].abs().sum() == 0


@pytest.mark.parametrize(
    ("channels", "message"),
    [
        ({"a": 1}, "1 channel had no range during calibration, at 1 point (a); its scale is 1 and it stays exactly 0"),
        ({"a": 2}, "2 channels had no range during calibration, at 1 point (a); their scale is 1 and they stay"),
        (dict.fromkeys("abcdef", 1), "6 channels had no range during calibration, at 6 points (a, b, c, d, e, ...);"),
    ],
)
def test_one_channel_is_not_channels(channels: dict[str, int], message: str) -> None:
    assert no_range_message(channels).startswith(message)


def test_a_healthy_model_does_not_warn(make_vit: Callable[..., VisionTransformer]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        calibrate(small(make_vit()), pixels())


def test_images_normalised_in_another_way(fashion: FloatModel, calibration_images: Tensor) -> None:
    wrong = calibration_images.float() / 255 * 8 - 4
    with pytest.raises(DataError, match="not normalised as the model expects"):
        quantize(fashion, "vit_int8.yaml", calibration=wrong)
    with pytest.raises(DataError, match="not normalised as the model expects"):
        calibrate_batches(prepare(fashion, "vit_int8.yaml"), [wrong])


@pytest.mark.parametrize(
    "settings",
    [
        {"layer_scale": True, "reg_tokens": 2},
        {"dist_token": True},
        {"pool": "avg"},
        {"num_classes": 0},
        {"qkv_bias": False, "reg_tokens": 1, "pos_covers_prefix": False},
    ],
    ids=str,
)
@torch.no_grad()
def test_every_architecture_quantizes(settings: dict[str, Any], make_vit: Callable[..., VisionTransformer]) -> None:
    vit = make_vit(**settings)
    model = quantize(FloatModel("small", vit, PREPROCESSING), "vit_int8.yaml", calibration=pixels(24), batch_size=24)
    x = PREPROCESSING.normalize(pixels(24))
    assert sqnr_db(vit(x), model(x)) > 20


@pytest.mark.parametrize("observer", ["MinmaxObserver", "PercentileObserver", "KLObserver", "OmseObserver"])
@pytest.mark.parametrize("mode", ["layer_wise", "channel_wise"])
@torch.no_grad()
def test_every_observer_quantizes(observer: str, mode: str, make_vit: Callable[..., VisionTransformer]) -> None:
    section = {"observer_type": observer, "calibration_mode": mode, "percentile_alpha": 0.999, "kl_bins": 256}
    config = {"weight": section, "outputs": section, "activation": section}
    vit = make_vit()
    model = calibrate(small(vit, config), pixels(16))
    x = PREPROCESSING.normalize(pixels(16))
    assert sqnr_db(vit(x), model(x)) > (8 if observer == "KLObserver" else 12)


@pytest.mark.job
@pytest.mark.parametrize("observer", ["MinmaxObserver", "KLObserver", "OmseObserver"])
def test_the_batch_size_changes_no_scale(fashion: FloatModel, observer: str) -> None:
    """All ways of sharing a scale. Beyond the rounding of the forwards only a near tie between two ranges could."""
    modes = {
        "layer_wise": ("attn_q_out", "attn_kv_out", "mlp_gelu", "residual1"),
        "channel_wise": ("attn_k_out", "intSoft", "norm1"),  # intSoft: by head
        "head_wise": ("attn_v_input", "attn_v_out", "norm2", "residual2"),
    }
    config = {
        layer: {"calibration_mode": mode, "observer_type": observer, "kl_bins": 512}
        for mode, layers in modes.items()
        for layer in layers
    }
    images = load_fashion_images()[0][:64, None]
    found = []
    for batch_size in (64, 1, 7, 8):
        model = quantize(fashion, config, calibration=images, batch_size=batch_size)
        found.append(torch.cat([scale.double().flatten() for scale, _ in grids(model).values()]))
    assert len(found[0]) > 1000
    for other in found[1:]:
        off = (other / found[0] - 1).abs() > 1e-5
        assert off.double().mean() < 0.01


def test_percentiles_are_those_of_the_batches(fashion: FloatModel, calibration_images: Tensor) -> None:
    config = {"activation": {"observer_type": "PercentileObserver", "percentile_alpha": 0.999}}
    one, other = (quantize(fashion, config, calibration=calibration_images, batch_size=n) for n in (8, 32))
    assert not same(one, other)
