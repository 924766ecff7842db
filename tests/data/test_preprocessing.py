import json
import resource
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from vitquant.data import Preprocessing
from vitquant.data.preprocessing import HALF, IMAGENET_MEAN, IMAGENET_STD, MAX_RESIZED, check_pixels
from vitquant.errors import ConfigError, DataError

IMAGENET = Preprocessing((32, 32), IMAGENET_MEAN, IMAGENET_STD)


def picture(height: int, width: int, channels: int = 3) -> Image.Image:
    generator = np.random.default_rng(height * 1000 + width)
    coarse = generator.integers(0, 256, (height // 3 + 1, width // 3 + 1, channels), dtype=np.uint8)
    return Image.fromarray(coarse[..., 0] if channels == 1 else coarse).resize(
        (width, height), Image.Resampling.BICUBIC
    )


@pytest.mark.timm
@pytest.mark.parametrize("size", [(40, 60), (60, 40), (32, 32), (33, 35), (20, 20), (31, 90), (101, 17)])
@pytest.mark.parametrize(
    ("img_size", "crop_pct", "interpolation"),
    [
        ((32, 32), 0.9, "bicubic"),
        ((32, 32), 1.0, "bilinear"),
        ((28, 28), 0.875, "bicubic"),
        ((24, 40), 0.9, "bicubic"),
        ((40, 24), 1.0, "bilinear"),
    ],
)
def test_pixels_and_values_are_those_of_timm(
    size: tuple[int, int], img_size: tuple[int, int], crop_pct: float, interpolation: str
) -> None:
    from timm.data import create_transform

    ours = Preprocessing(img_size, IMAGENET_MEAN, IMAGENET_STD, interpolation, crop_pct)
    settings = {"input_size": (3, *img_size), "crop_pct": crop_pct, "interpolation": interpolation}
    as_pixels = create_transform(**settings, normalize=False)
    as_values = create_transform(**settings, mean=IMAGENET_MEAN, std=IMAGENET_STD)
    image = picture(*size)
    pixels = ours.apply(image)
    assert torch.equal(pixels, as_pixels(image))
    torch.testing.assert_close(ours.normalize(pixels[None])[0], as_values(image), rtol=0, atol=0)


def test_crop_takes_the_centre() -> None:
    columns = np.tile(np.arange(8, dtype=np.uint8), (4, 1))  # 8 wide, 4 high: columns 2 to 5 are the centre
    pixels = Preprocessing((4, 4), (0.5,), (0.5,), crop_pct=1.0).apply(Image.fromarray(columns))
    assert pixels.shape == (1, 4, 4)
    assert pixels[0, 0].tolist() == [2, 3, 4, 5]


@pytest.mark.parametrize(("mean", "std"), [(HALF, HALF), (IMAGENET_MEAN, IMAGENET_STD), ((0.286,), (0.353,))])
def test_every_pixel_survives_normalisation(mean: tuple[float, ...], std: tuple[float, ...]) -> None:
    preprocessing = Preprocessing((16, 16), mean, std)
    pixels = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16).expand(1, len(mean), 16, 16)
    values = preprocessing.normalize(pixels)
    assert values.dtype == torch.float32
    assert torch.equal(preprocessing.to_pixels(values), pixels)
    assert (preprocessing.denormalize(values) - pixels).abs().max() < 1e-4


def test_normalisation_by_hand() -> None:
    pixels = torch.tensor([0, 255, 51], dtype=torch.uint8).view(1, 3, 1, 1)
    values = Preprocessing((1, 1), (0.5, 0.25, 0.1), (0.5, 0.5, 0.2)).normalize(pixels)
    assert values.flatten().tolist() == pytest.approx([-1.0, 1.5, 0.5])
    assert pixels.flatten().tolist() == [0, 255, 51]


@given(
    st.tuples(st.integers(1, 900), st.integers(1, 900)),
    st.sampled_from([(HALF, HALF), (IMAGENET_MEAN, IMAGENET_STD), ((0.286,), (0.353,))]),
    st.sampled_from(["bicubic", "bilinear"]),
    st.floats(0.1, 1.0),
)
def test_round_trip_through_json(
    img_size: tuple[int, int], stats: tuple[tuple[float, ...], tuple[float, ...]], interpolation: str, crop: float
) -> None:
    preprocessing = Preprocessing(img_size, *stats, interpolation, crop)
    assert Preprocessing.from_dict(json.loads(json.dumps(preprocessing.to_dict()))) == preprocessing


def test_text_is_one_line() -> None:
    text = str(Preprocessing((224, 196), (0.286,), (0.353,), "bilinear", 0.875))
    assert text == "224x196 grey, bilinear, crop 0.875, mean 0.286, std 0.353"


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("img_size", [0, 4]),
        ("mean", [0.5, 0.5]),
        ("std", [1.0, 0.0, 1.0]),
        ("std", [1.0]),
        ("interpolation", "nearest"),
        ("crop_pct", 0.0),
        ("crop_pct", 1.5),
        ("extra", 1),
    ],
)
def test_bad_values_are_named(key: str, value: object) -> None:
    with pytest.raises(ConfigError, match=key) as caught:
        Preprocessing.from_dict(IMAGENET.to_dict() | {key: value})
    assert caught.value.exit_code == 2


