"""Conversion of parameter names that differ from timm's: DINOv2, DeiT III, MAE, DINO, and BEiT's biases."""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import Tensor

CHUNK = re.compile(r"blocks\.\d+\.(?=\d+\.)")


def tidy(state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], list[str]]:
    """Conversions that timm does not have: chunked blocks, split biases, decoders and projection heads.

    Returns:
        The state, and notes on removed tensors.
    """
    joined = _join_biases(_join_chunks(state))
    decoder = [name for name in joined if re.match(r"decoder[._]", name)]
    head = [name for name in joined if name.startswith("head.")]
    notes = []
    if decoder:
        joined = _without(joined, decoder)
        notes.append(f"the decoder was left out: {_tensors(decoder)}")
    if set(head) - {"head.weight", "head.bias"}:
        joined = _without(joined, head)
        notes.append(f"the head was left out, since it is not one linear layer: {_tensors(head)}")
    return joined, notes


def _join_chunks(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """DINOv2 training uses ``blocks.CHUNK.BLOCK``; block numbers continue across chunks."""
    joined = {CHUNK.sub("blocks.", name): value for name, value in state.items()}
    return joined if len(joined) == len(state) else dict(state)


def _join_biases(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """``q_bias`` and ``v_bias`` as the bias of ``qkv``, with zeros (or ``k_bias``) for K."""
    joined = dict(state)
    for name in [name for name in state if name.endswith("attn.q_bias")]:
        layer = name.removesuffix("q_bias")
        q, v = state[name], state.get(f"{layer}v_bias")
        if v is None or v.shape != q.shape or f"{layer}qkv.bias" in state:
            continue
        k = state.get(f"{layer}k_bias", torch.zeros_like(q))
        joined = _without(joined, [f"{layer}{part}_bias" for part in "qkv"])
        joined[f"{layer}qkv.bias"] = torch.cat([q, k, v])
    return joined


def timm_names(state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], list[str]]:
    """Names of the original DINOv2 and DeiT III releases as timm's; timm has the same conversion."""
    named = {re.sub(r"\.gamma_([12])$", r".ls\1.gamma", key): value for key, value in state.items()}
    notes = []
    if named.pop("mask_token", None) is not None:
        notes.append("mask_token left out: it is used in training only")
    parts = [named.get(name) for name in ("register_tokens", "pos_embed", "cls_token")]
    if all(part is not None and part.ndim == 3 for part in parts):
        # The original adds a position to the class token but not to the registers; timm stores the sum.
        named["reg_token"] = named.pop("register_tokens")
        named["cls_token"] = named["cls_token"] + named["pos_embed"][:, :1]
        named["pos_embed"] = named["pos_embed"][:, 1:]
    return named, notes


def _without(state: Mapping[str, Tensor], names: list[str]) -> dict[str, Tensor]:
    return {key: value for key, value in state.items() if key not in names}


def _tensors(names: list[str]) -> str:
    more = f" and {len(names) - 2} more" if len(names) > 2 else ""
    return f"{', '.join(names[:2])}{more}"
