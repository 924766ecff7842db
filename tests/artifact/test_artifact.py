"""The saved model: equal after a round trip, whole or not there, and refused when it is not what it says."""

import hashlib
import json
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from support.documents import GOLDEN
from support.tensor_files import load_file
from vitquant.adapters.adapt import FloatModel
from vitquant.architectures.float_vit import VisionTransformer
from vitquant.architectures.model import QuantModel
from vitquant.artifact.manifest import PLAIN_VERSION
from vitquant.artifact.storage import TENSORS, load, save, state
from vitquant.config import ModelConfig
from vitquant.data import Preprocessing
from vitquant.errors import ArtifactError, LifecycleError
from vitquant.layers import Mode, QuantLinear
from vitquant.runs import MANIFEST
from vitquant.workflows.quantize import calibrate, prepare, quantize

PREPROCESSING = Preprocessing((8, 8), (0.5, 0.4, 0.3), (0.2, 0.3, 0.4))
CHANNEL, UNSIGNED = {"calibration_mode": "channel_wise"}, {"bit_type": {"signed": False}}


def pixels(count: int = 6, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, 3, 8, 8), generator=generator, dtype=torch.uint8)


def small(vit: VisionTransformer, config: Any = "vit_int8.yaml") -> QuantModel:
    return quantize(FloatModel("small", vit, PREPROCESSING), config, calibration=pixels(16, seed=1))


@pytest.fixture
def saved(make_vit: Callable[..., VisionTransformer], tmp_path: Path) -> Path:
    save(small(make_vit()), tmp_path / "model")
    return tmp_path / "model"


def edit(folder: Path, **changes: Any) -> None:
    manifest = json.loads((folder / MANIFEST).read_text())
    (folder / MANIFEST).write_text(json.dumps(manifest | changes))


def edit_tensors(folder: Path, change: Callable[[dict[str, Tensor]], object]) -> None:
    """Change the tensors and make the manifest agree, as only a forger would."""
    tensors = load_file(folder / TENSORS)
    change(tensors)
    save_file(tensors, folder / TENSORS)
    digest(folder)


def digest(folder: Path) -> None:
    edit(folder, tensors={"file": TENSORS, "sha256": hashlib.sha256((folder / TENSORS).read_bytes()).hexdigest()})


@pytest.mark.job
@pytest.mark.parametrize(
    ("settings", "config"),
    [
        ({}, "vit_int8.yaml"),
        ({}, "linears_int8.yaml"),
        ({"layer_scale": True, "reg_tokens": 2}, "vit_int8.yaml"),
        ({"layer_scale": True}, {"activation": CHANNEL}),  # float weights, gain and all
        ({"dist_token": True}, {"weight": CHANNEL | UNSIGNED, "activation": CHANNEL | UNSIGNED}),
        ({"pool": "avg"}, {"weight": {"bit_type": {"bits": 16}}, "outputs": {"bit_type": {"bits": 12}}}),
        ({"num_classes": 0, "qkv_bias": False}, {"weight": {"bit_type": {"bits": 3}}, "norm": CHANNEL}),
        ({}, {"defaults": {}}),
        ({}, {"weight": {"bit_type": {"bits": 4}, "weight_groups": 5}}),
        ({}, {"weight": CHANNEL | {"bit_type": {"bits": 2}, "weight_groups": 1000}, "activation": CHANNEL}),
        ({}, {"weight": CHANNEL | {"bit_type": {"bits": 5, "signed": False}}}),
        (
            {},
            {
                "defaults": {"weight": CHANNEL},
                "overrides": {"blocks.1.mlp_*": {"output_quant_enable": False}, "blocks.*.norm1": CHANNEL},
            },
        ),
    ],
)
@torch.no_grad()
def test_a_round_trip_changes_nothing(
    settings: dict[str, Any], config: Any, make_vit: Callable[..., VisionTransformer], tmp_path: Path
) -> None:
    model = small(make_vit(**settings), config)
    save(model, tmp_path / "deep" / "folder")
    loaded = load(tmp_path / "deep" / "folder")
    x = PREPROCESSING.normalize(pixels())
    assert torch.equal(loaded(x), model(x))
    assert (loaded.mode, loaded.spec, loaded.preprocessing) == (Mode.QUANTIZED, model.spec, model.preprocessing)
    assert loaded.config == model.config
    for a, b in zip(model.points(), loaded.points(), strict=True):
        assert (a.name, a.config, a.active, a.shape) == (b.name, b.config, b.active, b.shape)
        assert (a.params is None) == (b.params is None)
        if a.params is not None and b.params is not None:
            assert torch.equal(a.params.scale, b.params.scale)
            assert torch.equal(a.params.zero_point, b.params.zero_point)
            assert (a.params.qmin, a.params.qmax) == (b.params.qmin, b.params.qmax)

    save(loaded, tmp_path / "again")
    for name in (TENSORS, MANIFEST):
        assert (tmp_path / "again" / name).read_bytes() == (tmp_path / "deep" / "folder" / name).read_bytes()


