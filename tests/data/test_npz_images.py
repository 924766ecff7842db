import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from vitquant.data import Preprocessing, open_images
from vitquant.errors import DataError

GREY = Preprocessing((4, 4), (0.5,), (0.5,))
RGB = Preprocessing((4, 6), (0.5, 0.4, 0.3), (0.5, 0.5, 0.5), crop_pct=1.0)
RANDOM = np.random.default_rng(0)


def save(path: Path, **arrays: np.ndarray) -> Path:
    np.savez_compressed(path / "a.npz", **arrays)
    return path / "a.npz"


def pixels(path: Path, preprocessing: Preprocessing, batch_size: int = 4) -> torch.Tensor:
    return torch.cat([preprocessing.to_pixels(b.images) for b in open_images(path, preprocessing).batches(batch_size)])


@pytest.mark.parametrize("batch_size", [1, 3, 7, 20])
def test_images_of_the_models_size_pass_as_they_are(tmp_path: Path, batch_size: int) -> None:
    images = RANDOM.integers(0, 256, (7, 4, 6, 3), dtype=np.uint8)
    labels = RANDOM.integers(0, 10, 7).astype(np.uint8)
    path = save(tmp_path, images=images, labels=labels)
    source = open_images(path, RGB)
    batches = list(source.batches(batch_size))
    assert source.count == 7
    assert torch.equal(pixels(path, RGB, batch_size), torch.from_numpy(images).permute(0, 3, 1, 2))
    assert torch.cat([b.labels for b in batches if b.labels is not None]).tolist() == labels.tolist()
    assert [name for b in batches for name in b.names] == [f"a.npz[{i}]" for i in range(7)]


def test_all_layouts_are_the_same_images(tmp_path: Path) -> None:
    grey = RANDOM.integers(0, 256, (5, 4, 4), dtype=np.uint8)
    expected = torch.from_numpy(grey).unsqueeze(1)
    for images in (grey, grey[..., None], grey[:, None]):
        assert torch.equal(pixels(save(tmp_path, images=images), GREY), expected)
    colour = RANDOM.integers(0, 256, (5, 3, 4, 6), dtype=np.uint8)
    for images in (colour, np.ascontiguousarray(colour.transpose(0, 2, 3, 1))):
        assert torch.equal(pixels(save(tmp_path, images=images), RGB), torch.from_numpy(colour))


def test_other_sizes_and_colours_go_through_the_preprocessing(tmp_path: Path) -> None:
    images = RANDOM.integers(0, 256, (3, 9, 12), dtype=np.uint8)
    expected = torch.stack([RGB.apply(Image.fromarray(image)) for image in images])
    assert torch.equal(pixels(save(tmp_path, images=images), RGB), expected)
    same_size = RANDOM.integers(0, 256, (3, 4, 6), dtype=np.uint8)
    expected = torch.from_numpy(same_size).unsqueeze(1).expand(3, 3, 4, 6)
    assert torch.equal(pixels(save(tmp_path, images=same_size), RGB), expected)


def test_limit(tmp_path: Path) -> None:
    images = RANDOM.integers(0, 256, (9, 4, 4), dtype=np.uint8)
    source = open_images(save(tmp_path, images=images, labels=np.arange(9)), GREY, limit=5)
    labels = [b.labels.tolist() for b in source.batches(3) if b.labels is not None]
    assert source.count == 5
    assert labels == [[0, 1, 2], [3, 4]]


def test_memory_does_not_grow_with_the_number(tmp_path: Path) -> None:
    def peak(count: int) -> int:
        path = save(tmp_path, images=np.zeros((count, 64, 64), np.uint8))
        tracemalloc.start()
        for _ in open_images(path, Preprocessing((64, 64), (0.5,), (0.5,))).batches(8):
            pass
        _, most = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return most

    peak(8)
    assert peak(2000) < peak(100) + 200_000  # the images alone would be 8 MB


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"pictures": np.zeros((2, 4, 4), np.uint8)}, "no array 'images'. Got pictures"),
        ({"images": np.zeros((2, 4, 4), np.float32)}, r"Got float32 \[2, 4, 4\]"),
        ({"images": np.zeros((2, 4, 4, 5), np.uint8)}, r"Got uint8 \[2, 4, 4, 5\]"),
        ({"images": np.zeros((4, 4), np.uint8)}, r"Got uint8 \[4, 4\]"),
        ({"images": np.zeros((0, 4, 4), np.uint8)}, "0 images in"),
        ({"images": np.zeros((2, 4, 4), np.uint8), "labels": np.zeros(3, int)}, r"expected integers \[2\]"),
        ({"images": np.zeros((2, 4, 4), np.uint8), "labels": np.zeros(2)}, r"Got float64 \[2\]"),
        ({"images": np.array([{}, {}], object)}, "pickled objects"),
        ({"images": np.asfortranarray(np.zeros((2, 4, 4), np.uint8))}, "Fortran order"),
    ],
)
def test_wrong_arrays(tmp_path: Path, arrays: dict[str, np.ndarray], message: str) -> None:
    path = save(tmp_path, **arrays)
    with pytest.raises(DataError, match=message) as caught:
        open_images(path, GREY)
    assert caught.value.exit_code == 3
    assert "a.npz" in str(caught.value)


def test_damaged_archives(tmp_path: Path) -> None:
    (tmp_path / "text.npz").write_text("no archive")
    with pytest.raises(DataError, match=r"text\.npz: the archive cannot be read"):
        open_images(tmp_path / "text.npz", GREY)
    path = save(tmp_path, images=RANDOM.integers(0, 256, (50, 4, 4), dtype=np.uint8))
    data = bytearray(path.read_bytes())
    data[400:420] = bytes(20)
    path.write_bytes(bytes(data))
    with pytest.raises(DataError, match=r"a\.npz: the archive cannot be read"):
        list(open_images(path, GREY).batches(8))
