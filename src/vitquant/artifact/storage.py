"""The saved quantized model: ``model.safetensors`` and ``manifest.json``.

Weights are stored as their integer codes; the float weights they came from are not stored. Codes of fewer than 8 bits
are packed (:mod:`vitquant.numerics.packing`), and with them the multipliers of their groups. The manifest names the
format, its version, the architecture, the preprocessing, the resolved configuration and the digest of the tensor file.
Nothing in either file is executed.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, replace
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor, nn

from vitquant.architectures.families import require_family
from vitquant.architectures.model import QuantModel
from vitquant.arguments import require_kind, require_path
from vitquant.artifact.manifest import (
    FORMAT,
    MAX_HEADER_BYTES,
    MAX_TENSOR_BYTES,
    PACKED_VERSION,
    PLAIN_VERSION,
    read_manifest,
    require_room,
)
from vitquant.artifact.outline import outline
from vitquant.calibration.rewrite import rewrite_again
from vitquant.config import ModelConfig
from vitquant.errors import ArtifactError, ConfigError, ModelError
from vitquant.files import write_folder
from vitquant.layers import AttentionScores, Mode, QuantEmbedding, QuantLinear, QuantNorm, QuantPatchEmbed
from vitquant.layers.layer import AppliedRewrite
from vitquant.layers.plain_torch import plain_torch
from vitquant.layers.undisturbed import undisturbed
from vitquant.numerics.affine import QuantParams
from vitquant.numerics.packing import Packing, pack_rows, unpack_rows
from vitquant.runs import KEY, MANIFEST, require_one_run
from vitquant.strict_files import parse_json, read_file
from vitquant.version import __version__

TENSORS = "model.safetensors"
REWRITE = "rewrite."
"""What the names of the tensors of rewrites start with."""

SMALLEST_SCALE = float(torch.finfo(torch.float32).tiny)
"""Calibration makes no smaller ones: their reciprocals would be infinite."""

NONSENSE = (
    *(KeyError, TypeError, ValueError, AttributeError, ArithmeticError, RuntimeError),
    *(SafetensorError, ConfigError, ModelError),
)
"""What files of the right form and without sense raise, such as a model of negative width."""


def save(model: QuantModel, folder: str | Path) -> None:
    """Write a calibrated model into ``folder``, whose other files stay as they are. Floats are stored as float32.

    Both files are put there at once (:func:`vitquant.files.write_folder`); if one cannot be written, the old model
    stays.

    Raises:
        LifecycleError: the model is not calibrated.
        OutputError: the files cannot be written.
    """
    write_folder(require_path(folder, "folder"), encode_model(require_kind(model, QuantModel, "model")))


@undisturbed
def encode_model(model: QuantModel) -> dict[str, bytes | str]:
    """The files of a saved model by name, the manifest last.

    Raises:
        LifecycleError: the model is not calibrated.
    """
    model.require_calibrated()
    stored = {name: for_disk(tensor) for name, tensor in state(model)}
    packed = pack_weights(model, stored)
    tensors = save_tensors(stored)
    manifest = {
        "format": FORMAT,
        "format_version": PACKED_VERSION if packed else PLAIN_VERSION,
        "vitquant": __version__,
        KEY: run_id(model),
        "family": require_family(model).name,
        "output": model.output,
        "rewrites": [applied.name for applied in model.rewrites],
        "spec": asdict(model.spec),
        "preprocessing": model.preprocessing.to_dict(),
        "config": model.config.to_yaml(),
        "tensors": {"file": TENSORS, "sha256": hashlib.sha256(tensors).hexdigest(), "bytes": len(tensors)},
    }
    return {TENSORS: tensors, MANIFEST: json.dumps(manifest, indent=2)}


def run_id(model: QuantModel) -> str:
    """What names the run that a calibrated model is of: 16 hexadecimal digits of a digest of all that it computes with.

    The same calibration gives the same name; a saved model keeps its name when it is loaded.

    Raises:
        LifecycleError: the model is not calibrated.
    """
    model.require_calibrated()
    tensors = {name: for_disk(tensor) for name, tensor in state(model)}
    facts = {
        "spec": asdict(model.spec),
        "preprocessing": model.preprocessing.to_dict(),
        "config": model.config.to_yaml(),
        "tensors": [[name, str(tensor.dtype), list(tensor.shape)] for name, tensor in tensors.items()],
    }
    digest = hashlib.sha256(json.dumps(facts).encode())
    for tensor in tensors.values():
        digest.update(tensor.flatten().numpy().data)
    return digest.hexdigest()[:16]


def load(folder: str | Path, *, vit: nn.Module | None = None) -> QuantModel:
    """Read a saved model, in mode ``QUANTIZED``; it gives the outputs that were saved.

    Args:
        folder: where :func:`save` wrote it.
        vit: the float model that it was made from. Without it ``QUANTIZED`` is the only mode the model knows.

    Raises:
        ArtifactError: a file is missing, damaged, of another format, or of a newer version; or a tensor is not what
            the architecture and the configuration ask for; or the folder's files are of different runs.
    """
    folder = require_path(folder, "folder")
    manifest = read_manifest(folder)
    require_one_run(folder)
    where = str(folder / TENSORS)
    limit = MAX_TENSOR_BYTES if manifest.size is None else manifest.size
    blob = read_file(folder / TENSORS, limit, "the tensors", ArtifactError)
    digest = hashlib.sha256(blob).hexdigest()
    if digest != manifest.sha256 or manifest.size not in (None, len(blob)):
        raise ArtifactError(
            "the tensor file is not the one the manifest was written with",
            where=where,
            got=f"sha256 {digest[:12]}...",
            expected=f"{ascii(manifest.sha256[:12])[1:-1]}...",
            fix="save the model again",
        )
    try:
        require_room(manifest, len(blob), count_tensors(blob, where), str(folder / MANIFEST))
        with plain_torch():
            model = outline(manifest.family, manifest.spec, manifest.config, manifest.preprocessing)
            model.choose_output(manifest.output)
            tensors = load_tensors(blob)
            if manifest.packed:
                unpack_weights(model, tensors)
            for number, name in enumerate(manifest.rewrites):
                rewrite_again(model, AppliedRewrite(name, measured_by(number, tensors)))
    except NONSENSE as error:
        raise ArtifactError(f"the saved model is damaged: {error}".removesuffix("."), where=str(folder)) from error
    require_same_kinds(tensors, dict(state(model)), where=where)
    require_sound(model, tensors, where=where)
    with plain_torch():
        if vit is not None:
            model = beside_float(model, vit, where=str(folder))
        restore(model, tensors)
    model.set_mode(Mode.QUANTIZED)
    return model


def beside_float(outlined: QuantModel, vit: nn.Module, where: str) -> QuantModel:
    """The outlined model with the weights of its float original.

    Raises:
        ArtifactError: the float model is of another architecture.
    """
    if getattr(vit, "spec", None) != outlined.spec:
        raise ArtifactError(
            "the float model is not the one that was quantized",
            where=where,
            got=str(getattr(vit, "spec", type(vit).__name__)),
            expected=str(outlined.spec),
        )
    config = ModelConfig.from_text(outlined.config.to_yaml(), name=where)
    model = require_family(outlined).quantized(vit, config, outlined.preprocessing)
    model.choose_output(outlined.output)
    for applied in outlined.rewrites:
        rewrite_again(model, applied)
    outlines = outlined.point_modules()
    for name, point in model.point_modules().items():
        point.params, point.shape = outlines[name].params, outlines[name].shape
    return model


def state(model: QuantModel) -> Iterator[tuple[str, Tensor]]:
    """Every tensor of the artifact, by name."""
    for module in model.modules():
        if isinstance(module, QuantEmbedding):
            yield "token_table", module.table
        elif isinstance(module, AttentionScores) and module.table is not None:
            yield f"{module.name}.table", module.table
    for module in model.modules():
        if isinstance(module, QuantNorm):
            yield f"{module.name}.gamma", module.norm.weight
            yield f"{module.name}.beta", module.norm.bias
        elif isinstance(module, QuantLinear):
            yield from linear_state(module)
    for name, point in model.point_modules().items():
        if point.params is not None:
            yield f"{name}.scale", point.params.scale
            if point.params.qmin == 0:  # signed grids have none
                yield f"{name}.zero_point", point.params.zero_point
    for number, applied in enumerate(model.rewrites):
        for name, tensor in applied.measured.items():
            yield f"{REWRITE}{number}.{name}", tensor


def measured_by(number: int, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of one rewrite, by their own names."""
    prefix = f"{REWRITE}{number}."
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def packed_weights(model: QuantModel) -> Iterator[tuple[str, str, Packing, bool]]:
    """The integer weights of fewer than 8 bits: names of the codes and the multipliers, packing, whether signed."""
    for linear in model.linears():
        if linear.weight.active and linear.packing.bits < 8:
            name, signed = linear.layer_name, linear.weight.require_params().qmin < 0
            yield f"{name}.codes", f"{name}.multipliers", linear.packing, signed