@pytest.mark.job
@torch.no_grad()
def test_the_embedded_model(
    fashion: FloatModel, fashion_images: Tensor, calibration_images: Tensor, tmp_path: Path
) -> None:
    model = quantize(fashion, "vit_int8.yaml", calibration=calibration_images)
    save(model, tmp_path)
    assert torch.equal(load(tmp_path)(fashion_images), model(fashion_images))
    linears = sum(m.float_weight.numel() for m in model.modules() if isinstance(m, QuantLinear))
    assert (tmp_path / TENSORS).stat().st_size < 1.3 * linears, "a byte a weight, and a few scales"


@pytest.mark.parametrize("folder", [GOLDEN, GOLDEN.with_name("tiny_vit_v2")], ids=lambda folder: folder.name)
@torch.no_grad()
def test_the_golden_artifacts(folder: Path) -> None:
    """Written once, by ``tests/golden/make_golden.py``; whatever comes later must read them and agree."""
    expected = load_file(folder / "expected.safetensors")
    model = load(folder)
    outputs = model(model.preprocessing.normalize(expected["images"]))
    assert outputs.std() > 0.3
    shapes = {info.name: info.shape for info in model.points()}
    assert shapes["blocks.0.intSoft"] == (2, 6, 6)
    assert shapes["blocks.0.mlp_fc1.weight"] == (32, 16)
    assert None not in shapes.values()
    torch.testing.assert_close(outputs, expected["outputs"], rtol=0, atol=1e-5)


def test_the_manifest_says_what_it_is(saved: Path) -> None:
    manifest = json.loads((saved / MANIFEST).read_text())
    assert (manifest["format"], manifest["format_version"]) == ("vitquant-model", PLAIN_VERSION)
    assert manifest["spec"]["embed_dim"] == 16
    assert manifest["preprocessing"]["mean"] == [0.5, 0.4, 0.3]
    assert manifest["tensors"]["sha256"] == hashlib.sha256((saved / TENSORS).read_bytes()).hexdigest()
    assert len(ModelConfig.from_text(manifest["config"], "manifest").resolve(["pos_embed"])) == 1
    assert load_file(saved / TENSORS)["blocks.0.attn_qkv.codes"].dtype == torch.int8
    assert sorted(p.name for p in saved.iterdir()) == [MANIFEST, TENSORS]


def test_an_uncalibrated_model_is_not_saved(make_vit: Callable[..., VisionTransformer], tmp_path: Path) -> None:
    model = prepare(FloatModel("small", make_vit(), PREPROCESSING), "vit_int8.yaml")
    with pytest.raises(LifecycleError, match="no statistics for pos_embed"):
        save(model, tmp_path / "model")
    assert not (tmp_path / "model").exists()


def test_a_loaded_model_has_no_float_weights(saved: Path) -> None:
    model = load(saved)
    with pytest.raises(LifecycleError, match="patch_embed was loaded with its integer weights only"):
        calibrate(model, pixels())
    model = load(saved)
    model.set_mode(Mode.FP32)
    with pytest.raises(LifecycleError, match="Fix: quantize the float model again"):
        model(PREPROCESSING.normalize(pixels()))


