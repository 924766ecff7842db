import os
import tracemalloc
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from support.documents import documented
from vitquant.data import Preprocessing, open_images
from vitquant.errors import DataError

GREY = Preprocessing((4, 4), (0.5,), (0.5,))
RGB = Preprocessing((4, 6), (0.5, 0.4, 0.3), (0.5, 0.5, 0.5), crop_pct=1.0)
RANDOM = np.random.default_rng(0)


def save(path: Path, **arrays: Any) -> Path:
    np.savez_compressed(path / "a.npz", **arrays)
    return path / "a.npz"


def pixels(path: Path, preprocessing: Preprocessing, batch_size: int = 4) -> torch.Tensor:
    return torch.cat([b.pixels for b in open_images(path, preprocessing).batches(batch_size)])


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
        ({"images": np.zeros((0, 4, 4), np.uint8)}, "the archive has no images"),
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


def rewritten(path: Path, header: bytes, data: bytes) -> Path:
    """An archive whose ``images`` have this header."""
    with zipfile.ZipFile(path / "b.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("images.npy", header + data)
    return path / "b.npz"


def header(shape: str, length: int | None = None) -> bytes:
    text = f"{{'descr': '|u1', 'fortran_order': False, 'shape': {shape}, }}\n".encode()
    return b"\x93NUMPY\x02\x00" + (len(text) if length is None else length).to_bytes(4, "little") + text


@pytest.mark.parametrize("shape", ["(4, 4, 4)", "(1, 4, 4)", "(10**18, 4, 4)", "(-1, 4, 4)", "(2, 4, 4, 3)"])
def test_a_header_that_lies(tmp_path: Path, shape: str) -> None:
    path = rewritten(tmp_path, header(shape.replace("10**18", str(10**18))), bytes(32))
    with pytest.raises(DataError, match=r"b\.npz images: the array header does not match the data"):
        open_images(path, GREY)


def test_the_documented_messages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    rewritten(Path(), header("(4, 4, 4)"), bytes(32)).rename("short.npz")
    np.savez_compressed("bomb.npz", images=np.zeros((1, 20000, 20000), np.uint8))
    for name in ("short.npz", "bomb.npz"):
        with pytest.raises(DataError) as caught:
            open_images(name, GREY)
        assert documented(caught.value)


@pytest.mark.parametrize(
    "data",
    [b"", b"\x93NUMPY", b"\x93NUMPY\x09\x00ab", header("(2, 4"), header("('a', 4, 4)"), header("(2, 4, 4)", 1 << 31)],
)
def test_headers_that_are_none(tmp_path: Path, data: bytes) -> None:
    with pytest.raises(DataError, match=r"b\.npz images: (bad array header|the array's header is too long)"):
        open_images(rewritten(tmp_path, data, b""), GREY)


@pytest.mark.parametrize("member", ["images", "labels"])
def test_encrypted_and_unknown_members(tmp_path: Path, member: str) -> None:
    path = save(tmp_path, images=np.zeros((2, 4, 4), np.uint8), labels=np.arange(2))
    whole = path.read_bytes()
    entry = whole.rfind(f"{member}.npy".encode()) - 46  # in the central directory
    for offset, value, message in ((8, 1, "encrypted"), (10, 99, "compression")):
        data = bytearray(whole)
        data[entry + offset] = value
        path.write_bytes(bytes(data))
        with pytest.raises(DataError, match=rf"a\.npz: the archive cannot be read \(.*{message}"):
            list(open_images(path, GREY).batches(2))


@pytest.mark.parametrize(
    "labels",
    [
        np.array([2, 0, 1], ">i8"),
        np.array([[2], [0], [1]], np.uint16),
        np.array([[0, 0, 1], [1, 0, 0], [0, 1, 0]], np.uint8),
        np.array([[0, 0, 1], [1, 0, 0], [0, 1, 0]], np.float32),
    ],
)
def test_labels_of_other_kinds(tmp_path: Path, labels: np.ndarray) -> None:
    path = save(tmp_path, images=np.zeros((3, 4, 4), np.uint8), labels=labels)
    (batch,) = open_images(path, GREY).batches(4)
    assert batch.labels is not None
    assert batch.labels.tolist() == [2, 0, 1]


@pytest.mark.parametrize("labels", [np.array(["cat", "dog"]), np.zeros((2, 3)), np.array(1), np.array([1j, 2])])
def test_labels_that_are_none(tmp_path: Path, labels: np.ndarray) -> None:
    path = save(tmp_path, images=np.zeros((2, 4, 4), np.uint8), labels=labels)
    with pytest.raises(DataError, match=r"a\.npz labels: "):
        open_images(path, GREY)
    (batch,) = open_images(path, GREY, ignore_labels=True).batches(4)
    assert batch.labels is None


def test_what_is_too_large_is_refused_before_it_is_unpacked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vitquant.data.npz.MAX_IMAGES", 3)
    with pytest.raises(DataError, match=r"too many images\. Got 4, expected at most 3"):
        open_images(save(tmp_path, images=np.zeros((4, 4, 4), np.uint8)), GREY)
    monkeypatch.setattr("vitquant.data.npz.MAX_LABELS", 100)
    path = save(tmp_path, images=np.zeros((2, 4, 4), np.uint8), labels=np.zeros((2, 51), np.uint8))
    with pytest.raises(DataError, match="the labels are too large"):
        open_images(path, GREY)


def test_one_image_at_a_time_is_unpacked(tmp_path: Path) -> None:
    path = save(tmp_path, images=np.zeros((8, 1000, 1000, 3), np.uint8))
    tracemalloc.start()
    assert len(next(open_images(path, GREY).batches(8))) == 8
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert most < 12e6  # eight images are 24 MB


def test_a_pipe_is_not_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.npz")
    (tmp_path / "zero.npz").symlink_to("/dev/zero")
    for name in ("a.npz", "zero.npz"):
        with pytest.raises(DataError, match=rf"{name}: not a regular file"):
            open_images(tmp_path / name, GREY)
