"""Bad values by kind, and a clock: what the batteries of the command line and of the Python functions share."""

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import torch

SECONDS = 20


class Hung(BaseException):
    """A call that should have been refused at once waits."""


@contextmanager
def deadline(seconds: int = SECONDS) -> Iterator[None]:
    """Interrupt what waits for a pipe, or works on what it should have refused."""

    def stop(_: int, frame: FrameType | None) -> None:
        raise Hung(f"after {seconds} s in {frame}")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def contents(folder: Path) -> dict[Path, tuple[int, int, int]]:
    """What is there: kinds, sizes, and when each was written last."""
    found = {path: path.lstat() for path in folder.rglob("*")}
    return {path: (stat.st_mode, stat.st_size, stat.st_mtime_ns) for path, stat in found.items()}


def make_zoo(folder: Path) -> None:
    """Things of all sorts that a path may lead to, in the current folder."""
    (folder / "empty-folder").mkdir()
    (folder / "text.yaml").write_text("no: [such, thing\n")
    for suffix in ("npz", "onnx", "png", "pth", "safetensors", "json", "yaml"):
        (folder / f"junk.{suffix}").write_bytes(b"\x00\xff junk \x1b[31m" * 20)
        (folder / f"zero.{suffix}").touch()
    os.mkfifo(folder / "pipe")
    (folder / "loop").symlink_to("loop")
    (folder / "nowhere").symlink_to("not-there")


ODD_NAMES = {
    "line end": "a\nb",
    "escape": "\x1b[31mred\x1b[2J",
    "markup": "res[red]x[/]:smile:",
    "not UTF-8": "photo\udcff",
}

PATHS: dict[str, str] = {
    **{f"missing, {kind}": name for kind, name in ODD_NAMES.items()},
    "empty": "",
    "folder": "empty-folder",
    "pipe": "pipe",
    "device": os.devnull,
    "too long": "x" * 300,
    "below a file": "text.yaml/below",
    "loop": "loop",
    "dangling link": "nowhere",
}
"""Nothing can be read there."""

JUNK = {
    f"{content} .{suffix}": f"{content}.{suffix}" for content in ("junk", "zero") for suffix in ("npz", "safetensors")
}
JUNK |= {"broken YAML": "text.yaml", "junk .pth": "junk.pth", "junk .yaml": "junk.yaml", "zero .yaml": "zero.yaml"}
"""Files that can be read, and hold nothing of use."""

TARGETS: dict[str, str] = {key: PATHS[key] for key in ("empty", "folder", "pipe", "device", "too long", "below a file")}
"""No file can be written there."""

FOLDER_TARGETS: dict[str, str] = {
    key: PATHS[key] for key in ("empty", "too long", "below a file", "pipe", "device")
} | {"file": "text.yaml"}
"""No folder can be made there."""

DEVICES: dict[str, str] = {
    name or "empty": name
    for name in ("gpu", "", "CPU", "meta", "cuda:-1", "cuda:99", "mps:7", "xpu:9", "vulkan", "opencl", "a\n\x1b[31mb")
}

NUMBERS: dict[str, str] = {
    text: text for text in ("0", "-1", "1.5", "nan", "many", "", "1e3", "99999999999999999999", "9" * 5000)
} | {"not ASCII": "²"}
"""No counts; as typed."""

WRONG_TYPES: dict[str, Any] = {
    "None": None,
    "number": 3,
    "object": object(),
    "bytes": b"\xff\x00",
    "list": [],
    "class": dict,
    "function": len,
    "NaN": float("nan"),
}

COUNTS: dict[str, Any] = WRONG_TYPES | {
    "number": 0,
    "negative": -1,
    "fraction": 1.5,
    "text": "8",
    "yes": True,
    "huge": 10**30,
    "tensor": torch.zeros(2),
}
"""No counts; from Python."""


def tensors(shape: tuple[int, ...]) -> dict[str, Any]:
    """No images of this shape, ``[C, h, w]``."""
    good = torch.zeros(2, *shape)
    nan, inf = good.clone(), good.clone()
    nan[1, 0, 2, 2], inf[1, 0, 2, 2] = torch.nan, torch.inf
    return {
        "no images": good[:0],
        "scalar": torch.tensor(3.0),
        "vector": torch.zeros(5),
        "two dimensions": torch.zeros(5, 5),
        "five dimensions": torch.zeros(1, *good.shape),
        "another size": torch.zeros(2, shape[0], 3, 3),
        "another number of channels": torch.zeros(2, 7, *shape[1:]),
        "no pixels": torch.zeros(2, shape[0], 0, 0),
        "NaN": nan,
        "infinity": inf,
        "complex": good.to(torch.complex64),
        "boolean": good.bool(),
        "int64": good.long(),
        "meta": good.to("meta"),
        "sparse": good.to_sparse(),
        "texts": ["a", "b"],
        "objects": [object()],
        "nothing": [],
        "numpy objects": np.array([object(), object()]),
        "numpy texts": good.numpy().astype(str),
        "dict": {"sounds": good},
        "too few labels": (good, torch.zeros(1, dtype=torch.long)),
        "labels of floats": (good, torch.zeros(2)),
        "labels beyond the classes": (good, torch.tensor([0, 10**6])),
    }
