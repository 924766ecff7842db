from collections.abc import Iterable, Iterator

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from vitquant.data import Preprocessing, open_images
from vitquant.errors import DataError, NumericsError

GREY = Preprocessing((2, 3), (0.5,), (0.25,))
RGB = Preprocessing((2, 3), (0.5, 0.4, 0.3), (0.5, 0.5, 0.5))


def numbered(count: int) -> Tensor:
    """Grey images whose every pixel is their number."""
    return torch.arange(count, dtype=torch.uint8).view(-1, 1, 1, 1).expand(-1, 1, 2, 3)


def numbers(images: Tensor) -> list[int]:
    return images[:, 0, 0, 0].tolist()


def test_pixels_are_normalised_and_floats_are_not() -> None:
    pixels = torch.randint(0, 256, (5, 3, 2, 3), dtype=torch.uint8)
    (batch,) = open_images(pixels, RGB).batches(8)
    assert torch.equal(batch.pixels, pixels)
    (again,) = open_images(RGB.normalize(pixels).double(), RGB).batches(8)
    assert again.pixels.dtype == torch.uint8
    assert torch.equal(again.pixels, batch.pixels)


def test_one_tensor_with_labels() -> None:
    source = open_images((numbered(5).squeeze(1).numpy(), torch.tensor([4, 3, 2, 1, 0])), GREY, limit=4)
    batches = list(source.batches(3))
    assert source.count == 4
    assert [numbers(batch.pixels) for batch in batches] == [[0, 1, 2], [3]]
    assert [batch.labels.tolist() for batch in batches if batch.labels is not None] == [[4, 3, 2], [1]]
    assert batches[1].names == ["image 3"]