@pytest.mark.job
@pytest.mark.parametrize(("call", "at"), [*(("fsync", n) for n in (1, 2, 3, 4)), ("mkdir", 2), ("open", 1)])
def test_a_failed_write_leaves_the_old_model(
    call: str, at: int, saved: Path, make_vit: Callable[..., VisionTransformer], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The disk is full at the first file or at the second, or fails when their folder is flushed."""
    before = {path.name: path.read_bytes() for path in saved.iterdir()}
    other = small(make_vit(depth=1))
    real, calls = getattr(os, call), iter(range(1, 10))

    def failing(*args: Any, **settings: Any) -> Any:
        if next(calls) == at:
            raise OSError(28, "No space left on device")
        return real(*args, **settings)

    monkeypatch.setattr(os, call, failing)
    with pytest.raises(OSError, match="No space left"):
        save(other, saved)
    monkeypatch.undo()
    assert {path.name: path.read_bytes() for path in saved.iterdir()} == before, "not even a temporary file"
    load(saved)


def test_a_mixture_of_two_models_is_refused(
    saved: Path, make_vit: Callable[..., VisionTransformer], tmp_path: Path
) -> None:
    save(small(make_vit(), "linears_int8.yaml"), tmp_path / "other")
    (tmp_path / "other" / TENSORS).replace(saved / TENSORS)
    with pytest.raises(ArtifactError, match=r"not the one the manifest was written with\. Got sha256 .*Fix: save"):
        load(saved)


def test_saving_over_a_model_replaces_it_and_nothing_else(
    saved: Path, make_vit: Callable[..., VisionTransformer]
) -> None:
    (saved / "notes.txt").write_text("mine")
    save(small(make_vit(depth=1)), saved)
    assert load(saved).spec.depth == 1
    assert (saved / "notes.txt").read_text() == "mine"


def truncate(folder: Path) -> None:
    (folder / TENSORS).write_bytes((folder / TENSORS).read_bytes()[:-10])


def flip_a_bit(folder: Path) -> None:
    blob = bytearray((folder / TENSORS).read_bytes())
    blob[-1] ^= 1
    (folder / TENSORS).write_bytes(blob)


def truncate_and_sign(folder: Path) -> None:
    truncate(folder)
    digest(folder)


def garbage_and_sign(folder: Path) -> None:
    (folder / TENSORS).write_bytes(b"\xff" * 100)
    digest(folder)


DAMAGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "truncated": (truncate, "not the one the manifest was written with"),
    "a bit": (flip_a_bit, "not the one the manifest was written with"),
    "truncated and signed": (truncate_and_sign, "damaged"),
    "garbage and signed": (garbage_and_sign, "damaged"),
    "no tensors": (lambda f: (f / TENSORS).unlink(), r"cannot read the tensors: No such file"),
    "no manifest": (lambda f: (f / MANIFEST).unlink(), r"manifest\.json: cannot read the manifest: No such file"),
    "half a manifest": (
        lambda f: (f / MANIFEST).write_text((f / MANIFEST).read_text()[:200]),
        "the manifest is not JSON",
    ),
    "binary manifest": (lambda f: (f / MANIFEST).write_bytes(b"\xff\xfe\x00"), "the manifest is not JSON"),
    "a list": (lambda f: (f / MANIFEST).write_text("[1]"), 'not a vitquant model. Expected "format": "vitquant-model"'),
    "foreign": (lambda f: edit(f, format="other"), "not a vitquant model"),
    "newer": (lambda f: edit(f, format_version=3), r"another version of the format\. Got 3, expected version 1 or 2\."),
    "no version": (lambda f: edit(f, format_version=None), "another version of the format"),
    "no digest": (lambda f: edit(f, tensors={}), r"incomplete\. Expected the keys tensors\.sha256"),
    "no spec": (lambda f: edit(f, spec=None), r"incomplete\. Expected the keys spec"),
    "odd spec": (lambda f: edit(f, spec={"depth": 1, "wings": 2}), "damaged: .*wings"),
    "wrong depth": (lambda f: edit_spec(f, depth=3), r"blocks\.2\.\S+: .*Got no tensor, expected float32 \[16\]"),
    "fewer blocks": (lambda f: edit_spec(f, depth=1), r"blocks\.1\.\S+: .*Got .*, expected no tensor\. Fix: save"),
    "no width": (
        lambda f: edit_spec(f, mlp_hidden=-1),
        r"spec\.mlp_hidden: .*Got -1, expected a whole number from 1 to",
    ),
    "no patches": (
        lambda f: edit_spec(f, patch_size=[0, 0]),
        r"spec\.patch_size: damaged: .*Got \[0, 0\], expected two whole",
    ),
    "impossible heads": (lambda f: edit_spec(f, num_heads=5), "damaged: num_heads: the heads do not divide"),
    "other width": (
        lambda f: edit_spec(f, mlp_hidden=48),
        r"mlp_fc1\.codes: .*Got int8 \[24, 16\], expected int8 \[48, 16\]",
    ),
    "odd preprocessing": (lambda f: edit(f, preprocessing={"size": 3}), "damaged: preprocessing: wrong keys"),
    "bad config": (lambda f: edit(f, config="defaults: [1]"), "damaged: "),
    "config of another model": (
        lambda f: edit(f, config="head: {weight: {}}\n"),
        r"patch_embed\.float_weight: .*\(and \d+ more\)\. Got no tensor, expected float32 \[16, 48\]",
    ),
    "a tensor more": (
        lambda f: edit_tensors(f, lambda t: t.update(x=torch.ones(1))),
        r"model\.safetensors x: .*Got float32 \[1\], expected no tensor",
    ),
}


def edit_spec(folder: Path, **changes: Any) -> None:
    edit(folder, spec=json.loads((folder / MANIFEST).read_text())["spec"] | changes)


@pytest.mark.job
@pytest.mark.parametrize("name", list(DAMAGES))
def test_what_is_damaged_or_foreign_is_refused(name: str, saved: Path) -> None:
    damage, message = DAMAGES[name]
    load(saved)
    damage(saved)
    with pytest.raises(ArtifactError, match=message) as caught:
        load(saved)
    assert caught.value.exit_code == 2
    assert caught.value.where is not None


def damage_tensor(tensors: dict[str, Tensor], name: str, damage: str) -> None:
    tensor = tensors.pop(name)
    if damage == "shape":
        tensors[name] = torch.stack([tensor, tensor])
    elif damage == "type":
        tensors[name] = tensor.to(torch.uint8 if tensor.dtype is torch.int8 else torch.float64)


@pytest.mark.job
@pytest.mark.parametrize("damage", ["missing", "shape", "type"])
def test_every_tensor_must_be_what_the_model_wants(damage: str, tmp_path: Path) -> None:
    shutil.copytree(GOLDEN, tmp_path / "model")
    original = load_file(GOLDEN / TENSORS)
    assert {name.rpartition(".")[2] for name in original} == {
        *("token_table", "codes", "bias", "input_scale", "scale", "zero_point", "gamma", "beta"),
    }
    for name, tensor in original.items():
        tensors = dict(original)
        damage_tensor(tensors, name, damage)
        save_file(tensors, tmp_path / "model" / TENSORS)
        digest(tmp_path / "model")
        with pytest.raises(ArtifactError) as caught:
            load(tmp_path / "model")
        assert str(caught.value.where).endswith(f"{TENSORS} {name}")
        kind = str(tensor.dtype).removeprefix("torch.")
        assert caught.value.expected == f"{kind} {list(tensor.shape)}"
        assert caught.value.got != caught.value.expected


GROUPS = {"weight": {"bit_type": {"bits": 3}, "weight_groups": 5}}


@torch.no_grad()
def test_packed_weights_are_small_and_older_files_are_read(
    make_vit: Callable[..., VisionTransformer], tmp_path: Path
) -> None:
    """A model with narrow weights was stored without packing in version 1."""
    model = small(make_vit(), GROUPS)
    save(model, tmp_path)
    manifest = json.loads((tmp_path / MANIFEST).read_text())
    assert manifest["format_version"] == 2
    packed = load_file(tmp_path / TENSORS)
    name = "blocks.0.mlp_fc1"
    assert packed[f"{name}.codes"].shape == (24, 6)  # 16 inputs of 3 bits
    assert packed[f"{name}.multipliers"].shape == (24, 2)  # 4 groups of 4 bits
    plain = {name: tensor.contiguous() for name, tensor in state(model)}
    assert plain[f"{name}.codes"].shape == (24, 16)
    save_file(plain, tmp_path / TENSORS)
    digest(tmp_path)
    edit(tmp_path, format_version=1)
    x = PREPROCESSING.normalize(pixels())
    assert torch.equal(load(tmp_path)(x), model(x))
    save(load(tmp_path), tmp_path / "again")
    assert load_file(tmp_path / "again" / TENSORS).keys() == packed.keys()


SPOILED_ROWS: dict[str, tuple[Callable[[dict[str, Tensor]], object], str]] = {
    "no codes": (lambda t: t.pop("head.codes"), r"head\.codes: .*Got no tensor, expected int8 \[5, 16\]"),
    "no multipliers": (lambda t: t.pop("head.multipliers"), r"damaged: head\.multipliers: the tensor is missing"),
    "another type": (
        lambda t: t.update({"head.codes": t["head.codes"].to(torch.int8)}),
        r"head\.codes: packed weights are damaged: int8 \[5, 6\] instead of uint8 \[n, 6\]",
    ),
    "a column less": (
        lambda t: t.update({"head.codes": t["head.codes"][:, :5].contiguous()}),
        r"head\.codes: packed weights are damaged: uint8 \[5, 5\] instead of uint8 \[n, 6\]",
    ),
    "a row less": (
        lambda t: t.update({"head.multipliers": t["head.multipliers"][:4].contiguous()}),
        r"head\.codes: packed weights are damaged: multipliers of 4 rows instead of 5",
    ),
    "no rows": (
        lambda t: t.update({"head.codes": t["head.codes"][:0], "head.multipliers": t["head.multipliers"][:0]}),
        r"head\.codes: .*Got int8 \[0, 16\], expected int8 \[5, 16\]",
    ),
    "a number": (
        lambda t: t.update({"head.codes": torch.tensor(3, dtype=torch.uint8)}),
        r"head\.codes: packed weights are damaged: uint8 \[\]",
    ),
    "a group more": (
        lambda t: t.update({"head.multipliers": torch.ones(5, 3, dtype=torch.uint8)}),
        r"head\.codes: packed weights are damaged: uint8 \[5, 3\] instead of uint8 \[n, 2\]",
    ),
    "the most negative code": (
        lambda t: t.update({"head.codes": torch.full((5, 6), 0b100100, dtype=torch.uint8)}),
        r"head\.codes: .*Got -\d+ to \d+, expected whole numbers from -48 to 48",
    ),
}


@pytest.mark.job
@pytest.mark.parametrize("name", SPOILED_ROWS)
def test_spoiled_rows_are_refused(name: str, make_vit: Callable[..., VisionTransformer], tmp_path: Path) -> None:
    save(small(make_vit(), GROUPS), tmp_path)
    load(tmp_path)
    change, message = SPOILED_ROWS[name]
    edit_tensors(tmp_path, change)
    with pytest.raises(ArtifactError, match=message):
        load(tmp_path)


def test_float_weights_are_checked_as_well(make_vit: Callable[..., VisionTransformer], tmp_path: Path) -> None:
    save(small(make_vit(layer_scale=True), {"activation": CHANNEL}), tmp_path)
    original = load_file(tmp_path / TENSORS)
    for name in ("blocks.0.attn_proj.float_weight", "blocks.0.attn_proj.float_bias", "blocks.0.attn_proj.gain"):
        for damage in ("missing", "shape", "type"):
            tensors = dict(original)
            damage_tensor(tensors, name, damage)
            save_file(tensors, tmp_path / TENSORS)
            digest(tmp_path)
            with pytest.raises(ArtifactError, match=name):
                load(tmp_path)


@torch.no_grad()
def test_floats_are_stored_in_float32(make_vit: Callable[..., VisionTransformer], tmp_path: Path) -> None:
    model = small(make_vit())
    save(model, tmp_path / "float")
    save(model.double(), tmp_path / "double")
    assert (tmp_path / "double" / TENSORS).read_bytes() == (tmp_path / "float" / TENSORS).read_bytes()


def test_a_folder_that_is_not_there() -> None:
    with pytest.raises(ArtifactError, match="cannot read the manifest: No such file"):
        load("no/such/folder")


class Bomb:
    """Unpickled, it creates a file."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)

    def __reduce__(self) -> tuple[Any, ...]:
        return open, (self.path, "w")


def test_nothing_is_unpickled(saved: Path, tmp_path: Path) -> None:
    marker = tmp_path / "executed"
    pickled = pickle.dumps(Bomb(marker))
    torch.save({"weights": Bomb(marker)}, tmp_path / "model.pth")
    manifest = (saved / MANIFEST).read_bytes()
    for blob in (pickled, (tmp_path / "model.pth").read_bytes()):
        (saved / MANIFEST).write_bytes(manifest)
        (saved / TENSORS).write_bytes(blob)
        digest(saved)
        with pytest.raises(ArtifactError, match="damaged"):
            load(saved)
        (saved / MANIFEST).write_bytes(blob)
        with pytest.raises(ArtifactError, match="not JSON"):
            load(saved)
    assert not marker.exists()


def test_the_manifest_cannot_point_elsewhere(saved: Path, tmp_path: Path) -> None:
    manifest = json.loads((saved / MANIFEST).read_text())
    (saved / TENSORS).replace(tmp_path / "elsewhere.safetensors")
    for target in ("../elsewhere.safetensors", str(tmp_path / "elsewhere.safetensors")):
        edit(saved, tensors=manifest["tensors"] | {"file": target})
        with pytest.raises(ArtifactError, match="cannot read the tensors"):
            load(saved)
