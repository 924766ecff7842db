"""Checkpoint files: finding the files of a path, and reading them without executing their content."""

from __future__ import annotations

import json
import pickle
import re
import stat
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from vitquant.errors import ModelError

SAFETENSORS = ".safetensors"
TORCH_SUFFIXES = (".pth", ".pt", ".bin", ".ckpt", ".th", ".tar")
INDEX = ".index.json"
READ = f"{SAFETENSORS}, {', '.join(TORCH_SUFFIXES)} or {INDEX}"
SHARD = re.compile(r"(?P<stem>.+)-\d{5}-of-(?P<count>\d{5})(?P<suffix>\.\w+)$")
TRAINING_STATE = ("training_args.bin", "optimizer.pt", "optimizer.bin", "scheduler.pt", "scaler.pt", "rng_state.pth")
MAX_INDEX_BYTES = 2**24
FIX = "save the plain state_dict, best with safetensors.torch.save_file"


class StandIn:
    """An empty placeholder for objects that a checkpoint contains besides its weights."""

    def __new__(cls, *args: object, **kwargs: object) -> StandIn:
        return super().__new__(cls)

    def __setstate__(self, state: object) -> None:
        """Discard the state."""


# Harmless objects that training scripts store: options, numbers, paths. They are not constructed either: torch gets
# an empty placeholder for each.
HARMLESS = (
    "argparse.Namespace",
    "numpy.dtype",
    "numpy.ndarray",
    *(f"numpy.{core}.multiarray.{name}" for core in ("core", "_core") for name in ("scalar", "_reconstruct")),
    *(f"pathlib.{name}" for name in ("Path", "PosixPath", "WindowsPath", "PurePosixPath", "PureWindowsPath")),
    "torch.torch_version.TorchVersion",
)


def read_file(path: Path) -> object:
    """The content of a checkpoint, including outer dictionaries.

    Args:
        path: a ``.safetensors`` file, a file written by ``torch.save``, the index of a sharded checkpoint, or a folder
            with exactly one of these.

    Raises:
        ModelError: there is no such file, or it is damaged, in another format, or contains more than tensors.
    """
    file = _only_checkpoint(path) if _is_folder(path) else path
    name = file.name.lower()
    if name.endswith(INDEX):
        return _read_shards(file)
    if (shard := SHARD.fullmatch(file.name)) and int(shard["count"]) > 1:
        raise ModelError(
            f"the file is one of {int(shard['count'])} shards of a checkpoint",
            where=str(file),
            fix=f"give the folder, or {shard['stem']}{shard['suffix']}{INDEX}",
        )
    return _read_one(file)


def _is_folder(path: Path) -> bool:
    try:
        mode = path.stat().st_mode
    except FileNotFoundError as error:
        expected = "a .safetensors, .pth, .pt or .bin file"
        raise ModelError("no such checkpoint", where=str(path), expected=expected) from error
    except (OSError, ValueError) as error:
        raise ModelError(f"the checkpoint cannot be read ({error})", where=str(path)) from error
    if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
        got = {stat.S_IFIFO: "a pipe", stat.S_IFCHR: "a device", stat.S_IFBLK: "a device"}.get(stat.S_IFMT(mode))
        raise ModelError("not a regular file", where=str(path), got=got, expected=f"a file {READ}, or a folder")
    return stat.S_ISDIR(mode)


def _only_checkpoint(folder: Path) -> Path:
    try:
        files = sorted(file for file in folder.iterdir() if file.is_file() and not file.name.startswith("."))
    except OSError as error:
        raise ModelError(f"the folder cannot be read ({error})", where=str(folder)) from error
    indexes = [file for file in files if file.name.lower().endswith(INDEX)]
    shards = {name for index in indexes for name in _read_index(index).values()}
    skipped = {*shards, *TRAINING_STATE}
    found = indexes + [f for f in files if f.suffix.lower() in (SAFETENSORS, *TORCH_SUFFIXES) and f.name not in skipped]
    if len(found) == 1:
        return found[0]
    if not found:
        raise ModelError("no checkpoint in the folder", where=str(folder), expected=f"one file {READ}")
    more = ", ..." if len(found) > 5 else ""
    raise ModelError(
        f"the folder contains {len(found)} checkpoints",
        where=str(folder),
        got=", ".join(file.name for file in found[:5]) + more,
        expected="exactly one",
        fix="give one of these files",
    )


def _read_index(index: Path) -> dict[str, str]:
    """The index of a checkpoint in several files: parameter -> file in the same folder."""
    try:
        with index.open("rb") as file:
            text = file.read(MAX_INDEX_BYTES + 1)
        content = json.loads(text) if len(text) <= MAX_INDEX_BYTES else None
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(f"the index cannot be read ({_brief(error)})", where=str(index)) from error
    names = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(names, dict) or not names or not all(isinstance(name, str) for name in names.values()):
        expected = "a mapping of parameters to files under the key weight_map"
        raise ModelError("not a checkpoint index", where=str(index), expected=expected)
    for name in names.values():
        if name != Path(name).name or "\\" in name or name.lower().endswith(INDEX):
            raise ModelError("the index refers to a file outside its folder", where=str(index), got=repr(name))
    return names


