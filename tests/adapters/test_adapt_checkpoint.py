"""Names with local checkpoints: reading, fitting, resampling, refusing; compared with timm where it is installed."""

import math
import sys
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import Tensor
from torch.nn.functional import interpolate

from vitquant.adapters.adapt import adapt
from vitquant.adapters.checkpoint import build, fit_checkpoint, read_checkpoint
from vitquant.adapters.names import lookup
from vitquant.adapters.positions import resample_pos_embed
from vitquant.architectures.float_vit import VisionTransformer, ViTSpec
from vitquant.data import Preprocessing
from vitquant.data.preprocessing import HALF
from vitquant.errors import ModelError, NumericsError

SMALL = ViTSpec(
    img_size=(16, 16), patch_size=(4, 4), embed_dim=8, depth=2, num_heads=2, mlp_hidden=12, num_classes=5, reg_tokens=1
)


def random_state(spec: ViTSpec) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    with torch.device("meta"):
        shapes = {key: value.shape for key, value in VisionTransformer(spec).state_dict().items()}
    return {key: torch.randn(shape, generator=generator) * 0.2 for key, shape in shapes.items()}


def smooth_table(grid: tuple[int, int], dim: int) -> Tensor:
    """Positions ``[1, rows * cols, D]`` as training leaves them: neighbours are alike, on this grid."""
    coarse = torch.randn(1, dim, 4, 4, generator=torch.Generator().manual_seed(3))
    return interpolate(coarse, size=grid, mode="bicubic").flatten(2).transpose(1, 2) * 0.2


def fit(
    state: dict[str, Tensor], spec: ViTSpec = SMALL, **changes: Any
) -> tuple[ViTSpec, dict[str, Tensor], tuple[str, ...]]:
    return fit_checkpoint(state, spec, **({"default_grid": spec.grid, "where": "a.safetensors"} | changes))


@pytest.mark.timm
@pytest.mark.parametrize(
    ("name", "changes", "img_size"),
    [
        ("vit_tiny_patch16_224", {}, None),
        ("vit_tiny_patch16_224", {"num_classes": 10}, 64),
        ("vit_tiny_patch16_224", {"num_classes": 0}, (32, 80)),
        ("vit_tiny_patch16_224", {}, (112, 448)),  # as many patches as 224x224 has, on another grid
        ("vit_tiny_patch16_224", {"pool": "avg"}, 64),
        ("vit_tiny_patch16_224.augreg_in21k", {"num_classes": 21843}, 48),
        ("deit_tiny_distilled_patch16_224", {}, 64),
        ("deit3_small_patch16_224", {"num_classes": 3}, 64),
        ("vit_small_patch14_dinov2", {}, 56),
        ("vit_small_patch14_dinov2", {"img_size": (224, 224)}, 42),  # a checkpoint that was resampled before
        ("vit_small_patch14_reg4_dinov2", {}, (28, 56)),
    ],
)
def test_parity_with_timm(
    tmp_path: Path, name: str, changes: dict[str, Any], img_size: int | tuple[int, int] | None
) -> None:
    spec = ViTSpec(**(vars(lookup(name).spec) | changes))
    state = random_state(spec)
    if img_size == (112, 448):
        state["pos_embed"][:, 1:] = smooth_table((14, 14), spec.embed_dim)
    save_file(state, tmp_path / "w.safetensors")
    model = adapt(name, weights=tmp_path / "w.safetensors", img_size=img_size)
    assert model.parity_db is not None
    assert model.parity_db > 100
    assert model.name == name
    assert model.vit.spec.num_classes == spec.num_classes
    assert model.preprocessing == lookup(name, img_size=img_size).preprocessing
    if img_size is not None:
        assert model.vit.spec.img_size == ((img_size, img_size) if isinstance(img_size, int) else img_size)
        assert any("resampled" in note for note in model.notes)
    assert any("no head" in note for note in model.notes) == (changes.get("num_classes") == 0)


