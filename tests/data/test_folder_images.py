import os
import shutil
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from support.documents import documented
from vitquant.data import FolderWarning, Preprocessing, SkippedImagesWarning, open_images
from vitquant.errors import ConfigError, DataError

GREY = Preprocessing((4, 4), (0.5,), (0.5,), crop_pct=1.0)


def write(path: Path, value: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((4, 4), value, np.uint8)).save(path)


def values(images: torch.Tensor) -> list[int]:
    return images[:, 0, 0, 0].tolist()


def test_flat_folder_in_sorted_order(tmp_path: Path) -> None:
    for name, value in (("c.PNG", 30), ("a.png", 10), ("b.bmp", 20), ("d.pgm", 40), (".hidden.png", 99)):
        write(tmp_path / name, value)
    (tmp_path / "notes.txt").write_text("no image")
    with pytest.warns(FolderWarning, match=r"ignored 1 file that cannot be read as images \(1 \.txt\)$"):
        source = open_images(tmp_path, GREY)
    batches = list(source.batches(3))
    assert source.count == 4
    assert source.class_names is None
    assert [batch.names for batch in batches] == [["a.png", "b.bmp", "c.PNG"], ["d.pgm"]]
    assert [values(batch.pixels) for batch in batches] == [[10, 20, 30], [40]]
    assert all(batch.labels is None and batch.pixels.dtype == torch.uint8 for batch in batches)
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
    source = open_images(tmp_path, GREY)
    (batch,) = source.batches(8)
    assert source.class_names == ("cat", "dog", "emu")
    assert batch.names == ["cat/9.png", "dog/1.png", "dog/2.png", "emu/5.png"]
    assert batch.labels is not None
    assert batch.labels.tolist() == [0, 1, 1, 2]


def test_a_folder_without_pictures_is_no_class(tmp_path: Path) -> None:
    for name in ("dog/1.png", "emu/1.png", "__MACOSX/cat/._1.png", "@eaDir/1.png", "bee/notes.txt", "dog/@eaDir/1.png"):
        write(tmp_path / name.replace(".txt", ".png"), 1)
    (tmp_path / "bee" / "notes.png").rename(tmp_path / "bee" / "notes.txt")
    (tmp_path / "ant").mkdir()
    write(tmp_path / "emu" / "more" / "2.png", 1)
    with pytest.warns(FolderWarning) as caught:
        source = open_images(tmp_path, GREY)
    (warning,) = caught
    listed = "@eaDir, __MACOSX, ant, bee, dog/@eaDir, and 1 more"
    assert str(warning.message) == f"{tmp_path}: ignored 6 folders ({listed})"
    assert source.class_names == ("dog", "emu")
    assert [b.labels.tolist() for b in source.batches(8) if b.labels is not None] == [[0, 1]]


def test_junk_beside_flat_pictures(tmp_path: Path) -> None:
    write(tmp_path / "1.png", 1)
    write(tmp_path / "@eaDir" / "1.png", 1)  # thumbnails of a storage device
    with pytest.warns(FolderWarning, match=r"1 folder \(@eaDir\)"):
        source = open_images(tmp_path, GREY)
    assert (source.count, source.class_names) == (1, None)


@pytest.mark.parametrize(
    ("names", "order"),
    [
        (("1", "2", "10"), "1, 10, 2"),
        (("class_9", "class_12"), "class_12, class_9"),
        (("01", "02", "10"), None),
        (("1", "b", "10"), None),
    ],
)
def test_numbers_keep_the_order_of_text(tmp_path: Path, names: tuple[str, ...], order: str | None) -> None:
    for name in names:
        write(tmp_path / name / "1.png", 1)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        source = open_images(tmp_path, GREY)
    assert source.class_names == tuple(sorted(names))
    if order is None:
        assert not caught
    else:
        assert f"ordered as text: {order}." in str(caught[0].message)
        open_images(tmp_path, GREY, ignore_labels=True)  # does not warn