def pack_weights(model: QuantModel, tensors: dict[str, Tensor]) -> bool:
    """Put packed rows in the place of weights of fewer than 8 bits; says whether there are any."""
    packed = list(packed_weights(model))
    for name, name_of_multipliers, packing, signed in packed:
        rows, groups = pack_rows(tensors[name].numpy(), packing, signed=signed)
        tensors[name] = torch.from_numpy(rows)
        if groups is not None:
            tensors[name_of_multipliers] = torch.from_numpy(groups)
    return bool(packed)


def unpack_weights(model: QuantModel, tensors: dict[str, Tensor]) -> None:
    """The inverse; tensors that are missing stay missing.

    Raises:
        ModelError: packed rows of another type or shape, or with bits that stand for nothing.
    """
    for name, name_of_multipliers, packing, signed in packed_weights(model):
        if name not in tensors:
            continue
        groups = tensors.pop(name_of_multipliers, None) if packing.group else None
        if packing.group and groups is None:
            raise ModelError("the tensor is missing", where=name_of_multipliers)
        try:
            rows = unpack_rows(
                tensors[name].numpy(), None if groups is None else groups.numpy(), packing, signed=signed
            )
        except ValueError as error:
            raise ModelError(f"packed weights are damaged: {error}", where=name) from error
        tensors[name] = torch.from_numpy(rows)


