import warnings
from pathlib import Path

import pytest
import torch
from torch import Tensor

import vitquant
from support.documents import documented
from vitquant.adapters.adapt import FloatModel
from vitquant.data import CalibrationCheck, CalibrationImagesWarning, Preprocessing, SharedImages, SharedImagesWarning
from vitquant.data import open_images as open_source
from vitquant.workflows import job

RGB = Preprocessing((24, 24), (0.5, 0.4, 0.3), (0.5, 0.5, 0.5))


def noise(count: int, side: int = 24) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (count, 3, side, side), dtype=torch.uint8, generator=generator)


def smooth(count: int) -> Tensor:
    return torch.nn.functional.interpolate(noise(count, 6), size=(24, 24), mode="bilinear").to(torch.uint8)


def flat(*values: int) -> Tensor:
    return torch.tensor(values, dtype=torch.uint8).view(-1, 1, 1, 1).expand(-1, 3, 24, 24)


def problem(pixels: Tensor, preprocessing: Preprocessing = RGB, batch_size: int = 3) -> str | None:
    check = CalibrationCheck()
    passed = list(check.watch(open_source(pixels, preprocessing).batches(batch_size)))
    assert sum(map(len, passed)) == len(pixels)
    return check.problem()


@pytest.mark.parametrize(
    ("pixels", "message"),
    [
        (flat(7), "the calibration image has a single colour"),
        (flat(7, 7, 7, 7), "every calibration image has a single colour"),
        (flat(7, 90, 200), "every calibration image has a single colour"),
        (torch.cat([flat(7, 90, 200), smooth(2)]), "3 of 5 calibration images have a single colour"),
        (smooth(1).expand(4, 3, 24, 24), "the 4 calibration images are identical"),
        (noise(5), "uncorrelated"),
        (noise(1), "uncorrelated"),
    ],
)
def test_what_cannot_serve(pixels: Tensor, message: str) -> None:
    found = problem(pixels)
    assert found is not None
    assert message in found


@pytest.mark.parametrize(
    "pixels", [smooth(1), smooth(5), torch.cat([flat(7, 9), smooth(2)]), noise(2) // 8 + smooth(2) // 2]
)
def test_what_can_serve(pixels: Tensor) -> None:
    assert problem(pixels) is None


def test_tiny_images_are_not_judged_by_their_neighbours() -> None:
    assert problem(noise(5, side=8), Preprocessing((8, 8), RGB.mean, RGB.std)) is None


def test_fashion_can_serve() -> None:
    preprocessing = vitquant.load_fashion().preprocessing
    images, *_ = vitquant.load_fashion_images()
    assert problem(images[:, None], preprocessing, 128) is None
    for image in images[:20, None, None]:
        assert problem(image, preprocessing) is None


@pytest.fixture(scope="module")
def model() -> FloatModel:
    return vitquant.load_fashion()


def test_calibration_goes_on_with_a_warning(model: FloatModel) -> None:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (16, 28, 28), dtype=torch.uint8, generator=generator)
    with pytest.warns(CalibrationImagesWarning) as caught:
        qmodel = vitquant.quantize(model, "vit_int8.yaml", calibration=images)
    assert documented(f"warning: {caught[0].message}")
    assert qmodel.mode is vitquant.Mode.QUANTIZED
    with pytest.warns(CalibrationImagesWarning, match="a single colour"):
        vitquant.quantize(model, "vit_int8.yaml", calibration=torch.full((1, 28, 28), 200, dtype=torch.uint8))


def test_labels_of_calibration_images_are_not_read(model: FloatModel) -> None:
    images, *_ = vitquant.load_fashion_images()
    vitquant.quantize(model, "vit_int8.yaml", calibration=(images[:8], ["cat"] * 8))


def test_shared_images_are_counted_by_their_pixels() -> None:
    images, shared = smooth(8), SharedImages()
    list(shared.calibrating(open_source(images[:5], RGB)).batches(2))
    watched = shared.evaluating(open_source(RGB.normalize(images[3:]), RGB))
    for _ in range(2):  # evaluated and profiled
        list(watched.batches(3))
    with pytest.warns(SharedImagesWarning, match="2 of 5 distinct images are also calibration images"):
        shared.warn()
    assert (watched.count, watched.class_names, watched.repeatable) == (5, None, True)


@pytest.mark.job
def test_the_job_warns_of_shared_images(model: FloatModel, tmp_path: Path) -> None:
    images, _, tests, _ = vitquant.load_fashion_images()
    evaluation = torch.cat([images[4:8], tests[:2]])
    with pytest.warns(SharedImagesWarning) as caught:
        job.run(model, "vit_int8.yaml", calibration=images[:8], evaluation=evaluation, out=tmp_path, profile_images=1)
    assert [documented(f"warning: {warning.message}") for warning in caught] == [True]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        job.run(model, "vit_int8.yaml", calibration=images[:4], evaluation=tests[:2], out=tmp_path, profile_images=1)


@pytest.mark.parametrize("name", ["batch_size", "profile_images", "calibration_limit"])
@pytest.mark.parametrize("value", [0, 2.5, True])
def test_the_job_refuses_bad_numbers_before_it_works(
    model: FloatModel, tmp_path: Path, name: str, value: object
) -> None:
    images, *_ = vitquant.load_fashion_images()

    def never() -> object:
        raise AssertionError("the refusal comes too late")
        yield

    with pytest.raises(vitquant.VitquantError, match=r"expected an integer from 1") as caught:
        job.run(model, "vit_int8.yaml", calibration=never(), evaluation=images[:2], out=tmp_path, **{name: value})  # type: ignore[arg-type]
    assert caught.value.exit_code == 2
    assert not list(tmp_path.iterdir())