def test_the_warnings_of_the_document(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("1/a.png", "2/a.png", "10/a.png"):
        write(Path("photos") / name, 1)
    with pytest.warns(FolderWarning) as caught:
        open_images("photos", GREY)
    assert documented(f"warning: {caught[0].message}")
    shutil.rmtree("photos")
    for i in range(4):
        write(Path(f"photos/{i}.png"), 1)
    Path("photos/0.png").write_bytes(b"broken")
    with pytest.warns(SkippedImagesWarning) as skipped:
        list(open_images("photos", GREY).batches(8))
    assert documented(f"warning: {skipped[0].message}")
    for name in ("a.heic", "b.HEIC", "c.txt"):
        (Path("photos") / name).write_text("")
    write(Path("photos/@eaDir/1.png"), 1)
    Path("photos/empty").mkdir()
    with pytest.warns(FolderWarning) as caught:
        open_images("photos", GREY)
    assert documented(f"warning: {caught[0].message}")


def test_ignored_labels(tmp_path: Path) -> None:
    for label in "abc":
        write(tmp_path / label / "1.png", 1)
    source = open_images(tmp_path, GREY, ignore_labels=True)
    assert (source.count, source.class_names) == (3, None)
    assert [batch.labels for batch in source.batches(2)] == [None, None]
    labelled = open_images(tmp_path, GREY)
    source = open_images(labelled, GREY, ignore_labels=True)
    assert (source.count, source.class_names, source.batch_count(2)) == (3, None, 2)
    assert [batch.labels for batch in source.batches(2)] == [None, None]
    assert [batch.names for batch in source.batches(2)] == [batch.names for batch in labelled.batches(2)]


@pytest.mark.parametrize("suffix", [".jfif", ".JPE", ".jp2", ".pbm", ".tga", ".mpo"])
def test_what_pillow_reads_is_a_picture(tmp_path: Path, suffix: str) -> None:
    kind = Image.registered_extensions()[suffix.lower()]
    Image.new("1" if suffix == ".pbm" else "RGB", (4, 4), 1).save(tmp_path / f"a{suffix}", kind)
    assert len(next(open_images(tmp_path, GREY).batches(1))) == 1


def test_qoi_is_read_by_pillows_that_do_not_write_it(tmp_path: Path) -> None:
    size, red, fifteen_more = (4).to_bytes(4, "big"), b"\xfe\x01\x00\x00", b"\xce"
    (tmp_path / "a.qoi").write_bytes(b"qoif" + size * 2 + b"\x03\x00" + red + fifteen_more + bytes(7) + b"\x01")
    assert len(next(open_images(tmp_path, GREY).batches(1))) == 1


@pytest.mark.parametrize("suffix", [".pdf", ".eps", ".mpg", ".ico", ".h5", ".psd"])
def test_documents_and_films_are_no_pictures(tmp_path: Path, suffix: str) -> None:
    write(tmp_path / "1.png", 1)
    (tmp_path / f"a{suffix}").write_text("")
    with pytest.warns(FolderWarning, match=rf"1 file .*\(1 \{suffix}\)"):
        assert open_images(tmp_path, GREY).count == 1


def test_a_plugin_of_pillow_adds_its_suffix(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "1.png", 1)
    write(tmp_path / "2.png", 2)
    (tmp_path / "2.png").rename(tmp_path / "2.heic")
    Image.init()
    monkeypatch.setitem(Image.EXTENSION, ".heic", "HEIF")
    monkeypatch.setitem(Image.OPEN, "HEIF", Image.OPEN["PNG"])
    assert open_images(tmp_path, GREY).count == 2


def test_an_animation_gives_its_first_picture(tmp_path: Path) -> None:
    frames = [Image.new("L", (4, 4), value) for value in (50, 200)]
    for suffix in (".gif", ".png", ".tif"):
        frames[0].save(tmp_path / f"a{suffix}", save_all=True, append_images=frames[1:])
    (batch,) = open_images(tmp_path, GREY).batches(8)
    assert values(batch.pixels) == [50, 50, 50]


def test_only_regular_files_are_pictures(tmp_path: Path) -> None:
    write(tmp_path / "1.png", 1)
    (tmp_path / "2.png").symlink_to("1.png")
    os.mkfifo(tmp_path / "3.png")
    (tmp_path / "4.png").symlink_to("/dev/zero")
    (tmp_path / "5.jpg").symlink_to("nowhere")
    with pytest.warns(FolderWarning, match=r"3 files .*2 \.png that is not a regular file, 1 \.jpg that is not"):
        source = open_images(tmp_path, GREY)
    assert [batch.names for batch in source.batches(8)] == [["1.png", "2.png"]]
    with pytest.raises(DataError, match=r"3\.png: not a regular file"):
        GREY.load(tmp_path / "3.png")


def test_names_that_are_not_utf_8(tmp_path: Path) -> None:
    for label in (b"\xff\xfe", b"a\nb"):
        for name in (b"\xe9.png", b"\x1b[2J.png"):
            write(Path(os.fsdecode(os.fsencode(tmp_path) + b"/" + label + b"/" + name)), 1)
    source = open_images(tmp_path, GREY)
    assert source.count == 4
    assert next(os.fsencode(name) for batch in source.batches(3) for name in batch.names) == b"a\nb/\x1b[2J.png"
    Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff\xfe/\xe9.png")).write_bytes(b"broken")
    with pytest.warns(SkippedImagesWarning, match="1 of 4"):
        list(source.batches(3))


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
    assert values(next(batches).pixels) == [102, 103]


def test_no_images(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"no images found; suffixes searched: .*\.jpg") as caught:
        open_images(tmp_path, GREY)
    assert caught.value.exit_code == 3
    assert "1 file that cannot be read as images (1 .txt) and 1 folder (empty)" in str(caught.value)


def test_images_further_down_are_pointed_to(tmp_path: Path) -> None:
    write(tmp_path / "train" / "cat" / "1.png", 1)
    with pytest.raises(DataError, match=r"no images found; .*images were found in .*train/cat\."):
        open_images(tmp_path, GREY)


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
    assert values(batches[0].pixels)[6:9] == [6, 8, 9]


def test_more_are_refused_by_name(tmp_path: Path) -> None:
    for i in range(100):
        write(tmp_path / f"{i:03}.png", i)
    for name in ("007.png", "070.png"):
        (tmp_path / name).write_bytes(b"broken")
    with pytest.raises(DataError, match=r"007\.png, .*070\.png: 2 of 100") as caught:
        list(open_images(tmp_path, GREY).batches(32))
    assert caught.value.exit_code == 3


def test_one_may_always_be_skipped(tmp_path: Path) -> None:
    for i in range(3):
        write(tmp_path / f"{i}.png", i)
    (tmp_path / "1.png").write_bytes(b"broken")
    with pytest.warns(SkippedImagesWarning, match=r"1 of 3 .*1\.png$"):
        assert [len(batch) for batch in open_images(tmp_path, GREY).batches(8)] == [2]


def test_nothing_readable_is_an_error(tmp_path: Path) -> None:
    write(tmp_path / "0.png", 0)
    (tmp_path / "0.png").write_bytes(b"broken")
    with pytest.raises(DataError, match=r"1 of 1 images cannot be read.*Expected at least one readable image"):
        list(open_images(tmp_path, GREY).batches(8))


def test_labels_stay_with_their_images_past_a_skip(tmp_path: Path) -> None:
    for i in range(120):
        write(tmp_path / str(i % 2) / f"{i:03}.png", 100 + i % 2)
    (tmp_path / "0" / "004.png").write_bytes(b"broken")
    with pytest.warns(SkippedImagesWarning):
        batches = list(open_images(tmp_path, GREY).batches(50))
    for batch in batches:
        assert batch.labels is not None
        assert values(batch.pixels) == (100 + batch.labels).tolist()


@pytest.mark.parametrize("size", [0, -1, 2.5, 8.0, True, "8", np.float32(2)])
def test_bad_sizes(tmp_path: Path, size: int) -> None:
    write(tmp_path / "a.png", 1)
    with pytest.raises(ConfigError, match="expected an integer from 1"):
        open_images(tmp_path, GREY).batch_count(size)
    with pytest.raises(ConfigError, match="batch_size"):
        next(open_images(tmp_path, GREY).batches(size))
    with pytest.raises(ConfigError, match="limit"):
        open_images(tmp_path, GREY, limit=size)


def test_integers_of_numpy_are_sizes(tmp_path: Path) -> None:
    for name in "abc":
        write(tmp_path / f"{name}.png", 1)
    source = open_images(tmp_path, GREY, limit=np.int64(2))
    assert [len(batch) for batch in source.batches(np.uint8(1))] == [1, 1]


def test_an_open_source_stays_what_it_is(tmp_path: Path) -> None:
    write(tmp_path / "a.png", 1)
    source = open_images(tmp_path, GREY)
    assert open_images(source, GREY) is source
    with pytest.raises(ConfigError, match="other settings"):
        open_images(source, Preprocessing((8, 8), (0.5,), (0.5,)))
