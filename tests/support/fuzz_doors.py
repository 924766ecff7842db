"""What is fuzzed: for each kind of file some good ones, the ways to spoil them, and how they are read and judged."""

from __future__ import annotations

import io
import json
import random
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save as save_tensors

import vitquant
from support import file_mutations as change
from support import mutations
from support.documents import ROOT
from support.file_mutations import Files
from support.integer_models import CONFIGS, quantized
from vitquant.adapters.checkpoint import fit_checkpoint, read_checkpoint
from vitquant.architectures.float_vit import VisionTransformer, ViTSpec
from vitquant.artifact.storage import encode_model, state
from vitquant.config import point_names
from vitquant.data import Preprocessing, open_images
from vitquant.executors.reference import Reference
from vitquant.program.storage import encode_program

PREPROCESSING = Preprocessing((28, 28), (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
SPEC = ViTSpec((8, 8), (4, 4), embed_dim=12, depth=2, num_heads=3, mlp_hidden=24, num_classes=3)


@dataclass(frozen=True)
class Door:
    """One kind of input. ``read`` gets the folder of the files; what it must not take is an ``AssertionError``."""

    originals: Callable[[], list[Files]]
    changes: tuple[Callable[[Files, random.Random], Files], ...]
    read: Callable[[Path], object]


def the_file(folder: Path) -> Path:
    return next(folder.iterdir())


def configurations() -> list[Files]:
    return [{"my.yaml": path.read_bytes()} for path in sorted((ROOT / "configs").glob("*.yaml"))]


def read_configuration(folder: Path) -> None:
    vitquant.ModelConfig.from_yaml(folder / "my.yaml").resolve(point_names(2))


def saved_models() -> list[Files]:
    golden, names = ROOT / "tests" / "golden", ("manifest.json", "model.safetensors")
    found: list[Files] = [
        {name: (golden / version / name).read_bytes() for name in names} for version in ("tiny_vit_v1", "tiny_vit_v2")
    ]
    for model in (quantized(), quantized(seed=1, layer_scale=True), quantized(CONFIGS["4 bits in groups"])):
        files = encode_model(model)
        found.append({name: data.encode() if isinstance(data, str) else data for name, data in files.items()})
    return found


@torch.no_grad()
def read_model(folder: Path) -> None:
    model = vitquant.load(folder)
    for name, tensor in state(model):
        assert bool(tensor.float().isfinite().all()), f"{name} holds NaN or Inf"
        assert not name.endswith(".scale") or bool((tensor > 0).all()), f"{name} is not above 0"
    pixels = torch.full((1, *model.preprocessing.shape), 100, dtype=torch.uint8)
    assert bool(model(model.preprocessing.normalize(pixels)).isfinite().all()), "the output is not finite"


def programs() -> list[Files]:
    found = []
    for seed, changes in enumerate(({}, {}, CONFIGS["4 bits in groups"])):
        manifest, tensors = encode_program(vitquant.compile(quantized(changes, seed=seed)))
        found.append({"program.json": manifest, "program.safetensors": tensors})
    return found


def of_program(mutate: Callable[[mutations.Files, random.Random], mutations.Files]) -> Callable[..., Files]:
    """A mutation of the two files of a program, from where those stand."""

    def changed(files: Files, rng: random.Random) -> Files:
        manifest, tensors = mutate((files["program.json"], files["program.safetensors"]), rng)
        return {"program.json": manifest, "program.safetensors": tensors}

    return changed


def read_program(folder: Path) -> None:
    program = vitquant.load_program(folder)
    if len(program.image.shape) == 3 and np.prod(program.image.shape) < 10**6:
        Reference(program)(torch.zeros(1, *program.image.shape, dtype=torch.uint8))


def archives() -> list[Files]:
    rng = np.random.default_rng(0)
    found = []
    for shape in ((5, 28, 28, 3), (4, 28, 28), (3, 3, 40, 31)):
        for write in (np.savez, np.savez_compressed):
            out = io.BytesIO()
            write(out, images=rng.integers(0, 256, shape, dtype=np.uint8), labels=np.arange(shape[0]))
            found.append({"images.npz": out.getvalue()})
    return found


def read_images(folder: Path) -> None:
    source = folder / "images.npz" if (folder / "images.npz").exists() else folder
    for batch in open_images(source, PREPROCESSING).batches(4):
        assert batch.pixels.dtype == torch.uint8


def pictures() -> list[Files]:
    rng = np.random.default_rng(0)
    picture = Image.fromarray(rng.integers(0, 256, (40, 33, 3), dtype=np.uint8))
    found = []
    for suffix, mode in (
        *(("png", "RGB"), ("png", "P"), ("png", "LA"), ("png", "I;16"), ("jpg", "RGB"), ("gif", "P"), ("bmp", "RGB")),
        *(("tif", "RGB"), ("webp", "RGBA"), ("ppm", "RGB"), ("tga", "RGB"), ("jp2", "RGB"), ("avif", "RGB")),
    ):
        out = io.BytesIO()
        converted = picture.convert("L").convert("I").convert("I;16") if mode == "I;16" else picture.convert(mode)
        try:
            converted.save(out, format=Image.registered_extensions()[f".{suffix}"])
        except (OSError, KeyError):  # a decoder that this Pillow was built without
            continue
        found.append({f"picture.{suffix}": out.getvalue()})
    return found


def checkpoint() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    return dict(VisionTransformer(SPEC).state_dict())


def torch_checkpoints() -> list[Files]:
    found = []
    for content in (checkpoint(), {"model": checkpoint(), "epoch": 3, "args": {"lr": 0.1}}):
        for zipped in (True, False):
            out = io.BytesIO()
            torch.save(content, out, _use_new_zipfile_serialization=zipped)
            found.append({"model.pth": out.getvalue()})
    return found


def torch_file(files: Files, rng: random.Random) -> Files:
    """Members of the new format, bytes of the old one."""
    zipped = files["model.pth"].startswith(b"PK")
    return change.zip_members(files, rng) if zipped else change.one_file(files, rng)


def read_weights(folder: Path) -> None:
    path = the_file(folder)
    _, fitted, *_ = fit_checkpoint(read_checkpoint(path).tensors, SPEC, default_grid=SPEC.grid, where=str(path))
    assert all(bool(tensor.isfinite().all()) for tensor in fitted.values()), "NaN or Inf in the weights"


def runs() -> list[Files]:
    golden = ROOT / "tests" / "golden"
    return [
        {"summary.json": (golden / name / "summary.json").read_bytes()} for name in ("run_record", "run_before_record")
    ]


def summary_values(files: Files, rng: random.Random) -> Files:
    """Values of the record of a run."""
    ((name, data),) = files.items()
    return {name: json.dumps(change.json_values(json.loads(data), rng)).encode()}


def read_run(folder: Path) -> None:
    run = vitquant.load_run(folder)
    assert vitquant.RunRecord.from_dict(run.to_dict(), "again") == run
    assert str(run)
    assert str(run.compare(run))


PROGRAM_CHANGES = tuple(of_program(mutate) for mutate in (mutations.damaged, *mutations.SIGNED))

DOORS = {
    "yaml": Door(configurations, (change.yaml_words, change.yaml_words, change.one_file), read_configuration),
    "saved model": Door(saved_models, (change.saved_model, change.saved_model, change.one_file), read_model),
    "program": Door(programs, PROGRAM_CHANGES, read_program),
    "run": Door(runs, (summary_values, summary_values, change.one_file), read_run),
    "npz": Door(archives, (change.zip_members, change.zip_members, change.one_file), read_images),
    "pictures": Door(pictures, (change.png_chunks, change.one_file), read_images),
    "pth": Door(torch_checkpoints, (torch_file, torch_file, change.one_file), read_weights),
    "safetensors": Door(
        lambda: [{"model.safetensors": save_tensors(checkpoint())}],
        (change.safetensors_file, change.safetensors_file, change.one_file),
        read_weights,
    ),
}


def good_ones_are_read(door: Door) -> None:
    """The originals must be read, or the mutations show nothing."""
    for files in door.originals():
        with tempfile.TemporaryDirectory() as folder:
            write(files, Path(folder))
            door.read(Path(folder))


def write(files: Files, folder: Path) -> None:
    for name, data in files.items():
        (folder / name).write_bytes(data)
