from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from vitquant.data import Preprocessing, SkippedImagesWarning, open_images
from vitquant.errors import ConfigError, DataError

GREY = Preprocessing((4, 4), (0.5,), (0.5,), crop_pct=1.0)


def write(path: Path, value: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((4, 4), value, np.uint8)).save(path)


def values(images: torch.Tensor) -> list[int]:
    return GREY.to_pixels(images)[:, 0, 0, 0].tolist()


def test_flat_folder_in_sorted_order(tmp_path: Path) -> None:
    for name, value in (("c.PNG", 30), ("a.png", 10), ("b.bmp", 20), ("d.pgm", 40), (".hidden.png", 99)):
        write(tmp_path / name, value)
    (tmp_path / "notes.txt").write_text("no image")
    source = open_images(tmp_path, GREY)
    batches = list(source.batches(3))
    assert source.count == 4
    assert source.class_names is None
    assert [batch.names for batch in batches] == [["a.png", "b.bmp", "c.PNG"], ["d.pgm"]]
    assert [values(batch.images) for batch in batches] == [[10, 20, 30], [40]]
    assert all(batch.labels is None and batch.images.dtype == torch.float32 for batch in batches)
    assert [len(batch) for batch in source.batches(3)] == [3, 1]  # a second pass is the same


def test_limit_takes_the_first_of_a_flat_folder(tmp_path: Path) -> None:
    for i in range(5):
        write(tmp_path / f"{i}.png", i)
    source = open_images(str(tmp_path), GREY, limit=2)
    assert source.count == 2
    assert [batch.names for batch in source.batches(8)] == [["0.png", "1.png"]]


def test_class_folders_label_by_sorted_name(tmp_path: Path) -> None:
    for name in ("dog/2.png", "dog/1.png", "cat/9.png", "emu/5.png"):
        write(tmp_path / name, 1)
    (tmp_path / "bee").mkdir()  # a class without an image keeps its number
    source = open_images(tmp_path, GREY)
    (batch,) = source.batches(8)
    assert source.class_names == ("bee", "cat", "dog", "emu")
    assert batch.names == ["cat/9.png", "dog/1.png", "dog/2.png", "emu/5.png"]
    assert batch.labels is not None
    assert batch.labels.tolist() == [1, 2, 2, 3]


def test_limit_spreads_over_the_classes(tmp_path: Path) -> None:
    for label in "abc":
        for i in range(4):
            write(tmp_path / label / f"{i}.png", 1)
    (batch,) = open_images(tmp_path, GREY, limit=6).batches(8)
    assert batch.labels is not None
    assert batch.labels.tolist() == [0, 0, 1, 1, 2, 2]


def test_images_are_decoded_batch_by_batch(tmp_path: Path) -> None:
    for i in range(6):
        write(tmp_path / f"{i}.png", i)
    batches = open_images(tmp_path, GREY).batches(2)
    next(batches)
    for i in (2, 3):  # what is still to come is read when it is due
        write(tmp_path / f"{i}.png", 100 + i)
    assert values(next(batches).images) == [102, 103]


def test_no_images(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"0 images in .*suffixes searched: .*\.jpg") as caught:
        open_images(tmp_path, GREY)
    assert caught.value.exit_code == 3


def test_missing_and_foreign_paths(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="nowhere: no such folder"):
        open_images(tmp_path / "nowhere", GREY)
    (tmp_path / "a.tar").write_text("")
    with pytest.raises(DataError, match=r"a\.tar: not a source of images"):
        open_images(tmp_path / "a.tar", GREY)


def test_images_at_both_levels_are_ambiguous(tmp_path: Path) -> None:
    write(tmp_path / "a.png", 1)
    write(tmp_path / "thumbs" / "a.png", 1)
    with pytest.raises(DataError, match="1 and 1 images"):
        open_images(tmp_path, GREY)


def test_one_in_a_hundred_is_skipped_with_a_warning(tmp_path: Path) -> None:
    for i in range(100):
        write(tmp_path / f"{i:03}.png", i)
    (tmp_path / "007.png").write_bytes(b"broken")
    with pytest.warns(SkippedImagesWarning, match=r"1 of 100 images .* skipped: .*007\.png"):
        batches = list(open_images(tmp_path, GREY).batches(32))
    assert [len(batch) for batch in batches] == [32, 32, 32, 3]
    assert values(batches[0].images)[6:9] == [6, 8, 9]


def test_more_are_refused_by_name(tmp_path: Path) -> None:
    for i in range(100):
        write(tmp_path / f"{i:03}.png", i)
    for name in ("007.png", "070.png"):
        (tmp_path / name).write_bytes(b"broken")
    with pytest.raises(DataError, match=r"007\.png, .*070\.png: 2 of 100") as caught:
        list(open_images(tmp_path, GREY).batches(32))
    assert caught.value.exit_code == 3


def test_labels_stay_with_their_images_past_a_skip(tmp_path: Path) -> None:
    for i in range(120):
        write(tmp_path / str(i % 2) / f"{i:03}.png", 100 + i % 2)
    (tmp_path / "0" / "004.png").write_bytes(b"broken")
    with pytest.warns(SkippedImagesWarning):
        batches = list(open_images(tmp_path, GREY).batches(50))
    for batch in batches:
        assert batch.labels is not None
        assert values(batch.images) == (100 + batch.labels).tolist()


@pytest.mark.parametrize("size", [0, -1])
def test_bad_sizes(tmp_path: Path, size: int) -> None:
    write(tmp_path / "a.png", 1)
    with pytest.raises(ConfigError, match="batch_size"):
        next(open_images(tmp_path, GREY).batches(size))
    with pytest.raises(ConfigError, match="limit"):
        open_images(tmp_path, GREY, limit=size)


def test_an_open_source_stays_what_it_is(tmp_path: Path) -> None:
    write(tmp_path / "a.png", 1)
    source = open_images(tmp_path, GREY)
    assert open_images(source, GREY) is source
    with pytest.raises(ConfigError, match="other settings"):
        open_images(source, Preprocessing((8, 8), (0.5,), (0.5,)))
