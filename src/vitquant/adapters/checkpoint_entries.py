"""Selecting a model from a checkpoint: its entries, such as plain and averaged weights, and their prefixes.

Nested dictionaries and prefixes of names are treated alike: both become parts of a dotted name. A model is identified
by the path of its parameters, such as ``teacher.backbone``.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from itertools import takewhile

from torch import Tensor

from vitquant.adapters.foreign import library_of_names
from vitquant.errors import ModelError

ANCHORS = ("patch_embed.proj.weight", "blocks.0.norm1.weight", "blocks.0.0.norm1.weight")
WEAK_ANCHORS = ("pos_embed", "cls_token")
"""Parameters that identify a model. The weak ones also occur in other libraries."""

TRANSPARENT = {"_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"}
"""Parts that compilation and sharding add to names."""

MAX_DEPTH, MAX_KEYS = 16, 1_000_000

# Names of path components, in order of preference. Averaged weights are preferred, as in timm; DINO's teacher is an
# average of its student. The empty name is the top level.
AVERAGED = (r"state_dict_ema", r"model_ema", r"(\w+_)?(ema|swa|averaged)(_\w+)?", r"teacher(_\w+)?")
HELPERS = r"student(_\w+)?|momentum_\w+|target_\w+|decoder|predictor"
PLAIN = (r"", r"state_dict", r"model|module|net|backbone|encoder|base_encoder")


def flatten(loaded: object, where: str) -> dict[str, Tensor]:
    """All tensors of a checkpoint by dotted names.

    Raises:
        ModelError: there are none, two have the same name, or dictionaries are nested too deeply.
    """
    tensors: dict[str, Tensor] = {}
    for parts, tensor in _leaves(loaded, where):
        name = ".".join(part for text in parts for part in text.split(".") if part not in TRANSPARENT)
        if name in tensors:
            raise ModelError("two tensors of the checkpoint have the same name", where=where, got=name)
        tensors[name] = tensor.detach()
    if not tensors:
        got = sorted(map(str, loaded))[:5] if isinstance(loaded, Mapping) else type(loaded).__name__
        raise ModelError(
            "no state_dict in the checkpoint", where=where, got=got, expected="a mapping of names to tensors"
        )
    return tensors


def _leaves(loaded: object, where: str) -> Iterator[tuple[tuple[str, ...], Tensor]]:
    """Tensors with their paths of keys. A dictionary may contain itself, so depth and number of keys are limited."""
    waiting: list[tuple[tuple[str, ...], object]] = [((), loaded)]
    keys = 0
    while waiting:
        parts, value = waiting.pop()
        if isinstance(value, Tensor) and parts:
            yield parts, value
        elif isinstance(value, Mapping):
            keys += len(value)
            if len(parts) == MAX_DEPTH or keys > MAX_KEYS:
                expected = f"at most {MAX_DEPTH} levels and {MAX_KEYS:,} keys"
                raise ModelError("dictionaries in the checkpoint are nested too deeply", where=where, expected=expected)
            waiting += reversed([((*parts, _text(key)), inner) for key, inner in value.items()])


def _text(key: object) -> str:
    return key.decode("utf-8", "replace") if isinstance(key, bytes) else str(key)


def choose(tensors: Mapping[str, Tensor], entry: str | None, where: str) -> tuple[dict[str, Tensor], list[str]]:
    """The tensors of one model, by their names in the model.

    Args:
        tensors: all tensors, from :func:`flatten`.
        entry: the path of the wanted model or a part of it, such as ``teacher``; without it, averaged weights are
            preferred to plain ones, and a teacher to its student.
        where: the name of the checkpoint in errors.

    Returns:
        The tensors, and notes on the chosen entry and on unused tensors.

    Raises:
        ModelError: there is no such entry, several are equally likely, or the names are those of another library.
    """
    paths = model_paths(tensors)
    if not paths:
        raise _no_model(tensors, where)
    chosen = _named(paths, entry, where) if entry is not None else _preferred(paths, where)
    others = [path for path in paths if path != chosen]
    notes = []
    if others:
        notes.append(
            f"using the entry {_shown(chosen)} of the checkpoint; other entries: "
            f"{', '.join(map(_shown, others))} (choose with weights_entry or --weights-entry)"
        )
    left = [name for name in tensors if not any(_is_in(name, path) for path in paths)]
    if left:
        notes.append(f"not used from the checkpoint: {_groups(left, chosen)}")
    inner = [path for path in others if _is_in(path, chosen)]
    prefix = f"{chosen}." if chosen else ""
    state = {
        name.removeprefix(prefix): tensor
        for name, tensor in tensors.items()
        if _is_in(name, chosen) and not any(_is_in(name, path) for path in inner)
    }
    return state, notes


def model_paths(tensors: Mapping[str, Tensor]) -> list[str]:
    """The paths of Vision Transformers in the checkpoint, in file order; ``""`` is the top level."""
    for anchor in ANCHORS:
        if paths := _owners(tensors, anchor):
            return paths
    if library_of_names(tensors):
        return []
    return next(filter(None, (_owners(tensors, anchor) for anchor in WEAK_ANCHORS)), [])


def _owners(tensors: Mapping[str, Tensor], anchor: str) -> list[str]:
    return [n.removesuffix(anchor).removesuffix(".") for n in tensors if n == anchor or n.endswith(f".{anchor}")]


def _is_in(name: str, path: str) -> bool:
    return not path or name == path or name.startswith(f"{path}.")


def _named(paths: list[str], entry: str, where: str) -> str:
    found = [path for path in paths if f".{entry}." in f".{path}."] if entry else []
    if not found:
        several = len(paths) > 1 or paths[0]
        expected = (
            f"one of {', '.join(map(_shown, paths))}" if several else "no entry, since the weights are at the top level"
        )
        raise ModelError("the checkpoint has no such entry", where=where, got=repr(entry), expected=expected)
    return _preferred(found, where)


def _preferred(paths: list[str], where: str) -> str:
    ranks = {path: _rank(path) for path in paths}
    best = [path for path in paths if ranks[path] == min(ranks.values())]
    if len(best) > 1:
        raise ModelError(
            f"the checkpoint contains {len(best)} models",
            where=where,
            got=", ".join(map(_shown, best)),
            fix="choose one with weights_entry (--weights-entry on the command line)",
        )
    return best[0]


def _rank(path: str) -> int:
    """Averaged weights first, then plain names, then unknown names, and training helpers last."""
    parts = path.split(".")

    def matches(kind: str) -> bool:
        return any(re.fullmatch(kind, part) for part in parts)

    averaged = [rank for rank, kind in enumerate(AVERAGED) if matches(kind)]
    plain = [rank for rank, kind in enumerate(PLAIN, len(AVERAGED)) if matches(kind)]
    unknown = len(AVERAGED) + len(PLAIN)
    return min(averaged, default=unknown + 1 if matches(HELPERS) else min(plain, default=unknown))


def _no_model(tensors: Mapping[str, Tensor], where: str) -> ModelError:
    first = ", ".join(list(tensors)[:3])
    if library := library_of_names(tensors):
        return ModelError(
            f"the checkpoint has the parameter names of {library}, which are not supported",
            where=where,
            got=first,
            expected="timm's names, such as blocks.0.attn.qkv.weight",
            fix="use the same weights in timm's format; timm provides most of these models",
        )
    return ModelError(
        "no weights of a Vision Transformer in the checkpoint",
        where=where,
        got=first,
        expected="timm's names, such as blocks.0.attn.qkv.weight",
    )


def _shown(path: str) -> str:
    return path or "(top level)"


def _groups(names: list[str], chosen: str) -> str:
    """Names outside the chosen path, grouped by their common prefix."""
    counts: dict[str, int] = {}
    path = chosen.split(".") if chosen else []
    for name in names:
        parts = name.split(".")
        shared = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(parts, path, strict=False)))
        branch = ".".join(parts[: shared + 1])
        counts[branch] = counts.get(branch, 0) + 1
    shown = [f"{branch} ({count} tensor{'s' * (count > 1)})" for branch, count in counts.items()]
    return ", ".join(shown[:5]) + (f" and {len(shown) - 5} more" if len(shown) > 5 else "")
