"""A saved model may come from anybody: nothing in it costs more than its own size, and every refusal is one line."""

import hashlib
import json
import os
import resource
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from support.tensor_files import load_file
from vitquant.adapters.adapt import FloatModel
from vitquant.architectures.float_vit import VisionTransformer
from vitquant.artifact.storage import TENSORS, load, save
from vitquant.data import Preprocessing
from vitquant.errors import ArtifactError
from vitquant.runs import MANIFEST
from vitquant.workflows.quantize import quantize

PREPROCESSING = Preprocessing((8, 8), (0.5, 0.4, 0.3), (0.2, 0.3, 0.4))
UNSIGNED = {"bit_type": {"signed": False}}
CONFIG = {"weight": UNSIGNED, "outputs": UNSIGNED, "norm": {"calibration_mode": "channel_wise"}}

NONSENSE: list[Any] = [None, True, -1, 0, 1.5, 10**9, 10**18, 1e300, "", "x" * 1000]
NONSENSE += [[], {}, [1], [1, 1], [10**9] * 2, [[1], 2]]


HARMLESS = [("layer_scale", True)]
"""Whether there was a LayerScale is not to be seen once it is folded."""


@pytest.fixture(scope="module")
def written(make_vit: Callable[..., VisionTransformer], tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    folder = tmp_path_factory.mktemp("model")
    pixels = torch.randint(0, 256, (4, 3, 8, 8), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    save(quantize(FloatModel("small", make_vit(depth=1), PREPROCESSING), CONFIG, calibration=pixels), folder)
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture
def folder(written: dict[str, bytes], tmp_path: Path) -> Path:
    for name, data in written.items():
        (tmp_path / name).write_bytes(data)
    load(tmp_path)
    return tmp_path


def refused(folder: Path, seconds: float = 10) -> str:
    start = time.process_time()
    with pytest.raises(ArtifactError) as caught:
        load(folder)
    assert time.process_time() - start < seconds
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 1000
    return str(caught.value)


def edit(folder: Path, section: str, **changes: Any) -> None:
    manifest = json.loads((folder / MANIFEST).read_text())
    manifest[section] |= changes
    (folder / MANIFEST).write_text(json.dumps(manifest))


def sign(folder: Path, tensors: bytes) -> None:
    (folder / TENSORS).write_bytes(tensors)
    edit(folder, "tensors", sha256=hashlib.sha256(tensors).hexdigest(), bytes=len(tensors))


def test_a_billion_blocks_are_refused_at_once(folder: Path) -> None:
    edit(folder, "spec", depth=1_000_000_000)
    assert "spec.depth: damaged: value not allowed. Got 1000000000, expected a whole number from 1 to 1024" in refused(
        folder, 1
    )


@pytest.mark.parametrize(
    "changes",
    [
        {"depth": 1024},
        {"embed_dim": 2**15, "num_heads": 1},
        {"mlp_hidden": 2**18},
        {"num_classes": 2**20},
        {"img_size": [2**14, 2**14]},
        {"img_size": [2**14, 2**14], "patch_size": [2**10, 2**10]},
    ],
    ids=str,
)
def test_what_the_tensor_file_cannot_hold_is_not_made(changes: dict[str, Any], folder: Path) -> None:
    edit(folder, "spec", **changes)
    assert "the architecture needs more than the tensor file holds" in refused(folder, 2)


@pytest.mark.parametrize("section", ["spec", "preprocessing", "tensors"])
def test_nonsense_in_any_field_is_refused_or_means_the_same(section: str, folder: Path) -> None:
    text = (folder / MANIFEST).read_text()
    fields = json.loads(text)[section]
    for name in fields:
        for value in NONSENSE:
            if value == fields[name] or (section, name) == ("tensors", "file"):
                continue
            (folder / MANIFEST).write_text(text)
            edit(folder, section, **{name: value})
            if (name, value) in HARMLESS:
                load(folder)
            else:
                refused(folder)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("[" * 200_000, "not JSON"),
        ("[" * 200_000 + "]" * 200_000, "not JSON"),
        ('{"format": "a", "format": "b"}', "an object has a duplicate key"),
        ('{"format": NaN}', "NaN is not allowed"),
        ('{"format": 1e999}', "a number is too large"),
        ('{"format": ' + "9" * 5000 + "}", "too many digits"),
        ('{"format": "\\ud800"}', "not JSON"),
        ("[[[[[[[[[[1]]]]]]]]]]", "nested too deeply"),
        (" " * (2**22 + 1), "the file is too large"),
    ],
    ids=lambda text: text[:12],
)
def test_hostile_manifests(text: str, problem: str, folder: Path) -> None:
    (folder / MANIFEST).write_text(text)
    assert problem in refused(folder)


def test_a_yaml_bomb_in_the_configuration(folder: Path) -> None:
    manifest = json.loads((folder / MANIFEST).read_text())
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 9)]
    (folder / MANIFEST).write_text(json.dumps(manifest | {"config": "\n".join(lines)}))
    assert "too many values after alias expansion" in refused(folder)


