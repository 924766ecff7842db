"""Changed copies of calibration images."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

import vitquant
from support.integer_models import pixels, quantized
from vitquant.data import Batch
from vitquant.data.augmentation import changed_copy, with_copies


def batches(images: Tensor, size: int) -> list[Batch]:
    return [Batch(part, None, [str(i) for i in range(len(part))]) for part in images.split(size)]


def test_copies_follow_their_images_and_do_not_depend_on_the_batches() -> None:
    images = pixels(6)
    by_one = [b.pixels[0] for b in with_copies(batches(images, 1), 2, seed=5)]
    by_three = [b.pixels for b in with_copies(batches(images, 3), 2, seed=5)]
    assert len(by_one) == 18
    assert [len(b) for b in by_three] == [3] * 6
    assert torch.equal(by_three[0], images[:3])
    for image in range(3):
        assert torch.equal(by_one[3 * image], images[image])
        for copy in (1, 2):
            assert torch.equal(by_one[3 * image + copy], by_three[copy][image])


def test_every_copy_is_another_image_of_the_same_form() -> None:
    image = pixels(1)[0]
    copies = [changed_copy(image, np.random.default_rng(seed)) for seed in range(100)]
    assert all(copy.shape == image.shape and copy.dtype == torch.uint8 for copy in copies)
    assert len({copy.numpy().tobytes() for copy in [image, *copies]}) == 101


def test_images_of_one_channel_or_unequal_sides_have_copies() -> None:
    for shape in ((1, 28, 28), (3, 8, 20), (1, 1, 1)):
        image = torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
        for seed in range(30):
            assert changed_copy(image, np.random.default_rng(seed)).shape == shape


def test_another_seed_gives_other_copies() -> None:
    first, second = (torch.cat([b.pixels for b in with_copies(batches(pixels(4), 4), 1, s)]) for s in (0, 1))
    assert torch.equal(first[:4], second[:4])
    assert not torch.equal(first[4:], second[4:])


def test_calibration_on_copies_widens_the_ranges() -> None:
    plain, more = quantized(), quantized({"repair": [{"augmentation": {"copies": 3}}]})
    pairs = [(a, b) for a, b in zip(plain.points(), more.points(), strict=True) if a.name.startswith("blocks")]
    wider = [
        bool((b.params.scale >= a.params.scale).all())
        for a, b in pairs
        if a.params is not None and b.params is not None and not a.name.endswith("weight")
    ]
    assert all(wider)
    assert vitquant.compile(more)
