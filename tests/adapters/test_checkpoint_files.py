"""Which files a path stands for, real files of every accepted form, and files that mean harm."""

import argparse
import collections
import json
import os
import pickle
import struct
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save, save_file
from torch import Tensor

from support.checkpoint_states import equal, random_state
from support.documents import documented
from vitquant.adapters.checkpoint import read_checkpoint
from vitquant.adapters.checkpoint_files import HARMLESS, StandIn
from vitquant.errors import ModelError

STATE = random_state()


def refusal(path: Path) -> str:
    with pytest.raises(ModelError) as caught:
        read_checkpoint(path)
    assert caught.value.exit_code == 2
    assert "\n" not in str(caught.value)
    return str(caught.value).replace(str(path.parent) + os.sep, "")


@pytest.mark.parametrize(
    "name", ["a.pth.tar", "a.ckpt", "a.PTH", "a.Pt", "a.BIN", "a.th", "a.pt.TAR", "a.safetensors", "a.SafeTensors"]
)
def test_suffixes(name: str, tmp_path: Path) -> None:
    write = save_file if name.lower().endswith("safetensors") else torch.save
    write(STATE, tmp_path / name)
    assert equal(read_checkpoint(tmp_path / name).tensors, STATE)


def test_the_old_format_of_torch(tmp_path: Path) -> None:
    torch.save({"state_dict": STATE}, tmp_path / "a.pth", _use_new_zipfile_serialization=False)
    assert equal(read_checkpoint(tmp_path / "a.pth").tensors, STATE)


def shards(folder: Path, suffix: str, *, drop: str | None = None) -> Path:
    """The state in two files and their index, as ``save_pretrained`` of Hugging Face writes them."""
    stem = "model" if suffix == ".safetensors" else "pytorch_model"
    names = {key: f"{stem}-0000{1 + i % 2}-of-00002{suffix}" for i, key in enumerate(STATE)}
    for file in set(names.values()):
        part = {key: STATE[key] for key, name in names.items() if name == file and key != drop}
        (save_file if suffix == ".safetensors" else torch.save)(part, folder / file)
    index = folder / f"{stem}{suffix}.index.json"
    index.write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": names}))
    return index


@pytest.mark.parametrize("suffix", [".safetensors", ".bin"])
def test_shards_by_index_or_folder(suffix: str, tmp_path: Path) -> None:
    index = shards(tmp_path, suffix)
    assert equal(read_checkpoint(index).tensors, STATE)
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "training_args.bin").write_bytes(b"no weights")
    (tmp_path / ".hidden.bin").write_bytes(b"no weights")
    assert equal(read_checkpoint(tmp_path).tensors, STATE)


def test_one_shard_alone(tmp_path: Path) -> None:
    shards(tmp_path, ".safetensors")
    assert refusal(tmp_path / "model-00001-of-00002.safetensors") == (
        "model-00001-of-00002.safetensors: the file is one of 2 shards of a checkpoint. "
        "Fix: give the folder, or model.safetensors.index.json."
    )
    save_file(STATE, tmp_path / "all-00001-of-00001.safetensors")
    assert equal(read_checkpoint(tmp_path / "all-00001-of-00001.safetensors").tensors, STATE)


def test_indexes_that_lie(tmp_path: Path) -> None:
    index = shards(tmp_path, ".safetensors", drop="norm.bias")
    assert "the index lists a parameter that is missing from its file. Got norm.bias in model-0000" in refusal(index)
    (tmp_path / "model-00002-of-00002.safetensors").unlink()
    assert "no such checkpoint" in refusal(index)
    for name in ("../a.safetensors", "/etc/passwd", "b/../a.bin", "..\\a.bin", "b.index.json"):
        index.write_text(json.dumps({"weight_map": {"norm.bias": name}}))
        assert "refers to a file outside its folder" in refusal(index), name
        assert documented(refusal(index)) == (name == "../a.safetensors")
    for text in ("", "[", "{}", '{"weight_map": 3}', '{"weight_map": {"a": 3}}', "[" * 100_000, "\ud800"):
        index.write_bytes(text.encode("utf-8", "surrogatepass"))
        assert "index" in refusal(index)


def test_folders(tmp_path: Path) -> None:
    assert "no checkpoint in the folder" in refusal(tmp_path)
    (tmp_path / "sub.pth").mkdir()
    assert "no checkpoint in the folder" in refusal(tmp_path)
    torch.save(STATE, tmp_path / "Model.PTH")
    assert equal(read_checkpoint(tmp_path).tensors, STATE)
    save_file(STATE, tmp_path / "model.safetensors")
    assert refusal(tmp_path).endswith(
        "the folder contains 2 checkpoints. Got Model.PTH, model.safetensors, expected exactly one. "
        "Fix: give one of these files."
    )