@pytest.mark.parametrize("name", [MANIFEST, TENSORS])
@pytest.mark.parametrize("kind", ["folder", "pipe", "device", "loop", "sparse"])
def test_what_is_no_file_is_not_waited_for(kind: str, name: str, folder: Path) -> None:
    path = folder / name
    path.unlink()
    if kind == "folder":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind == "device":
        path.symlink_to("/dev/zero")
    elif kind == "loop":
        path.symlink_to(path)
    else:
        with path.open("wb") as file:
            file.truncate(2**40)
    expected = {"loop": "cannot read", "sparse": "the file is too large"}.get(kind, "not a file")
    assert expected in refused(folder, 1)


def test_a_link_to_a_file_is_a_file(folder: Path) -> None:
    (folder / TENSORS).rename(folder / "blob")
    (folder / TENSORS).symlink_to("blob")
    load(folder)


def headers() -> Iterator[tuple[str, bytes, str]]:
    def file(header: bytes, length: int | None = None) -> bytes:
        return (len(header) if length is None else length).to_bytes(8, "little") + header

    yield "nothing", b"", "too long"
    yield "endless", file(b"{}", 2**63), "too long"
    yield "twice", file(b'{"a": 1, "a": 2}'), "an object has a duplicate key"
    yield "brackets", file(b"[" * 100_000), "not JSON"
    yield "a list", file(b"[1]"), "names no tensors"
    yield "no tensors", file(b"{}"), "needs more than"
    huge = {f"t{i}": {"dtype": "F32", "shape": [2**40, 2**20], "data_offsets": [0, 2**62]} for i in range(9)}
    yield "huge", file(json.dumps(huge).encode()) + bytes(10**6), "damaged"


@pytest.mark.parametrize(("blob", "problem"), [h[1:] for h in headers()], ids=[h[0] for h in headers()])
def test_hostile_tensor_files(blob: bytes, problem: str, folder: Path) -> None:
    sign(folder, blob)
    assert problem in refused(folder)


def spoilt(tensor: Tensor, value: float) -> Tensor:
    tensor = tensor.clone()
    tensor.view(-1)[-1] = value
    return tensor


SPOILERS: dict[str, list[float]] = {
    "scale": [float("nan"), float("inf"), 0.0, -1.0, 1e-40],
    "input_scale": [float("nan"), float("inf"), 0.0, -1.0, 1e-40],
    "zero_point": [float("nan"), -1.0, 256.0, 0.5],
    "gamma": [float("nan"), -float("inf")],
    "beta": [float("nan"), float("inf")],
    "bias": [float("nan"), float("inf")],
    "token_table": [float("nan"), float("inf")],
}


@pytest.mark.job
def test_numbers_that_no_calibration_gives_are_refused_by_name(folder: Path) -> None:
    original = load_file(folder / TENSORS)
    assert {name.rpartition(".")[2] for name in original} == {*SPOILERS, "codes"}
    done = set()
    for name, tensor in original.items():
        kind = name.rpartition(".")[2]
        for value in SPOILERS.get(kind, []):
            if (kind, value) in done:  # two of each kind would be as many minutes
                continue
            done.add((kind, value))
            save_file(original | {name: spoilt(tensor, value)}, folder / TENSORS)
            sign(folder, (folder / TENSORS).read_bytes())
            message = refused(folder)
            assert f"{TENSORS} {name}: the tensor holds what no calibrated model has." in message


def test_weights_beyond_their_bits_are_refused(make_vit: Callable[..., VisionTransformer], tmp_path: Path) -> None:
    pixels = torch.randint(0, 256, (4, 3, 8, 8), dtype=torch.uint8)
    config = {"weight": {"bit_type": {"bits": 4}}, "overrides": {"head.weight": {"bit_type": {"bits": 8}}}}
    save(quantize(FloatModel("small", make_vit(depth=1), PREPROCESSING), config, calibration=pixels), tmp_path)
    original = load_file(tmp_path / TENSORS)
    for name, value in (("blocks.0.mlp_fc1.codes", 8), ("blocks.0.mlp_fc1.codes", -8), ("head.codes", -128)):
        save_file(original | {name: spoilt(original[name], value)}, tmp_path / TENSORS)
        sign(tmp_path, (tmp_path / TENSORS).read_bytes())
        top = 7 if "mlp" in name else 127
        assert f"{name}: the tensor holds" in refused(tmp_path)
        assert f"expected whole numbers from -{top} to {top}" in refused(tmp_path)


def test_float_weights_must_be_finite(make_vit: Callable[..., VisionTransformer], tmp_path: Path) -> None:
    pixels = torch.randint(0, 256, (4, 3, 8, 8), dtype=torch.uint8)
    model = FloatModel("small", make_vit(depth=1, layer_scale=True), PREPROCESSING)
    save(quantize(model, {"activation": {}}, calibration=pixels), tmp_path)
    original = load_file(tmp_path / TENSORS)
    for key in ("float_weight", "float_bias", "gain"):
        name = f"blocks.0.attn_proj.{key}"
        save_file(original | {name: spoilt(original[name], float("nan"))}, tmp_path / TENSORS)
        sign(tmp_path, (tmp_path / TENSORS).read_bytes())
        assert f"{name}: the tensor holds what no calibrated model has. Got 1 NaN and 0 Inf" in refused(tmp_path)


def test_loading_takes_no_more_memory_than_the_file(folder: Path) -> None:
    """Patches of a million pixels: their grid alone would be as large as all tensors together, many times over."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    edit(folder, "spec", img_size=[2**14, 2**14], patch_size=[2**10, 2**10])
    refused(folder)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 20_000, "kB"