def _read_shards(index: Path) -> dict[str, Any]:
    names = _read_index(index)
    shards: dict[str, Mapping[Any, Any]] = {}
    for name in sorted(set(names.values())):
        if _is_folder(index.with_name(name)):
            raise ModelError("not a checkpoint file", where=str(index.with_name(name)), got="a folder")
        shard = _read_one(index.with_name(name))
        shards[name] = shard if isinstance(shard, Mapping) else {}
    if absent := [key for key, name in names.items() if key not in shards[name]]:
        more = f" (and {len(absent) - 1} more)" if len(absent) > 1 else ""
        raise ModelError(
            f"the index lists a parameter that is missing from its file{more}",
            where=str(index),
            got=f"{absent[0]} in {names[absent[0]]}",
            fix="download the checkpoint again",
        )
    return {key: shards[name][key] for key, name in names.items()}


def _read_one(path: Path) -> object:
    suffix = path.suffix.lower()
    if suffix not in (SAFETENSORS, *TORCH_SUFFIXES):
        raise ModelError(
            "unsupported checkpoint format",
            where=str(path),
            got=path.suffix or "no suffix",
            expected=f"{SAFETENSORS}, or {', '.join(TORCH_SUFFIXES)} with tensors only",
            fix="save the state_dict with safetensors.torch.save_file",
        )
    try:
        start = _first_bytes(path)
    except OSError as error:
        raise ModelError(f"the checkpoint cannot be read ({_brief(error)})", where=str(path)) from error
    if not start:
        raise ModelError("the checkpoint cannot be read (the file is empty)", where=str(path))
    by_torch = start.startswith((b"PK\x03\x04", b"\x80"))
    if suffix == SAFETENSORS and by_torch and start[8:9] != b"{":
        fix = "rename it with the suffix .pth"
        raise ModelError("the file was written by torch.save, not by safetensors", where=str(path), fix=fix)
    if suffix != SAFETENSORS and not by_torch and start[8:9] == b"{":
        fix = f"rename it with the suffix {SAFETENSORS}"
        raise ModelError("the file was written by safetensors, not by torch.save", where=str(path), fix=fix)
    return _load_safetensors(path) if suffix == SAFETENSORS else _load_torch(path)


def _first_bytes(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(9)


def _load_safetensors(path: Path) -> dict[str, Any]:
    try:
        return dict(load_file(path))
    except Exception as error:  # a parser on untrusted bytes, and types that this torch may lack
        raise ModelError(f"the checkpoint cannot be read ({_brief(error)})", where=str(path)) from error


def _load_torch(path: Path) -> object:
    try:
        _check_archive(path)
        with warnings.catch_warnings(), torch.serialization.safe_globals([(StandIn, name) for name in HARMLESS]):
            warnings.simplefilter("ignore")  # about old formats; unreadable files are errors below
            return torch.load(path, map_location="cpu", weights_only=True)
    except ModelError:
        raise
    except pickle.UnpicklingError as error:
        raise _more_than_tensors(path, error) from error
    except Exception as error:  # a parser on untrusted bytes may raise anything
        raise ModelError(f"the checkpoint cannot be read ({_brief(error)})", where=str(path)) from error


def _check_archive(path: Path) -> None:
    """Reject zip archives that contain a program or are compressed: ``torch.save`` does not compress."""
    if not zipfile.is_zipfile(path):
        return
    with zipfile.ZipFile(path) as archive:
        entries = archive.infolist()
    if any(entry.filename.endswith("/constants.pkl") for entry in entries):
        fix = "save the state_dict of the original model"
        raise ModelError("a TorchScript archive contains a program, not weights", where=str(path), fix=fix)
    declared, size = sum(entry.file_size for entry in entries), path.stat().st_size
    if declared > size:
        got, expected = f"{declared:,} bytes", f"at most the file's {size:,}"
        raise ModelError(
            "the content of the checkpoint is larger than the file", where=str(path), got=got, expected=expected
        )


def _more_than_tensors(path: Path, error: pickle.UnpicklingError) -> ModelError:
    classes = [name for name in _classes(path, error) if name not in HARMLESS]
    listed = ", ".join(classes[:5]) + (f" and {len(classes) - 5} more" if len(classes) > 5 else "")
    fix = FIX
    if any(name.startswith(("torch.nn.modules.", "timm.", "torchvision.", "transformers.")) for name in classes):
        fix = "the file contains a whole model object: load it where it was created, and save its state_dict()"
    elif classes:
        fix = "if you trust the file, load it with torch.load(..., weights_only=False), and save the plain state_dict"
    return ModelError(
        "the checkpoint contains more than tensors, or is damaged; nothing in it was executed",
        where=str(path),
        got=f"the classes {listed}" if classes else None,
        fix=fix,
    )


def _classes(path: Path, error: Exception) -> list[str]:
    """Classes and functions in the file that torch does not consider safe."""
    try:
        return sorted(torch.serialization.get_unsafe_globals_in_checkpoint(str(path)))
    except Exception:  # this second parser supports fewer formats than the first
        return re.findall(r"GLOBAL ([\w.]+) was not an allowed global", str(error))


def _brief(error: Exception) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 200 else f"{text[:200]}..."