def test_what_is_no_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.pth")
    assert documented(refusal(tmp_path / "a.pth"))
    assert "not a regular file. Got a device" in refusal(Path("/dev/null"))
    (tmp_path / "loop.pth").symlink_to("loop.pth")
    assert "loop.pth: the checkpoint cannot be read" in refusal(tmp_path / "loop.pth")
    assert "cannot be read" in refusal(tmp_path / "a\0.pth")
    assert "cannot be read" in refusal(tmp_path / ("a" * 5000 + ".pth"))
    assert "no such checkpoint" in refusal(tmp_path / "dangling.pth")


def test_suffix_and_content_that_differ(tmp_path: Path) -> None:
    torch.save(STATE, tmp_path / "a.safetensors")
    assert "written by torch.save, not by safetensors. Fix: rename it with the suffix .pth" in refusal(
        tmp_path / "a.safetensors"
    )
    save_file(STATE, tmp_path / "a.bin")
    assert documented(refusal(tmp_path / "a.bin"))
    torch.jit.save(torch.jit.trace(torch.nn.Linear(2, 2), torch.zeros(1, 2)), tmp_path / "b.pt")
    assert documented(refusal(tmp_path / "b.pt"))


def test_sizes_that_are_only_declared(tmp_path: Path) -> None:
    header = json.dumps({"a": {"dtype": "F32", "shape": [2**40], "data_offsets": [0, 2**42]}}).encode()
    (tmp_path / "a.safetensors").write_bytes(struct.pack("<Q", len(header)) + header)
    (tmp_path / "b.safetensors").write_bytes(struct.pack("<Q", 2**60) + b"{")
    for name in ("a.safetensors", "b.safetensors"):
        assert "the checkpoint cannot be read" in refusal(tmp_path / name)
    torch.save(STATE | {"pos_embed": torch.zeros(1).expand(10**7, 10**6)}, tmp_path / "c.pth")
    assert "c.pth pos_embed: not a plain floating-point tensor" in refusal(tmp_path / "c.pth")
    torch.save(STATE | {"pos_embed": torch.zeros(10**7)}, tmp_path / "stored.pth")
    with zipfile.ZipFile(tmp_path / "stored.pth") as old, zipfile.ZipFile(tmp_path / "d.pth", "w") as new:
        for entry in old.infolist():
            new.writestr(entry.filename, old.read(entry), compress_type=zipfile.ZIP_DEFLATED)
    assert "the content of the checkpoint is larger than the file. Got 40,0" in refusal(tmp_path / "d.pth")


def training_checkpoint(**more: object) -> dict[str, Any]:
    return {"model": STATE, "epoch": 3, **more}


HARMLESS_OBJECTS: dict[str, object] = {
    "namespace": argparse.Namespace(lr=0.1, data=Path("data"), nested=argparse.Namespace(a=1)),
    "numpy": {"best": np.float64(1.5), "n": np.int64(3), "table": np.arange(3), "flag": np.bool_(True)},
    "torch": (torch.Size([1, 2]), torch.float16, collections.OrderedDict(a=1), collections.Counter("aab")),
    "plain": [None, True, 1.5, 2**70, "text", b"bytes", {1, 2}, complex(1, 2)],
}


@pytest.mark.parametrize("kind", HARMLESS_OBJECTS)
def test_harmless_objects_beside_the_weights(kind: str, tmp_path: Path) -> None:
    before = set(torch.serialization.get_safe_globals())
    torch.save(training_checkpoint(args=HARMLESS_OBJECTS[kind]), tmp_path / "a.pth")
    assert equal(read_checkpoint(tmp_path / "a.pth").tensors, STATE)
    assert set(torch.serialization.get_safe_globals()) == before


def test_harmless_objects_are_not_even_built(tmp_path: Path) -> None:
    with torch.serialization.safe_globals([(StandIn, name) for name in HARMLESS]):
        torch.save({"args": argparse.Namespace(lr=1), "best": np.float64(1.5)}, tmp_path / "a.pth")
        loaded = torch.load(tmp_path / "a.pth", weights_only=True)
    assert [type(value) for value in loaded.values()] == [StandIn, StandIn]
    assert not vars(loaded["args"])