def for_disk(tensor: Tensor) -> Tensor:
    """A copy on the CPU; floats are stored as float32, whatever the model computes in."""
    tensor = tensor.detach().cpu().contiguous().clone()
    return tensor.float() if tensor.is_floating_point() else tensor


def linear_state(linear: QuantLinear) -> Iterator[tuple[str, Tensor]]:
    """Integer weights, or the float ones where the weights stay float."""
    name = linear.layer_name
    if linear.weight.active:
        named = {"codes": linear.weight_codes, "bias": linear.bias_hat, "input_scale": linear.input_scale}
    else:
        named = {"float_weight": linear.float_weight, "float_bias": linear.float_bias, "gain": linear.gain}
    return ((f"{name}.{key}", tensor) for key, tensor in named.items() if tensor is not None)


def require_same_kinds(found: dict[str, Tensor], wanted: dict[str, Tensor], where: str) -> None:
    """Compare names, types and shapes of an artifact's tensors with those that the model needs.

    Raises:
        ArtifactError: a tensor is missing, left over, or of another type or shape.
    """
    wrong = [name for name in wanted | found if kind(found.get(name)) != kind(wanted.get(name))]
    if wrong:
        more = f" (and {len(wrong) - 1} more)" if len(wrong) > 1 else ""
        raise ArtifactError(
            f"the tensor does not fit the model's architecture and configuration{more}",
            where=f"{where} {wrong[0]}",
            got=kind(found.get(wrong[0])),
            expected=kind(wanted.get(wrong[0])),
            fix="save the model again",
        )


def kind(tensor: Tensor | None) -> str:
    """Type and shape of a tensor, such as ``int8 [48, 16]``."""
    return "no tensor" if tensor is None else f"{str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}"


def count_tensors(blob: bytes, where: str) -> int:
    """How many tensors a safetensors file says it holds.

    Raises:
        ArtifactError: its header is too long, or is no JSON that names each tensor once.
    """
    length = int.from_bytes(blob[:8], "little")
    if not 8 + length <= len(blob) or length > MAX_HEADER_BYTES:
        raise ArtifactError(
            "the saved model is damaged: the header of the tensor file is too long",
            where=where,
            got=f"{length} bytes",
            expected=f"at most {min(MAX_HEADER_BYTES, max(0, len(blob) - 8))}",
        )
    header = parse_json(blob[8 : 8 + length], where, "the saved model is damaged: the header", ArtifactError)
    if not isinstance(header, dict):
        raise ArtifactError("the saved model is damaged: the header names no tensors", where=where)
    return len(header.keys() - {"__metadata__"})


