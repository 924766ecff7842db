"""Files are replaced whole, and only files."""

import json
import math
import os
from pathlib import Path

import pytest

from vitquant.errors import WriteError
from vitquant.files import json_text, make_folder, require_room, write_atomically, write_together


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


@pytest.mark.parametrize("kind", ["folder", "pipe", "device"])
def test_only_files_are_replaced(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "taken"
    if kind == "folder":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    else:
        path.symlink_to(os.devnull)
    with pytest.raises(WriteError, match=r"taken: not a file\. Got "):
        write_together({tmp_path / "first": "1", path: "2"})
    assert names(tmp_path) == {"taken"}, "none is written, and nothing is left over"
    assert not Path(os.devnull).is_file()


def test_a_link_stays_a_link(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    (tmp_path / "link").symlink_to("there/file")
    for text in ("new", "again"):
        write_atomically(tmp_path / "link", text)
        assert (tmp_path / "there" / "file").read_text() == text
    assert (tmp_path / "link").is_symlink()
    assert names(tmp_path / "there") == {"file"}


def test_a_name_may_be_as_long_as_the_system_lets_it(tmp_path: Path) -> None:
    write_atomically(tmp_path / ("a" * 255), "x")
    with pytest.raises(WriteError, match="name too long"):
        write_atomically(tmp_path / ("a" * 256), "x")
    assert names(tmp_path) == {"a" * 255}


def test_folders_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    for path in (tmp_path / "file", tmp_path / "file" / "below", tmp_path / ("a" * 300)):
        with pytest.raises(WriteError) as caught:
            make_folder(path)
        assert caught.value.exit_code == 4
    assert (tmp_path / "file").read_text() == "mine"


def test_room_is_looked_for_before_the_work(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    require_room(tmp_path)
    require_room(tmp_path / "a" / "b")
    for path in (tmp_path / "file" / "below", tmp_path / "file" / "below" / "deep", tmp_path / ("a" * 300)):
        with pytest.raises(WriteError):
            require_room(path)
    assert names(tmp_path) == {"file"}


def test_json_has_no_nan() -> None:
    value = {"a": [math.nan, 1.5, -math.inf], "b": (math.inf, None, "NaN"), "c": {"d": True}}
    assert json.loads(json_text(value)) == {"a": [None, 1.5, None], "b": [None, None, "NaN"], "c": {"d": True}}
