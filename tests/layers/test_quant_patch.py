"""The patch embedding: pixels are its codes."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from vitquant.config import QuantConfig
from vitquant.errors import DataError
from vitquant.layers import Mode, set_mode
from vitquant.layers.patch_embed import QuantPatchEmbed
from vitquant.numerics.pixels import nearest_pixels, normalize
from vitquant.numerics.tokens import patchify

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
WEIGHT = QuantConfig(calibration_mode="channel_wise")


def make(weight_config: QuantConfig | None = WEIGHT) -> tuple[QuantPatchEmbed, nn.Conv2d]:
    torch.manual_seed(0)
    conv = nn.Conv2d(3, 6, (4, 2), stride=(4, 2)).requires_grad_(False)
    return QuantPatchEmbed(conv, MEAN, STD, None, weight_config, "patch_embed"), conv


def pixels() -> Tensor:
    images = torch.randint(0, 256, (3, 3, 8, 8), generator=torch.Generator().manual_seed(0))
    images[0, :, 0, 0], images[0, :, 0, 1] = 0, 255
    return images


def normalise(images: Tensor) -> Tensor:
    mean, std = (torch.tensor(values)[:, None, None] for values in (MEAN, STD))
    return (images / 255 - mean) / std


def test_patches_are_the_convolutions() -> None:
    embed, conv = make()
    x = normalise(pixels())
    torch.testing.assert_close(embed(x), conv(x).flatten(2).transpose(1, 2), rtol=1e-5, atol=1e-5)


def test_patchify_by_hand() -> None:
    images = torch.arange(16).reshape(1, 1, 4, 4)
    assert patchify(images, (2, 2))[0].tolist() == [[0, 1, 4, 5], [2, 3, 6, 7], [8, 9, 12, 13], [10, 11, 14, 15]]


def test_equals_integer_arithmetic_on_pixels() -> None:
    """``acc_scale * (weight codes . pixels + whole-number bias)``: no float touches a pixel."""
    embed, _ = make()
    set_mode(embed, Mode.QUANTIZED)
    images = pixels()
    linear = embed.linear
    scale = linear.weight.require_params().scale.double().flatten()
    codes, zero = linear.weight_codes.double(), embed.pixel_params().zero_point.double()
    bias = linear.bias_hat.double() / scale - codes @ zero
    torch.testing.assert_close(bias, bias.round(), rtol=0, atol=1e-2)
    integers = (patchify(images, (4, 2)).double() @ codes.T + bias.round()) * scale
    torch.testing.assert_close(embed(normalise(images)).double(), integers, rtol=1e-4, atol=1e-4)


def test_pixels_stay_and_the_rest_is_snapped() -> None:
    embed, _ = make()
    x = normalise(pixels())
    assert torch.equal(nearest_pixels(x, MEAN, STD), pixels().to(torch.uint8))
    step = embed.pixel_scale[:, None, None]
    inner = x[1:].clamp(-1, 1)
    snapped = normalize(nearest_pixels(inner, MEAN, STD), MEAN, STD)
    assert ((snapped - inner).abs() <= 0.5001 * step).all()
    set_mode(embed, Mode.QUANTIZED)
    assert torch.equal(embed(x), embed(pixels().to(torch.uint8)))
    assert torch.equal(embed(inner), embed(snapped))


@pytest.mark.parametrize(
    ("wrong", "found"),
    [
        (lambda x: x.float(), "from 104 to 15014"),  # not normalised at all
        (lambda x: x / 255 * 6 - 3, "from -69 to 299"),
        (lambda x: -normalise(x), "from -48 to 247"),
    ],
)
def test_images_normalised_in_another_way_are_refused(wrong: Callable[[Tensor], Tensor], found: str) -> None:
    embed, _ = make()
    images = wrong(pixels())
    set_mode(embed, Mode.CALIBRATE)
    with pytest.raises(DataError, match="not normalised as the model expects") as caught:
        embed(images)
    assert f"Got values that stand for pixels {found}, expected 0 to 255 after mean (0.485, 0.456, 0.406), " in str(
        caught.value
    )
    assert caught.value.exit_code == 3
    set_mode(embed, Mode.FP32)
    embed(images)  # the float model takes what it is given


def test_float_weights_take_any_image() -> None:
    embed, conv = make(None)
    set_mode(embed, Mode.QUANTIZED)
    x = pixels().float()
    torch.testing.assert_close(embed(x), conv(x).flatten(2).transpose(1, 2), rtol=1e-5, atol=1e-3)
