"""A sample of the images that are read."""

from collections.abc import Iterator

import pytest
import torch

from vitquant.data import Batch, ImageSample


def batches(count: int, size: int) -> Iterator[Batch]:
    """Images ``[count, 1, 1, 1]`` whose pixel is their place."""
    for pixels in torch.arange(count, dtype=torch.uint8).reshape(-1, 1, 1, 1).split(size):
        yield Batch(pixels, None, [])


@pytest.mark.parametrize(
    ("most", "known", "kept"),
    [
        (4, True, [0, 2, 5, 7]),
        (10, True, list(range(10))),
        (64, True, list(range(10))),
        (1, True, [0]),
        (4, False, [0, 1, 2, 3]),
        (64, False, list(range(10))),
    ],
)
@pytest.mark.parametrize("size", [1, 3, 10])
def test_evenly_spaced_or_the_first(most: int, known: bool, kept: list[int], size: int) -> None:
    sample = ImageSample(most, 10 if known else None)
    passed = list(sample.watch(batches(10, size)))
    assert sum(map(len, passed)) == sample.read == 10
    assert sample.images.flatten().tolist() == kept


def test_nothing_is_kept_of_nothing() -> None:
    sample = ImageSample(0, 10)
    assert len(list(sample.watch(batches(10, 4)))) == 3
    assert sample.kept == []
