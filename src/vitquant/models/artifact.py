"""The saved quantized model: ``model.safetensors`` and ``manifest.json``.

Weights are stored as their integer codes; the float weights they came from are not stored. The manifest names the
format, its version, the architecture, the preprocessing, the resolved configuration and the digest of the tensor file.
Nothing in either file is executed.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor, nn

from vitquant.config import ModelConfig
from vitquant.data.preprocessing import Preprocessing
from vitquant.errors import ArtifactError, ConfigError, ModelError
from vitquant.files import write_together
from vitquant.layers import Mode, QuantLinear, QuantNorm
from vitquant.models.quant_vit import QuantViT
from vitquant.models.vit import VisionTransformer, ViTSpec
from vitquant.numerics.affine import QuantParams, code_range
from vitquant.version import __version__

FORMAT, FORMAT_VERSION = "vitquant-model", 1
TENSORS, MANIFEST = "model.safetensors", "manifest.json"


def save(model: QuantViT, folder: str | Path) -> None:
    """Write a calibrated model into ``folder``, whose other files stay as they are.

    Both files are written beside their places and then renamed: if one cannot be written, the old model stays. The
    manifest holds the digest of the tensors, so that :func:`load` refuses a mixture, should the power fail in between.

    Raises:
        LifecycleError: the model is not calibrated.
    """
    model.require_calibrated()
    tensors = save_tensors({name: t.detach().cpu().contiguous().clone() for name, t in state(model)})
    manifest = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "vitquant": __version__,
        "spec": asdict(model.spec),
        "preprocessing": model.preprocessing.to_dict(),
        "config": model.config.to_yaml(),
        "tensors": {"file": TENSORS, "sha256": hashlib.sha256(tensors).hexdigest(), "bytes": len(tensors)},
    }
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    write_together({folder / TENSORS: tensors, folder / MANIFEST: json.dumps(manifest, indent=2)})


def load(folder: str | Path) -> QuantViT:
    """Read a saved model; it is in mode ``QUANTIZED``, the only one it knows, and gives the outputs that were saved.

    Raises:
        ArtifactError: a file is missing, damaged, of another format, or of a newer version.
    """
    folder = Path(folder)
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
        with torch.device("meta"):
            model = QuantViT(VisionTransformer(spec), config, preprocessing)
        restore(model, load_tensors(blob))
    except (KeyError, TypeError, ValueError, AttributeError, SafetensorError, ConfigError, ModelError) as error:
        raise ArtifactError(f"the saved model is damaged: {error}", where=str(folder)) from error
    model.set_mode(Mode.QUANTIZED)
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


def linear_state(linear: QuantLinear) -> Iterator[tuple[str, Tensor]]:
    """Integer weights, or the float ones where the weights stay float."""
    name = linear.layer_name
    if linear.weight.active:
        named = {"codes": linear.weight_codes, "bias": linear.bias_hat, "input_scale": linear.input_scale}
    else:
        named = {"float_weight": linear.float_weight, "float_bias": linear.float_bias, "gain": linear.gain}
    return ((f"{name}.{key}", tensor) for key, tensor in named.items() if tensor is not None)


def restore(model: QuantViT, tensors: dict[str, Tensor]) -> None:
    """Fill a model that was built without data from the tensors of an artifact."""
    rest = dict(tensors)
    model.token_table = rest.pop("token_table")
    for name, point in model.point_modules().items():
        if point.active and point.observes:
            config = point.require_config()
            qmin, qmax = code_range(config.bit_type.bits, config.bit_type.signed, point.narrow)
            scale = rest.pop(f"{name}.scale")
            zero_point = rest.pop(f"{name}.zero_point") if qmin == 0 else torch.zeros_like(scale)
            point.params = QuantParams(scale, zero_point, qmin, qmax)
    for module in model.modules():
        if isinstance(module, QuantNorm):
            module.norm.weight = nn.Parameter(rest.pop(f"{module.name}.gamma"), requires_grad=False)
            module.norm.bias = nn.Parameter(rest.pop(f"{module.name}.beta"), requires_grad=False)
        elif isinstance(module, QuantLinear):
            restore_linear(module, rest)
    model.patch_embed.reset_pixels()
    if rest:
        problem = "the saved model holds tensors that its configuration does not know"
        raise ArtifactError(problem, where=TENSORS, got=sorted(rest)[:5])


def restore_linear(linear: QuantLinear, rest: dict[str, Tensor]) -> None:
    """The inverse of :func:`linear_state`."""
    name, shape = linear.layer_name, linear.float_weight.shape
    if linear.weight.active:
        codes = rest.pop(f"{name}.codes")
        if codes.shape != shape:
            raise ArtifactError(
                "wrong shape", where=f"{name}.codes", got=tuple(codes.shape), expected=str(tuple(shape))
            )
        linear.realize(codes, rest.pop(f"{name}.bias"), rest.pop(f"{name}.input_scale", None))
    else:
        linear.float_weight = rest.pop(f"{name}.float_weight")
        linear.float_bias = rest.pop(f"{name}.float_bias", None)
        linear.gain = rest.pop(f"{name}.gain", None)