def test_files_are_turned_upright(tmp_path: Path) -> None:
    image = Image.fromarray(np.arange(6, dtype=np.uint8).reshape(2, 3))
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees clockwise
    image.save(tmp_path / "a.png", exif=exif)
    pixels = Preprocessing((3, 2), (0.5,), (0.5,), crop_pct=1.0).load(tmp_path / "a.png")
    assert pixels[0].tolist() == [[3, 0], [4, 1], [5, 2]]


@pytest.mark.parametrize("mode", ["L", "LA", "RGB", "RGBA", "P", "1", "CMYK", "YCbCr"])
def test_any_colours_become_the_models(tmp_path: Path, mode: str) -> None:
    path = tmp_path / ("a.tiff" if mode in ("CMYK", "YCbCr") else "a.png")
    picture(40, 40).convert(mode).save(path, compression="tiff_lzw")  # not raw: Pillow 11 cannot read its own YCbCr
    assert IMAGENET.load(path).shape == (3, 32, 32)
    grey = Preprocessing((32, 32), (0.5,), (0.5,)).load(path)
    assert grey.shape == (1, 32, 32)
    assert grey.float().std() > 5


def test_sixteen_bits_keep_their_upper_eight(tmp_path: Path) -> None:
    values = (np.arange(16, dtype=np.uint16) * 4000).reshape(4, 4)
    Image.fromarray(values).save(tmp_path / "a.png")
    pixels = Preprocessing((4, 4), (0.5,), (0.5,), crop_pct=1.0).load(tmp_path / "a.png")
    assert torch.equal(pixels[0], torch.from_numpy((values // 256).astype(np.uint8)))


def test_float_pixels_are_refused_by_path(tmp_path: Path) -> None:
    Image.fromarray(np.zeros((4, 4), np.float32)).save(tmp_path / "a.tiff")
    with pytest.raises(DataError, match=r"a\.tiff: .*mode F"):
        IMAGENET.load(tmp_path / "a.tiff")


@pytest.mark.parametrize("size", [(1, 16000), (16000, 1), (3, 60000)])
def test_very_long_pictures_take_little_memory(tmp_path: Path, size: tuple[int, int]) -> None:
    ramp = np.linspace(0, 255, max(size)).astype(np.uint8)
    tall = size[1] > size[0]
    pixels = np.tile(ramp[:, None] if tall else ramp, (1, size[0]) if tall else (size[1], 1))
    Image.fromarray(pixels).convert("RGB").save(tmp_path / "a.png")
    preprocessing = Preprocessing((224, 224), IMAGENET_MEAN, IMAGENET_STD)
    assert min(preprocessing._resized_size(*size)) * max(preprocessing._resized_size(*size)) > MAX_RESIZED
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    cut = preprocessing.load(tmp_path / "a.png")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000  # kB; in full this would be 0.7 GB
    assert cut.shape == (3, 224, 224)
    assert (cut.float() - 127.5).abs().max() < 2  # the centre of the ramp


@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
def test_cropping_while_resizing_gives_nearly_the_same_pixels(
    monkeypatch: pytest.MonkeyPatch, interpolation: str
) -> None:
    preprocessing = Preprocessing((32, 32), IMAGENET_MEAN, IMAGENET_STD, interpolation)
    for size in ((40, 60), (60, 40), (33, 35), (20, 20), (31, 90), (101, 17), (7, 300)):
        image = picture(*size)
        with monkeypatch.context() as patch:
            patch.setattr("vitquant.data.preprocessing.MAX_RESIZED", 0)
            cut = preprocessing.apply(image).int()
        assert (cut - preprocessing.apply(image).int()).abs().max() <= 3


def test_the_number_of_pixels_is_bounded(tmp_path: Path) -> None:
    Image.new("1", (9500, 9500)).save(tmp_path / "a.png")
    with pytest.raises(DataError, match=r"a\.png: .*9500 x 9500 pixels exceed the limit of 89,478,485"):
        IMAGENET.load(tmp_path / "a.png")
    Image.new("1", (20000, 20000)).save(tmp_path / "b.png")  # Pillow refuses this one by itself
    with pytest.raises(DataError, match=r"b\.png: .*more than 89,478,485 pixels"):
        IMAGENET.load(tmp_path / "b.png")
    with pytest.raises(DataError, match="exceed the limit of 29,826,161"):
        check_pixels((6000, 5000), "JPEG2000")


@pytest.mark.parametrize("error", [KeyError("x"), RuntimeError("codec"), MemoryError()])
def test_whatever_a_decoder_raises_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    picture(40, 40).save(tmp_path / "a.png")

    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr("PIL.PngImagePlugin.PngImageFile.load", fail)
    with pytest.raises(DataError, match=r"a\.png: the image cannot be read \("):
        IMAGENET.load(tmp_path / "a.png")


@pytest.mark.parametrize("damage", ["empty", "text", "truncated"])
def test_damaged_files_are_named(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "bad.jpg"
    picture(64, 64).save(path)
    data = {"empty": b"", "text": b"this is no picture", "truncated": path.read_bytes()[:200]}[damage]
    path.write_bytes(data)
    with pytest.raises(DataError, match=r"bad\.jpg: the image cannot be read") as caught:
        IMAGENET.load(path)
    assert caught.value.exit_code == 3
