"""Names of releases that differ from timm's, made timm's."""

import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from support.checkpoint_states import SMALL, equal, random_state
from vitquant.adapters.adapt import adapt
from vitquant.adapters.checkpoint import fit_checkpoint, read_checkpoint
from vitquant.adapters.checkpoint_names import tidy
from vitquant.adapters.names import lookup
from vitquant.errors import ModelError

STATE = random_state()


def test_chunked_blocks(tmp_path: Path) -> None:
    chunked = {re.sub(r"^blocks\.(\d+)", r"blocks.\1.\1", key): value for key, value in STATE.items()}
    assert "blocks.1.1.attn.qkv.weight" in chunked
    save_file(chunked, tmp_path / "a.safetensors")
    assert equal(read_checkpoint(tmp_path / "a.safetensors").tensors, STATE)
    clash = {"blocks.0.0.a": torch.zeros(1), "blocks.1.0.a": torch.ones(1)}  # no chunks of DINOv2
    assert tidy(clash)[0] == clash


def in_parts(state: dict[str, Tensor], *, with_k: bool = False) -> dict[str, Tensor]:
    """The biases of q and v (and k) apart, as BEiT and EVA store them."""
    parts: dict[str, Tensor] = {}
    for key, value in state.items():
        if key.endswith("qkv.bias"):
            q, k, v = value.chunk(3)
            named = {"q_bias": q, "v_bias": v} | ({"k_bias": k} if with_k else {})
            parts |= {key.replace("qkv.bias", name): part.clone() for name, part in named.items()}
        else:
            parts[key] = value
    return parts


def test_biases_in_parts() -> None:
    assert equal(tidy(in_parts(STATE, with_k=True))[0], STATE)
    joined, notes = tidy(in_parts(STATE))
    assert notes == []
    q, k, v = STATE["blocks.1.attn.qkv.bias"].chunk(3)
    assert torch.equal(joined["blocks.1.attn.qkv.bias"], torch.cat([q, torch.zeros_like(k), v]))
    assert joined.keys() == STATE.keys()
    both = STATE | {"blocks.0.attn.q_bias": q, "blocks.0.attn.v_bias": v}
    assert tidy(both)[0] == both  # a contradiction is for the fit to refuse


def test_decoders_and_projection_heads_are_noted() -> None:
    decoder = {"decoder_embed.weight": torch.zeros(2), "decoder_blocks.0.norm1.weight": torch.zeros(2)}
    head = {"head.mlp.0.weight": torch.zeros(2), "head.last_layer.weight_g": torch.zeros(2)}
    body = {key: value for key, value in STATE.items() if not key.startswith("head.")}
    tidied, notes = tidy(body | decoder | head)
    assert equal(tidied, body)
    assert notes == [
        "the decoder was left out: decoder_embed.weight, decoder_blocks.0.norm1.weight",
        "the head was left out, since it is not one linear layer: head.mlp.0.weight, head.last_layer.weight_g",
    ]
    assert tidy(STATE) == (STATE, [])


def chunk(name: str) -> str:
    """Three blocks a chunk, as DINOv2 trains them."""
    return re.sub(r"^blocks\.(\d+)", lambda found: f"blocks.{int(found[1]) // 3}.{found[1]}", name)


@pytest.mark.timm
@pytest.mark.parametrize("release", ["MAE", "DINOv2 in chunks", "DINO's teacher", "biases in parts"])
def test_parity_with_timm(release: str, tmp_path: Path) -> None:
    name, size = ("vit_small_patch14_dinov2", 28) if "DINOv2" in release else ("vit_tiny_patch16_224", 32)
    state = random_state(lookup(name, img_size=size).spec)
    content: dict[str, object] = {"model": state}
    if release == "MAE":
        extra = {"mask_token": torch.zeros(1, 1, 5), "decoder_pred.weight": torch.zeros(5, 5)}
        content = {"model": {k: v for k, v in state.items() if not k.startswith("head.")} | extra}
    elif release == "DINOv2 in chunks":
        chunks = {
            re.sub(r"^blocks\.(\d+)", lambda m: f"blocks.{int(m[1]) // 3}.{m[1]}", k): v for k, v in state.items()
        }
        content = {"teacher": {f"backbone.{key}": v for key, v in chunks.items()} | {"dino_head.a": torch.zeros(1)}}
        content["teacher"]["backbone.mask_token"] = torch.zeros(1, 384)  # type: ignore[index]
    elif release == "DINO's teacher":
        teacher = {f"backbone.{key}": value for key, value in state.items() if not key.startswith("head.")}
        student = {f"module.{key}": value + 1 for key, value in teacher.items()}
        content = {"student": student, "teacher": teacher | {"head.mlp.0.weight": torch.zeros(1)}}
    else:
        content = {"module": in_parts(state)}
    torch.save(content, tmp_path / "a.pth")
    model = adapt(name, weights=tmp_path / "a.pth", img_size=size)
    assert model.parity_db is not None
    assert model.parity_db > 100
    assert torch.equal(model.vit.state_dict()["blocks.7.mlp.fc1.weight"], state["blocks.7.mlp.fc1.weight"])


def test_a_head_that_is_no_matrix_is_listed() -> None:
    state = STATE | {"head.weight": torch.tensor(1.0), "pos_embed": torch.tensor(1.0), "cls_token": torch.tensor(1)}
    with pytest.raises(ModelError, match=r"3 with another shape: cls_token \[\] .*pos_embed \[\] .*head\.weight \[\]"):
        fit_checkpoint(state, SMALL, default_grid=SMALL.grid, where="a")
    with pytest.raises(ModelError, match="does not match"):
        fit_checkpoint(state | {"register_tokens": torch.tensor(1)}, SMALL, default_grid=SMALL.grid, where="a")