@pytest.mark.timm
def test_original_dinov2_with_registers(tmp_path: Path) -> None:
    """The release adds positions to the class token, none to the registers, and keeps a mask token."""
    spec = lookup("vit_small_patch14_reg4_dinov2").spec
    state = random_state(spec)
    original = {key: value for key, value in state.items() if key != "reg_token"}
    cls_position = torch.randn(1, 1, spec.embed_dim)
    original["cls_token"] = state["cls_token"] - cls_position
    original["pos_embed"] = torch.cat([cls_position, state["pos_embed"]], dim=1)
    original |= {"register_tokens": state["reg_token"], "mask_token": torch.zeros(1, spec.embed_dim)}
    torch.save(original, tmp_path / "w.pth")
    model = adapt("vit_small_patch14_reg4_dinov2", weights=tmp_path / "w.pth", img_size=28)
    assert model.parity_db is not None
    assert model.parity_db > 100
    assert any("mask_token" in note for note in model.notes)
    save_file(state, tmp_path / "t.safetensors")
    same = adapt("vit_small_patch14_reg4_dinov2", weights=str(tmp_path / "t.safetensors"), img_size=28)
    for (key, ours), theirs in zip(model.vit.named_parameters(), same.vit.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, msg=key)


def test_without_timm_a_note_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    state = random_state(lookup("vit_tiny_patch16_224", img_size=32).spec)
    save_file(state, tmp_path / "w.safetensors")
    model = adapt("vit_tiny_patch16_224", weights=tmp_path / "w.safetensors", img_size=32)
    assert model.parity_db is None
    assert model.notes[-1] == (
        "timm is not installed, so the model was not compared with timm's. "
        "Install it with: pip install 'vitquant[timm]'."
    )
    assert torch.equal(model.vit.state_dict()["norm.weight"], state["norm.weight"])
    chosen = Preprocessing((32, 32), HALF, (0.2, 0.2, 0.2))
    assert (
        adapt(
            "vit_tiny_patch16_224", weights=tmp_path / "w.safetensors", img_size=32, preprocessing=chosen
        ).preprocessing
        == chosen
    )


def test_a_timm_that_cannot_build_the_model_is_noted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old = ModuleType("timm")
    old.__spec__ = ModuleSpec("timm", None)
    old.__version__ = "0.1"  # type: ignore[attr-defined]
    old.create_model = lambda name, pretrained: None  # type: ignore[attr-defined]  # knows no img_size yet
    monkeypatch.setitem(sys.modules, "timm", old)
    save_file(random_state(lookup("vit_tiny_patch16_224", img_size=32).spec), tmp_path / "w.safetensors")
    model = adapt("vit_tiny_patch16_224", weights=tmp_path / "w.safetensors", img_size=32)
    assert model.parity_db is None
    assert model.notes[-1].startswith("timm 0.1 could not build or load the model (TypeError: ")
    assert model.notes[-1].endswith("not compared with timm's. Another version may work: pip install --upgrade timm.")


def test_files_of_both_kinds(tmp_path: Path) -> None:
    state = random_state(SMALL)
    save_file(state, tmp_path / "a.safetensors")
    torch.save(state, tmp_path / "b.pth")
    torch.save({"model": state, "epoch": 3}, tmp_path / "c.pt")
    torch.save({"state_dict": {f"module.{key}": value for key, value in state.items()}}, tmp_path / "d.bin")
    for path in sorted(tmp_path.iterdir()):
        read = read_checkpoint(path).tensors
        assert read.keys() == state.keys(), path.name
        assert all(torch.equal(read[key], state[key]) for key in state), path.name


class Evil:
    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (Path("executed"),)