def require_sound(model: QuantModel, tensors: dict[str, Tensor], where: str) -> None:
    """Refuse numbers that no calibrated model has; they would give wrong figures and no error.

    Args:
        model: outlined from the manifest.
        tensors: of its types and shapes.
        where: the file, for messages.

    Raises:
        ArtifactError: NaN or Inf, a scale that is not positive, a zero point that is no code, or a weight beyond its
            bits; names the tensor.
    """
    params = {f"{name}.": p.params for name, p in model.point_modules().items() if p.params is not None}
    codes = {f"{linear.layer_name}.codes": linear.weight for linear in model.linears() if linear.weight.active}
    for name, tensor in tensors.items():
        prefix, key = name[: name.rfind(".") + 1], name.rpartition(".")[2]
        expected = "finite numbers"
        fits = not tensor.is_floating_point() or bool(tensor.isfinite().all())
        if fits and key in ("scale", "input_scale"):
            expected = f"positive scales, at least {SMALLEST_SCALE:.3g}"
            fits = bool((tensor >= SMALLEST_SCALE).all())
        elif fits and key == "zero_point":
            fits, expected = codes_fit(tensor, params[prefix])
        elif name in codes:
            fits, expected = codes_fit(tensor, codes[name].require_params())
        if not fits:
            raise ArtifactError(
                "the tensor holds what no calibrated model has",
                where=f"{where} {name}",
                got=worst_of(tensor),
                expected=expected,
                fix="save the model again",
            )


def codes_fit(tensor: Tensor, params: QuantParams) -> tuple[bool, str]:
    """Whether these are codes of a point, and what they should be."""
    inside = (tensor >= params.qmin) & (tensor <= params.qmax)
    whole = tensor == tensor.round() if tensor.is_floating_point() else inside
    return bool((inside & whole).all()), f"whole numbers from {params.qmin} to {params.qmax}"


def worst_of(tensor: Tensor) -> str:
    """What to show of a tensor that was refused: its range, or how much of it is not finite."""
    if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
        return f"{int(tensor.isnan().sum())} NaN and {int(tensor.isinf().sum())} Inf"
    low, high = (v.item() for v in torch.aminmax(tensor))
    return f"{low:.6g} to {high:.6g}"


def restore(model: QuantModel, tensors: dict[str, Tensor]) -> None:
    """Fill an outlined model with copies of the tensors of an artifact, the inverse of :func:`state`."""
    tensors = {name: tensor.clone() for name, tensor in tensors.items()}
    for name, point in model.point_modules().items():
        if point.params is not None:
            scale = tensors[f"{name}.scale"]
            zero_point = tensors.get(f"{name}.zero_point", torch.zeros_like(scale))
            point.params = replace(point.params, scale=scale, zero_point=zero_point)
    for module in model.modules():
        if isinstance(module, QuantNorm):
            module.norm.weight = nn.Parameter(tensors[f"{module.name}.gamma"], requires_grad=False)
            module.norm.bias = nn.Parameter(tensors[f"{module.name}.beta"], requires_grad=False)
        elif isinstance(module, QuantLinear):
            restore_linear(module, tensors)
        elif isinstance(module, QuantEmbedding):
            module.table = tensors["token_table"]
        elif isinstance(module, AttentionScores) and module.table is not None:
            module.table = tensors[f"{module.name}.table"]
    for module in model.modules():
        if isinstance(module, QuantPatchEmbed):
            module.reset_pixels()


def restore_linear(linear: QuantLinear, tensors: dict[str, Tensor]) -> None:
    """The inverse of :func:`linear_state`."""
    name = linear.layer_name
    if linear.weight.active:
        linear.realize(tensors[f"{name}.codes"], tensors[f"{name}.bias"], tensors.get(f"{name}.input_scale"))
    else:
        linear.float_weight = tensors[f"{name}.float_weight"]
        linear.float_bias = tensors.get(f"{name}.float_bias")
        linear.gain = tensors.get(f"{name}.gain")