@given(
    st.lists(st.integers(0, 5), min_size=1, max_size=6).filter(any),
    st.integers(1, 8),
    st.none() | st.integers(1, 20),
    st.booleans(),
)
def test_any_cut_into_batches_gives_the_same_images(
    cuts: list[int], batch_size: int, limit: int | None, labelled: bool
) -> None:
    images = numbered(sum(cuts))
    labels = torch.arange(sum(cuts)) * 2
    parts = list(zip(images.split(cuts), labels.split(cuts), strict=True))
    items = parts if labelled else [part for part, _ in parts]
    batches = list(open_images(items, GREY, limit=limit).batches(batch_size))
    expected = list(range(sum(cuts)))[:limit]
    assert [n for batch in batches for n in numbers(batch.pixels)] == expected
    assert [len(batch) for batch in batches[:-1]] == [batch_size] * (len(batches) - 1)
    assert 1 <= len(batches[-1]) <= batch_size
    for batch in batches:
        assert batch.names == [f"image {n}" for n in numbers(batch.pixels)]
        assert (batch.labels is None) != labelled
        if batch.labels is not None:
            assert (batch.labels // 2).tolist() == numbers(batch.pixels)


def test_single_images_with_plain_labels() -> None:
    items = [(image, i) for i, image in enumerate(numbered(3))]
    (batch,) = open_images(items, GREY).batches(4)
    assert batch.labels is not None
    assert batch.labels.tolist() == [0, 1, 2]


def test_a_data_loader_can_be_passed_over_again() -> None:
    loader = DataLoader(TensorDataset(numbered(5), torch.arange(5)), batch_size=2)
    source = open_images(loader, GREY)
    assert source.count is None
    assert source.repeatable
    for _ in range(2):
        assert [numbers(batch.pixels) for batch in source.batches(4)] == [[0, 1, 2, 3], [4]]


def test_a_generator_gives_one_pass() -> None:
    source = open_images((image for image in numbered(3)), GREY)
    assert not source.repeatable
    assert sum(len(batch) for batch in source.batches(2)) == 3
    with pytest.raises(DataError, match="consumed by an earlier pass") as caught:
        next(source.batches(2))
    assert caught.value.exit_code == 3


def test_batches_are_drawn_as_they_are_needed() -> None:
    drawn = []

    def images() -> Iterator[Tensor]:
        for i in range(100):
            drawn.append(i)
            yield numbered(2)

    next(open_images(images(), GREY).batches(4))
    assert drawn == [0, 1]
    drawn.clear()
    assert sum(len(batch) for batch in open_images(images(), GREY, limit=5).batches(4)) == 5
    assert drawn == [0, 1, 2]


def test_nothing_is_an_error() -> None:
    nothing: tuple[Iterable[Tensor], ...] = ([], iter([]), [numbered(0)])
    for empty in nothing:
        with pytest.raises(DataError, match="has no images"):
            list(open_images(empty, GREY).batches(4))
    with pytest.raises(DataError, match="has no images"):
        open_images(numbered(0), GREY)


@pytest.mark.parametrize("shape", [(4, 1, 2, 3), (4, 3, 3, 2), (4, 2, 3), (3, 2), (4, 2, 3, 3)])
def test_wrong_shapes(shape: tuple[int, ...]) -> None:
    images = torch.zeros(shape, dtype=torch.uint8)
    for given_as in (images, images.numpy()):
        with pytest.raises(DataError, match=r"expected \[N, 3, 2, 3\]") as caught:
            open_images(given_as, RGB)
    assert str(list(shape)) in str(caught.value)
    with pytest.raises(DataError, match=r"batch 2: .*expected \[N, 3, 2, 3\]"):
        list(open_images([torch.zeros(1, 3, 2, 3), images], RGB).batches(4))


def test_wrong_types() -> None:
    with pytest.raises(DataError, match=r"torch\.int64"):
        open_images(torch.zeros(2, 3, 2, 3, dtype=torch.int64), RGB)
    with pytest.raises(DataError, match=r"batch 1: .*Got str"):
        list(open_images(["a.png"], RGB).batches(2))
    with pytest.raises(DataError, match="Got int"):
        open_images(3, RGB)  # type: ignore[arg-type]


def test_floats_that_are_pixels() -> None:
    pixels = torch.randint(0, 256, (2, 3, 2, 3)).float()
    pixels[0, 0, 0, :2] = torch.tensor([0, 255])
    with pytest.raises(DataError, match=r"not normalised.*0 to 255, expected about -1 to 1\.4") as caught:
        list(open_images(pixels, RGB).batches(2))
    assert "mean 0.5 0.4 0.3" in str(caught.value)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_nan_and_inf_are_located(value: float) -> None:
    images = torch.randn(7, 3, 2, 3)
    images[5, 1, 0, 2] = value
    images[5, 2, 1, 1] = value
    images[6] = value
    with pytest.raises(
        NumericsError, match=r"batch 2, image 1: the image contains NaN or Inf\. Got 2 non-finite values"
    ) as caught:
        list(open_images(images, RGB).batches(4))
    assert caught.value.exit_code == 3
    with pytest.raises(NumericsError, match="batch 3, image 1"):
        list(open_images(images.split(2), RGB).batches(4))


def test_labels_must_fit() -> None:
    with pytest.raises(DataError, match=r"expected integers \[3\]"):
        open_images((numbered(3), torch.arange(4)), GREY)
    with pytest.raises(DataError, match=r"batch 1: .*float32"):
        list(open_images([(numbered(2), torch.zeros(2))], GREY).batches(2))
    with pytest.raises(DataError, match="batch 1: the labels are not numbers"):
        list(open_images([(numbered(2), ["cat", "dog"])], GREY).batches(2))
    with pytest.raises(DataError, match="some batches have labels"):
        list(open_images([(numbered(2), [0, 1]), numbered(2)], GREY).batches(8))


def test_two_batches_are_not_images_and_labels() -> None:
    (batch,) = open_images((numbered(2), numbered(1)), GREY).batches(4)
    assert numbers(batch.pixels) == [0, 1, 0]
    (batch,) = open_images((np.zeros((2, 1, 2, 3), np.uint8), np.array([7, 8])), GREY).batches(4)
    assert batch.labels is not None
    assert batch.labels.tolist() == [7, 8]
