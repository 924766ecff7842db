"""The saved quantized model: ``model.safetensors`` and ``manifest.json``.

Weights are stored as their integer codes; the float weights they came from are not stored. The manifest names the
format, its version, the architecture, the preprocessing, the resolved configuration and the digest of the tensor file.
Nothing in either file is executed.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor, nn

from vitquant.arguments import require_kind, require_path
from vitquant.config import ModelConfig
from vitquant.data.preprocessing import Preprocessing
from vitquant.errors import ArtifactError, ConfigError, ModelError
from vitquant.files import make_folder, write_together, writing
from vitquant.layers import Mode, QuantLinear, QuantNorm
from vitquant.models.outline import outline
from vitquant.models.quant_vit import QuantViT
from vitquant.models.vit import VisionTransformer, ViTSpec
from vitquant.version import __version__

FORMAT, FORMAT_VERSION = "vitquant-model", 1
TENSORS, MANIFEST = "model.safetensors", "manifest.json"
NONSENSE = (
    *(KeyError, TypeError, ValueError, AttributeError, ArithmeticError, RuntimeError),
    *(SafetensorError, ConfigError, ModelError),
)
"""What files of the right form and without sense raise, such as a model of negative width."""


def save(model: QuantViT, folder: str | Path) -> None:
    """Write a calibrated model into ``folder``, whose other files stay as they are. Floats are stored as float32.

    Both files are written beside their places and then renamed: if one cannot be written, the old model stays. The
    manifest holds the digest of the tensors, so that :func:`load` refuses a mixture, should the power fail in between.

    Raises:
        LifecycleError: the model is not calibrated.
    """
    folder = require_path(folder, "folder")
    require_kind(model, QuantViT, "model").require_calibrated()
    tensors = save_tensors({name: for_disk(tensor) for name, tensor in state(model)})
    manifest = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "vitquant": __version__,
        "spec": asdict(model.spec),
        "preprocessing": model.preprocessing.to_dict(),
        "config": model.config.to_yaml(),
        "tensors": {"file": TENSORS, "sha256": hashlib.sha256(tensors).hexdigest(), "bytes": len(tensors)},
    }
    make_folder(folder)
    with writing(folder):
        write_together({folder / TENSORS: tensors, folder / MANIFEST: json.dumps(manifest, indent=2)})


def load(folder: str | Path, *, vit: VisionTransformer | None = None) -> QuantViT:
    """Read a saved model, in mode ``QUANTIZED``; it gives the outputs that were saved.

    Args:
        folder: where :func:`save` wrote it.
        vit: the float model that it was made from. Without it ``QUANTIZED`` is the only mode the model knows.

    Raises:
        ArtifactError: a file is missing, damaged, of another format, or of a newer version; or a tensor is not what
            the architecture and the configuration ask for.
    """
    folder = require_path(folder, "folder")
    manifest = read_manifest(folder)
    try:
        blob = (folder / TENSORS).read_bytes()
    except OSError as error:
        raise ArtifactError(f"cannot read the tensors: {error.strerror}", where=str(folder / TENSORS)) from error
    digest = hashlib.sha256(blob).hexdigest()
    if digest != manifest["tensors"]["sha256"]:
        raise ArtifactError(
            "the tensor file is not the one the manifest was written with",
            where=str(folder / TENSORS),
            got=f"sha256 {digest[:12]}...",
            expected=f"{str(manifest['tensors']['sha256'])[:12]}...",
            fix="save the model again",
        )
    try:
        fields: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in manifest["spec"].items()}
        spec = ViTSpec(**fields)
        preprocessing = Preprocessing.from_dict(manifest["preprocessing"])
        config = ModelConfig.from_text(manifest["config"], name=f"{folder / MANIFEST} (config)")
        model = outline(spec, config, preprocessing)
        tensors = load_tensors(blob)
    except NONSENSE as error:
        raise ArtifactError(f"the saved model is damaged: {error}", where=str(folder)) from error
    require_same_kinds(tensors, dict(state(model)), where=str(folder / TENSORS))
    if vit is not None:
        model = beside_float(model, vit, where=str(folder))
    restore(model, tensors)
    model.set_mode(Mode.QUANTIZED)
    return model


def beside_float(outlined: QuantViT, vit: VisionTransformer, where: str) -> QuantViT:
    """The outlined model with the weights of its float original.

    Raises:
        ArtifactError: the float model is of another architecture.
    """
    if vit.spec != outlined.spec:
        raise ArtifactError(
            "the float model is not the one that was quantized",
            where=where,
            got=str(vit.spec),
            expected=str(outlined.spec),
        )
    config = ModelConfig.from_text(outlined.config.to_yaml(), name=where)
    model = QuantViT(vit, config, outlined.preprocessing)
    outlines = outlined.point_modules()
    for name, point in model.point_modules().items():
        point.params, point.shape = outlines[name].params, outlines[name].shape
    return model


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a saved model.

    Raises:
        ArtifactError: missing, not JSON, of another format, or of a newer version.
    """
    path = folder / MANIFEST
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ArtifactError(f"cannot read the manifest: {error.strerror}", where=str(path)) from error
    except ValueError as error:
        raise ArtifactError(f"the manifest is not JSON: {error}", where=str(path)) from error
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise ArtifactError("not a vitquant model", where=str(path), expected=f'"format": "{FORMAT}"')
    version = manifest.get("format_version")
    if version != FORMAT_VERSION:
        raise ArtifactError(
            "the model was saved in another version of the format",
            where=str(path),
            got=version,
            expected=f"version {FORMAT_VERSION}",
            fix="install the vitquant that wrote it, or save it again with this one",
        )
    kinds = {"spec": dict, "preprocessing": dict, "config": str, "tensors": dict}
    wrong = [key for key, kind in kinds.items() if not isinstance(manifest.get(key), kind)]
    wrong += [] if wrong or "sha256" in manifest["tensors"] else ["tensors.sha256"]
    if wrong:
        raise ArtifactError("the manifest is incomplete", where=str(path), expected=f"the keys {', '.join(wrong)}")
    return manifest


def state(model: QuantViT) -> Iterator[tuple[str, Tensor]]:
    """Every tensor of the artifact, by name."""
    yield "token_table", model.token_table
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


def restore(model: QuantViT, tensors: dict[str, Tensor]) -> None:
    """Fill an outlined model with the tensors of an artifact, the inverse of :func:`state`."""
    model.token_table = tensors["token_table"]
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
    model.patch_embed.reset_pixels()


def restore_linear(linear: QuantLinear, tensors: dict[str, Tensor]) -> None:
    """The inverse of :func:`linear_state`."""
    name = linear.layer_name
    if linear.weight.active:
        linear.realize(tensors[f"{name}.codes"], tensors[f"{name}.bias"], tensors.get(f"{name}.input_scale"))
    else:
        linear.float_weight = tensors[f"{name}.float_weight"]
        linear.float_bias = tensors.get(f"{name}.float_bias")
        linear.gain = tensors.get(f"{name}.gain")
