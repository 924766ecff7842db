"""Which model of a checkpoint is taken, and under which prefix it is found, in every file format."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from support.checkpoint_states import equal, prefixed, random_state
from vitquant.adapters.checkpoint import read_checkpoint
from vitquant.errors import ModelError

PLAIN, OTHER = random_state(seed=1), random_state(seed=2)


def saved(content: Any, tmp_path: Path) -> Path:
    torch.save(content, tmp_path / "a.pth")
    return tmp_path / "a.pth"


@pytest.mark.parametrize(
    ("preferred", "other"),
    [
        ("state_dict_ema", "state_dict"),
        ("model_ema", "model"),
        ("state_dict_ema", "model_ema"),
        ("ema", "model"),
        ("ema_model", "online_model"),
        ("model_swa", "model"),
        ("teacher", "student"),
        ("state_dict", "model"),
        ("model", "discriminator"),
        ("net", "decoder"),
        ("encoder", "target_encoder"),  # I-JEPA, as timm reads it
        ("base_encoder", "momentum_encoder"),  # MoCo v3
        ("weights", "student"),
    ],
)
@pytest.mark.parametrize("nested", [True, False])
def test_the_preferred_entry(preferred: str, other: str, nested: bool, tmp_path: Path) -> None:
    if nested:
        path = saved({other: OTHER, "epoch": 1, preferred: PLAIN}, tmp_path)
    else:
        path = tmp_path / "a.safetensors"
        save_file(prefixed(OTHER, f"{other}.") | prefixed(PLAIN, f"{preferred}."), path)
    found = read_checkpoint(path)
    assert equal(found.tensors, PLAIN)
    assert found.notes == (
        f"using the entry {preferred} of the checkpoint; other entries: {other} "
        "(choose with weights_entry or --weights-entry)",
    )
    chosen = read_checkpoint(path, other)
    assert equal(chosen.tensors, OTHER)
    assert f"entry {other} of the checkpoint; other entries: {preferred}" in chosen.notes[0]


def test_an_entry_by_any_part_of_its_path(tmp_path: Path) -> None:
    state = prefixed(PLAIN, "model.teacher.backbone.") | prefixed(OTHER, "model.student.backbone.")
    path = saved({"state_dict": state}, tmp_path)
    for entry in ("student", "model.student", "state_dict.model.student.backbone"):
        assert equal(read_checkpoint(path, entry).tensors, OTHER), entry
    for several in (None, "teacher", "state_dict", "backbone"):  # where several match, the preference decides
        assert equal(read_checkpoint(path, several).tensors, PLAIN), several
    for entry in ("stud", "teacher.student", "", "optimizer"):
        with pytest.raises(ModelError) as caught:
            read_checkpoint(path, entry)
        assert f"the checkpoint has no such entry. Got {entry!r}, expected one of " in str(caught.value)
        assert "state_dict.model.teacher.backbone, state_dict.model.student.backbone" in str(caught.value)
    with pytest.raises(ModelError, match="expected no entry, since the weights are at the top level"):
        read_checkpoint(saved(PLAIN, tmp_path), "ema")


def test_models_of_equal_standing_are_not_chosen_between(tmp_path: Path) -> None:
    path = saved({"left": PLAIN, "right": OTHER}, tmp_path)
    with pytest.raises(ModelError, match=r"contains 2 models\. Got left, right\. Fix: choose one with weights_entry"):
        read_checkpoint(path)
    assert equal(read_checkpoint(path, "right").tensors, OTHER)


def test_averages_beside_the_top_level(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    save_file(PLAIN | prefixed(OTHER, "ema."), path)
    assert equal(read_checkpoint(path).tensors, OTHER)
    save_file(PLAIN | prefixed(OTHER, "decoder."), path)
    found = read_checkpoint(path)
    assert equal(found.tensors, PLAIN)
    assert "entry (top level) of the checkpoint; other entries: decoder" in found.notes[0]


@pytest.mark.parametrize(
    "prefix",
    [
        *("module.", "model.", "backbone.", "_orig_mod.", "encoder.", "net.", "anything.at.all."),
        *("module._orig_mod.", "_orig_mod.module.model.backbone.", "visual.trunk.", "1."),
    ],
)
def test_a_common_prefix_comes_off_in_every_format(prefix: str, tmp_path: Path) -> None:
    save_file(prefixed(PLAIN, prefix), tmp_path / "a.safetensors")
    for path in (tmp_path / "a.safetensors", saved({"state_dict": prefixed(PLAIN, prefix)}, tmp_path)):
        found = read_checkpoint(path)
        assert equal(found.tensors, PLAIN)
        assert found.notes == ()


def test_wrappers_inside_names(tmp_path: Path) -> None:
    inside = {
        key.replace("blocks.1.", "blocks.1._orig_mod.").replace(".mlp.", "._checkpoint_wrapped_module.mlp."): value
        for key, value in PLAIN.items()
    }
    save_file(prefixed(inside, "_fsdp_wrapped_module."), tmp_path / "a.safetensors")
    assert equal(read_checkpoint(tmp_path / "a.safetensors").tensors, PLAIN)


def test_what_is_left_out_is_noted(tmp_path: Path) -> None:
    state = prefixed(PLAIN, "backbone.") | {"head.mlp.0.weight": torch.zeros(2), "head.mlp.0.bias": torch.zeros(2)}
    moments = {0: {"exp_avg": torch.zeros(3), "step": 3}, 1: {"exp_avg": torch.zeros(3)}}
    path = saved({"model": state, "optimizer": {"state": moments}, "loss": {"center": torch.zeros(1)}}, tmp_path)
    found = read_checkpoint(path)
    assert equal(found.tensors, PLAIN)
    assert found.notes == (
        "not used from the checkpoint: model.head (2 tensors), optimizer (2 tensors), loss (1 tensor)",
    )


def test_keys_that_are_no_text(tmp_path: Path) -> None:
    found = read_checkpoint(saved({0: {b"module": PLAIN}, None: 1, (1, 2): torch.zeros(1)}, tmp_path))
    assert equal(found.tensors, PLAIN)
    blocks: dict[Any, Tensor] = {**PLAIN, 7: torch.zeros(1)}
    assert read_checkpoint(saved(blocks, tmp_path)).tensors.keys() == PLAIN.keys() | {"7"}
    with pytest.raises(ModelError, match="two tensors of the checkpoint have the same name"):
        read_checkpoint(saved({"a": {"b": torch.zeros(1)}, "a.b": torch.zeros(1)}, tmp_path))


@pytest.mark.parametrize("content", [{}, [], torch.zeros(3), {"epoch": 1}, {"model": {"epoch": 1}}, 3, None])
def test_nothing_to_read(content: Any, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"a\.pth: no state_dict in the checkpoint"):
        read_checkpoint(saved(content, tmp_path))


def test_weights_of_something_else(tmp_path: Path) -> None:
    path = saved({"conv1.weight": torch.zeros(2), "fc.bias": torch.zeros(2)}, tmp_path)
    with pytest.raises(ModelError, match=r"no weights of a Vision Transformer .*Got conv1\.weight, fc\.bias, expected"):
        read_checkpoint(path)


FOREIGN = {
    "Hugging Face transformers": [
        "vit.embeddings.cls_token vit.encoder.layer.0.attention.attention.query.weight classifier.bias",
        "embeddings.patch_embeddings.projection.weight encoder.layer.11.layernorm_before.weight",
        "dinov2.embeddings.position_embeddings dinov2.encoder.layer.0.attention.output.dense.bias",
    ],
    "torchvision": ["class_token conv_proj.weight encoder.pos_embedding encoder.layers.encoder_layer_0.ln_1.weight"],
    "mmpretrain": ["backbone.cls_token backbone.pos_embed backbone.layers.0.ln1.weight head.layers.head.weight"],
    "OpenAI CLIP or OpenCLIP": [
        "positional_embedding visual.class_embedding visual.transformer.resblocks.0.attn.in_proj_weight",
        "module.visual.transformer.resblocks.0.ln_1.weight module.transformer.resblocks.0.ln_1.weight",
    ],
    "vit-pytorch": ["pos_embedding cls_token to_patch_embedding.1.weight transformer.layers.0.0.norm.weight"],
}


@pytest.mark.parametrize(("library", "names"), [(lib, names) for lib, all_ in FOREIGN.items() for names in all_])
def test_the_naming_of_other_libraries_is_recognised(library: str, names: str, tmp_path: Path) -> None:
    save_file({name: torch.zeros(1) for name in names.split()}, tmp_path / "a.safetensors")
    with pytest.raises(ModelError) as caught:
        read_checkpoint(tmp_path / "a.safetensors")
    assert f"a.safetensors: the checkpoint has the parameter names of {library}, which are not supported. Got " in str(
        caught.value
    )
    assert caught.value.exit_code == 2


def test_a_model_of_timm_beside_a_text_tower(tmp_path: Path) -> None:
    tower = {"transformer.resblocks.0.ln_1.weight": torch.zeros(1)}
    save_file(prefixed(PLAIN, "visual.trunk.") | tower, tmp_path / "a.safetensors")
    found = read_checkpoint(tmp_path / "a.safetensors")
    assert equal(found.tensors, PLAIN)
    assert found.notes == ("not used from the checkpoint: transformer (1 tensor)",)