class Payload:
    """Would make a file when it is unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (Path("executed"),)


class HiddenPayload(argparse.Namespace):
    def __reduce__(self) -> tuple[Any, ...]:
        return argparse.Namespace, (), {"a": Payload()}


PAYLOADS: dict[str, object] = {
    "alone": Payload(),
    "in a namespace": argparse.Namespace(a=Payload()),
    "in a namespace's state": HiddenPayload(),
    "deep in a namespace": argparse.Namespace(a={"b": [Payload()]}),
    "in an array": np.array([Payload()], dtype=object),
    "as a key": {Payload(): 1},
    "in an ordered dict": collections.OrderedDict(a=(Payload(),)),
}


@pytest.mark.parametrize("kind", PAYLOADS)
@pytest.mark.parametrize("new", [True, False])
def test_nothing_is_executed(kind: str, new: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    content = training_checkpoint(args=PAYLOADS[kind])
    torch.save(content, "evil.pth", _use_new_zipfile_serialization=new)
    assert "nothing in it was executed" in refusal(tmp_path / "evil.pth")
    assert not Path("executed").exists()
    torch.load("evil.pth", weights_only=False)  # the payload works
    assert Path("executed").exists()


@pytest.mark.parametrize("name", ["os.system", "builtins.eval", "builtins.getattr", "subprocess.Popen"])
def test_functions_by_name_are_refused(name: str, tmp_path: Path) -> None:
    module, function = name.rsplit(".", 1)
    program = f"c{module}\n{function}\n(S'touch executed'\ntR.".encode()
    (tmp_path / "a.pth").write_bytes(b"\x80\x02" + program)
    assert "nothing in it was executed" in refusal(tmp_path / "a.pth")


@pytest.mark.job
def test_other_classes_are_named(tmp_path: Path) -> None:
    module = "omegaconf.dictconfig"
    script = (
        "import sys, types, torch\n"
        f"m = sys.modules['{module}'] = types.ModuleType('{module}')\n"
        f"m.DictConfig = type('DictConfig', (), {{'__module__': '{module}'}})\n"
        "sys.modules['omegaconf'] = types.ModuleType('omegaconf')\n"
        "torch.save({'model': {}, 'cfg': m.DictConfig()}, 'a.pth')\n"
        "torch.save({'model': {}, 'cfg': m.DictConfig()}, 'old.pth', _use_new_zipfile_serialization=False)\n"
        "torch.save(torch.nn.Linear(2, 2), 'whole.pth')\n"
    )
    subprocess.run([sys.executable, "-c", script], cwd=tmp_path, check=True, timeout=120)
    for name in ("a.pth", "old.pth"):
        message = refusal(tmp_path / name)
        assert "Got the classes omegaconf.dictconfig.DictConfig. Fix: if you trust the file, load it with" in message
    assert "the file contains a whole model object: load it where it was created, and save its state_dict()" in refusal(
        tmp_path / "whole.pth"
    )


ODD_TENSORS: dict[str, Callable[[Tensor], Tensor]] = {
    "float8_e4m3fn": lambda t: t.to(torch.float8_e4m3fn),
    "int8": lambda t: t.to(torch.int8),
    "bool": lambda t: t > 0,
    "complex64": lambda t: t.to(torch.complex64),
    "a sparse_coo tensor": lambda t: t.to_sparse(),
    "a quantized tensor (qint8)": lambda t: torch.quantize_per_tensor(t, 0.1, 0, torch.qint8),
    "a tensor without data (on the meta device)": lambda t: t.to("meta"),
}


@pytest.mark.parametrize("got", ODD_TENSORS)
@pytest.mark.filterwarnings("ignore:.*quantize.*|.*[Ss]parse.*|.*TypedStorage.*")
def test_tensors_that_are_no_plain_numbers(got: str, tmp_path: Path) -> None:
    from vitquant.adapters.adapt import adapt
    from vitquant.adapters.names import lookup

    state = random_state(lookup("vit_tiny_patch16_224", img_size=16).spec)
    name = "blocks.3.mlp.fc1.weight"
    state[name] = ODD_TENSORS[got](state[name])
    torch.save(state, tmp_path / "a.pth")
    with pytest.raises(ModelError) as caught:
        adapt("vit_tiny_patch16_224", weights=tmp_path / "a.pth", img_size=16)
    assert f"a.pth {name}: not a plain floating-point tensor. Got {got}, " in str(caught.value)


BLOBS = {"a.safetensors": save(STATE)}


@settings(max_examples=60)
@given(data=st.data())
def test_damaged_files_are_refused_or_read(data: st.DataObject, tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("damaged")
    if "b.pth" not in BLOBS:
        torch.save(training_checkpoint(args=argparse.Namespace(lr=1)), folder / "b.pth")
        torch.save(training_checkpoint(), folder / "c.pth", _use_new_zipfile_serialization=False)
        BLOBS.update({name: (folder / name).read_bytes() for name in ("b.pth", "c.pth")})
    name = data.draw(st.sampled_from(sorted(BLOBS)))
    blob = bytearray(BLOBS[name])
    for _ in range(data.draw(st.integers(1, 4))):
        place = data.draw(st.integers(0, min(len(blob), 2000) - 1))
        blob[place] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(0, len(blob)) | st.just(len(blob)))
    (folder / name).write_bytes(blob[:cut])
    try:
        found = read_checkpoint(folder / name).tensors
    except ModelError as error:
        assert str(folder / name) in str(error)  # noqa: PT017
    else:
        assert all(isinstance(value, Tensor) for value in found.values())


def test_a_dictionary_that_holds_itself(tmp_path: Path) -> None:
    loop: dict[str, Any] = {"epoch": 1}
    loop["a"] = loop["b"] = loop
    with (tmp_path / "a.pth").open("wb") as file:
        pickle.dump({}, file)
    torch.save(loop, tmp_path / "a.pth")
    assert "nested too deeply" in refusal(tmp_path / "a.pth")