def test_nothing_is_executed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"a": Evil()}, tmp_path / "evil.pth")
    with pytest.raises(ModelError, match=r"evil\.pth: .*nothing in it was executed") as caught:
        read_checkpoint(tmp_path / "evil.pth")
    assert caught.value.exit_code == 2
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("a.safetensors", b"", "cannot be read"),
        ("a.safetensors", b"\xff" * 64, "cannot be read"),
        ("a.pth", b"", "cannot be read|damaged"),
        ("a.pth", b"not a checkpoint", "damaged"),
        ("a.ckpt", b"", "the file is empty"),
        ("a.h5", b"", r"Got \.h5, expected \.safetensors"),
        ("a.npz", b"", r"Got \.npz"),
        ("noname", b"", "Got no suffix"),
    ],
)
def test_what_is_no_checkpoint(tmp_path: Path, name: str, data: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(data)
    with pytest.raises(ModelError, match=message) as caught:
        read_checkpoint(tmp_path / name)
    assert name in str(caught.value)


def test_truncated_and_missing_and_foreign(tmp_path: Path) -> None:
    save_file(random_state(SMALL), tmp_path / "a.safetensors")
    (tmp_path / "a.safetensors").write_bytes((tmp_path / "a.safetensors").read_bytes()[:-100])
    with pytest.raises(ModelError, match=r"a\.safetensors: the checkpoint cannot be read"):
        read_checkpoint(tmp_path / "a.safetensors")
    with pytest.raises(ModelError, match="no such checkpoint"):
        read_checkpoint(tmp_path / "none.safetensors")
    torch.save({"epoch": 1, "lr": 0.1}, tmp_path / "b.pth")
    with pytest.raises(ModelError, match=r"no state_dict .* Got \['epoch', 'lr'\]"):
        read_checkpoint(tmp_path / "b.pth")


def test_a_checkpoint_that_fits() -> None:
    state = random_state(SMALL)
    spec, fitted, notes = fit(state)
    assert (spec, notes) == (SMALL, ())
    model = build(spec, fitted)
    assert not model.training
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
    halves = {key: value.half() for key, value in state.items()}
    assert all(value.dtype == torch.float32 for value in fit(halves)[1].values())


def test_names_of_deit3s_release() -> None:
    spec = ViTSpec(**(vars(SMALL) | {"layer_scale": True}))
    state = random_state(spec)
    released = {key.replace("ls1.gamma", "gamma_1").replace("ls2.gamma", "gamma_2"): v for key, v in state.items()}
    assert "blocks.1.gamma_2" in released
    _, fitted, _ = fit(released, spec)
    assert all(torch.equal(fitted[key], state[key]) for key in state)


def test_a_mismatch_is_listed() -> None:
    state = random_state(SMALL)
    del state["norm.weight"]
    for key in [key for key in state if key.startswith("blocks.1.")]:
        state[key.replace("blocks.1.", "blocks.7.")] = state.pop(key)
    state["patch_embed.proj.weight"] = torch.zeros(8, 3, 2, 2)
    with pytest.raises(ModelError) as caught:
        fit(state)
    text = str(caught.value)
    assert text.startswith(
        "a.safetensors: the checkpoint does not match the model. Got 13 missing: blocks.1.norm1.weight, "
    )
    assert "12 unexpected: blocks.7.norm1.weight, " in text
    assert "1 with another shape: patch_embed.proj.weight [8, 3, 2, 2] instead of [8, 3, 4, 4]" in text
    listed = text.partition("13 missing: ")[2].partition(";")[0].split(", ")
    assert (len(listed), listed[-1]) == (6, "...")
    assert caught.value.exit_code == 2


def test_positions_that_fit_no_grid() -> None:
    state = random_state(SMALL)
    state["pos_embed"] = torch.zeros(1, 2 + 17, 8)
    with pytest.raises(ModelError, match=r"pos_embed \[1, 19, 8\] instead of \[1, 18, 8\]"):
        fit(state)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_checkpoint_with_holes(value: float) -> None:
    state = random_state(SMALL)
    state["blocks.1.mlp.fc1.bias"][3] = value
    with pytest.raises(NumericsError, match=r"a\.safetensors blocks\.1\.mlp\.fc1\.bias: NaN or Inf"):
        fit(state)


@pytest.mark.timm
@given(
    st.tuples(st.integers(1, 9), st.integers(1, 9)),
    st.tuples(st.integers(1, 9), st.integers(1, 9)),
    st.integers(0, 3),
    st.integers(0, 1000),
)
def test_resampling_is_that_of_timm(old: tuple[int, int], new: tuple[int, int], prefix: int, seed: int) -> None:
    from timm.layers import resample_abs_pos_embed

    generator = torch.Generator().manual_seed(seed)
    table = torch.randn(1, prefix + old[0] * old[1], 6, generator=generator)
    expected = resample_abs_pos_embed(table, list(new), list(old), num_prefix_tokens=prefix)
    assert torch.equal(resample_pos_embed(table, old, new, prefix), expected)


def test_resampling_keeps_planes_and_prefix() -> None:
    rows, columns = torch.meshgrid(torch.arange(8.0), torch.arange(6.0), indexing="ij")
    plane = torch.stack([rows, columns], dim=-1).reshape(1, 48, 2)
    prefix = torch.full((1, 1, 2), 99.0)
    resampled = resample_pos_embed(torch.cat([prefix, plane], dim=1), (8, 6), (16, 12), 1)
    assert torch.equal(resampled[:, :1], prefix)
    grid = resampled[0, 1:].reshape(16, 12, 2)[4:-4, 4:-4]  # away from the borders a plane stays a plane
    expected_rows = (torch.arange(16.0) + 0.5) / 2 - 0.5
    torch.testing.assert_close(grid[:, 0, 0], expected_rows[4:-4])
    assert resampled.shape == (1, 1 + 16 * 12, 2)
