from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, TensorDataset

from support.documents import documented
from vitquant.data import Preprocessing, open_images
from vitquant.errors import DataError

GREY = Preprocessing((4, 4), (0.5,), (0.25,), crop_pct=1.0)
RGB = Preprocessing((4, 4), (0.5, 0.4, 0.3), (0.5, 0.5, 0.5), crop_pct=1.0)
LABELS = [5, 4, 3, 2, 1]


def numbered(count: int = 5) -> Tensor:
    """Grey images whose every pixel is their number."""
    return torch.arange(count, dtype=torch.uint8).view(-1, 1, 1, 1).expand(-1, 1, 4, 4)


def pictures() -> list[Image.Image]:
    return [Image.new("L", (8, 6), number) for number in range(5)]


def read(source: Any, preprocessing: Preprocessing = GREY) -> tuple[list[int], list[int] | None]:
    """The numbers of all images, and the labels."""
    batches = list(open_images(source, preprocessing).batches(2))
    numbers = [n for b in batches for n in b.pixels[:, 0, 0, 0].tolist()]
    if batches[0].labels is None:
        return numbers, None
    return numbers, [label for b in batches if b.labels is not None for label in b.labels.tolist()]


class MapStyle(Dataset[Any]):
    """Items by index; an index too far is no ``IndexError``."""

    def __init__(self, items: list[Any]) -> None:
        self.items = items

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> Any:
        assert 0 <= index < len(self.items)
        return self.items[index]


IMAGES = numbered()
ONLY_IMAGES = {
    "a loader of single tensors": DataLoader(TensorDataset(IMAGES), batch_size=2),
    "lists of one tensor": [[IMAGES[:3]], [IMAGES[3:]]],
    "tuples of one tensor": [(IMAGES[:3],), (IMAGES[3:],)],
    "two batches in a list": [IMAGES[:3], IMAGES[3:]],
    "two batches in a tuple": (IMAGES[:3], IMAGES[3:]),
    "two batches of arrays": [IMAGES[:3].numpy(), IMAGES[3:].numpy()],
    "mappings": [{"pixel_values": IMAGES[:2]}, {"img": IMAGES[2:], "path": "a"}],
    "one mapping": {"images": IMAGES},
    "a map-style dataset": MapStyle(list(IMAGES)),
    "PIL images": pictures(),
    "lists of PIL images": [pictures()[:2], pictures()[2:]],
    "lists of tensors": [list(IMAGES[:2]), list(IMAGES[2:])],
    "flat grey arrays": list(IMAGES[:, 0].numpy()),
}
WITH_LABELS = {
    "a list of both": [IMAGES, torch.tensor(LABELS)],
    "a tuple with plain labels": (IMAGES, LABELS),
    "a list of arrays": [IMAGES.numpy(), np.array(LABELS)],
    "with paths behind": (IMAGES, torch.tensor(LABELS), ["a"] * 5),
    "one-hot": (IMAGES, torch.eye(6)[LABELS]),
    "a column": (IMAGES, torch.tensor(LABELS)[:, None]),
    "a loader": DataLoader(TensorDataset(IMAGES, torch.tensor(LABELS)), batch_size=2),
    "triples": [(IMAGES[:3], LABELS[:3], ["a", "b", "c"]), (IMAGES[3:], LABELS[3:], ["d", "e"])],
    "a loader of triples": DataLoader(MapStyle([(x, y, "a.png") for x, y in zip(IMAGES, LABELS, strict=True)]), 2),
    "mappings": [{"pixel_values": x, "labels": y} for x, y in zip(IMAGES, LABELS, strict=True)],
    "a loader of mappings": DataLoader(
        MapStyle([{"image": x, "label": y} for x, y in zip(IMAGES, LABELS, strict=True)]), 2
    ),
    "one mapping": {"images": IMAGES.numpy(), "labels": LABELS, "extra": None},
    "a map-style dataset": MapStyle(list(zip(IMAGES, LABELS, strict=True))),
    "PIL images": list(zip(pictures(), LABELS, strict=True)),
    "all PIL images": (pictures(), LABELS),
    "single one-hot": [(x, torch.eye(6)[y]) for x, y in zip(IMAGES, LABELS, strict=True)],
}


@pytest.mark.parametrize("form", ONLY_IMAGES)
def test_images_alone(form: str) -> None:
    assert read(ONLY_IMAGES[form]) == (list(range(5)), None)


@pytest.mark.parametrize("form", WITH_LABELS)
def test_images_with_labels(form: str) -> None:
    assert read(WITH_LABELS[form]) == (list(range(5)), LABELS)


def test_a_picture_is_what_it_is_in_a_file(tmp_path: Any) -> None:
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (9, 13, 3), dtype=np.uint8))
    exif = Image.Exif()
    exif[0x0112] = 6
    image.save(tmp_path / "a.png", exif=exif)
    with Image.open(tmp_path / "a.png") as opened:
        (batch,) = open_images(opened, RGB).batches(1)
    (expected,) = open_images(tmp_path, RGB).batches(1)
    assert torch.equal(batch.pixels, expected.pixels)


def test_a_damaged_picture_is_located(tmp_path: Any) -> None:
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(tmp_path / "a.jpg")
    (tmp_path / "a.jpg").write_bytes((tmp_path / "a.jpg").read_bytes()[:800])
    with Image.open(tmp_path / "a.jpg") as image, pytest.raises(DataError, match="batch 1: the image cannot be read"):
        list(open_images([image], RGB).batches(1))


def broken() -> Iterator[Any]:
    yield IMAGES
    yield "a.png"


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ([{"pixels": IMAGES}], "batch 1: the item has no images. Got the keys pixels, expected one of pixel_values"),
        ({"labels": LABELS}, "images: the item has no images. Got the keys labels"),
        ([("a.png", IMAGES, 1)], "batch 1: .*unsupported item type. Got str"),
        (broken(), "batch 2: .*unsupported item type. Got str"),
        ([None], "batch 1: .*unsupported item type. Got NoneType"),
        (
            [[IMAGES[0], IMAGES[0, :, :2]]],
            r"batch 1: the images of a batch differ in shape. Got shapes \[1, 4, 4\], \[1?,? ?2, 4\]",
        ),
        ([IMAGES.permute(0, 2, 3, 1)], "batch 1: .*the channels are last"),
        ((IMAGES, LABELS[:3]), r"the labels do not match the images. Got int64 \[3\], expected integers \[5\]"),
        ((pictures(), LABELS[:3]), r"the labels do not match the images. Got 3 labels"),
        ([(IMAGES, ["cat"] * 5)], "batch 1: the labels are not numbers.*ignore_labels"),
        (b"folder", "not a source of images. Got bytes"),
    ],
)
def test_what_is_no_image(source: Any, message: str) -> None:
    with pytest.raises(DataError, match=message) as caught:
        read(source)
    assert caught.value.exit_code == 3


def test_the_documented_messages() -> None:
    fashion = Preprocessing((28, 28), (0.2860,), (0.3530,), crop_pct=1.0)
    pixels = torch.zeros(2, 1, 28, 28, dtype=torch.uint8)
    for source in (
        pixels.permute(0, 2, 3, 1),
        pixels.long(),
        pixels.to_sparse(),
        ["a.png"],
        (pixels, np.array(["cat", "dog"])),
    ):
        with pytest.raises(DataError) as caught:
            list(open_images(source, fashion).batches(2))
        assert documented(caught.value), str(caught.value)
