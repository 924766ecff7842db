"""A named model with a random checkpoint, pictures, and a way to run commands in a folder of their own."""

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor

from vitquant.adapters.names import lookup
from vitquant.architectures.float_vit import VisionTransformer
from vitquant.cli.main import main

MODEL = "deit_tiny_patch16_224"
CLASSES = ("cat", "dog", "owl")


@dataclass(frozen=True)
class Outcome:
    """What a command left behind."""

    code: int
    out: str
    err: str

    @property
    def error(self) -> str:
        """The error message; everything before it is progress."""
        _, found, message = self.err.partition("error: ")
        assert found, self.err
        return f"{found}{message}".rstrip()


@pytest.fixture(scope="session")
def state() -> Mapping[str, Tensor]:
    """Random parameters of the tiny DeiT at 32x32 pixels, three classes."""
    spec = replace(lookup(MODEL, img_size=32).spec, num_classes=len(CLASSES))
    with torch.device("meta"):
        shapes = {name: value.shape for name, value in VisionTransformer(spec).state_dict().items()}
    generator = torch.Generator().manual_seed(0)
    return {
        name: torch.randn(shape, generator=generator) * 0.1 + ("norm" in name and name.endswith("weight"))
        for name, shape in shapes.items()
    }


@pytest.fixture(scope="session")
def weights(state: Mapping[str, Tensor], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "deit.safetensors"
    save_file(dict(state), path)
    return path


@pytest.fixture
def folder(tmp_path: Path, weights: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder: a checkpoint, 4 pictures to calibrate on, 6 labelled ones to measure on, earlier results."""
    monkeypatch.chdir(tmp_path)
    os.link(weights, tmp_path / "deit.safetensors")
    generator = torch.Generator().manual_seed(1)
    names = [f"photos/{i}.png" for i in range(4)] + [f"photos2/{c}/{i}.png" for c in CLASSES for i in range(2)]
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        coarse = torch.randint(0, 256, (10, 12, 3), dtype=torch.uint8, generator=generator)
        Image.fromarray(coarse.numpy()).resize((48, 40)).save(tmp_path / name)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "summary.json").write_text('{"from": "an earlier run"}')
    return tmp_path


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Callable[..., Outcome]:
    """Run a command in this process."""

    def command(*argv: str) -> Outcome:
        capsys.readouterr()
        code = main(argv)
        return Outcome(code, *capsys.readouterr())

    return command


@pytest.fixture
def quantize(run: Callable[..., Outcome], folder: Path) -> Callable[..., Outcome]:
    """Run ``vitquant quantize`` in the folder; keywords replace options."""

    def command(*flags: str, **options: str) -> Outcome:
        given = {
            "model": MODEL,
            "weights": "deit.safetensors",
            "img_size": "32",
            "calib": "photos",
            "eval": "photos2",
            "profile_images": "2",
            "out": "out",
        } | options
        argv = [text for key, value in given.items() for text in (f"--{key.replace('_', '-')}", value)]
        return run("quantize", *argv, *flags)

    return command


def contents(folder: Path) -> dict[str, bytes]:
    """Every file below a folder, hidden ones included."""
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def refused(quantize: Callable[..., Outcome], folder: Path) -> Callable[..., str]:
    """Run ``vitquant quantize``, see that it fails with this code and leaves all files alone; returns the message."""

    def command(expected_code: int, *flags: str, **options: str) -> str:
        before = contents(folder)
        outcome = quantize(*flags, **options)
        assert outcome.code == expected_code, outcome.err
        assert outcome.out == ""
        assert "Traceback" not in outcome.err
        assert contents(folder) == before
        return outcome.error

    return command
