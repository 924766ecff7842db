"""The sensitivity table of a model and its images, kept in a cache."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from vitquant.adapters.adapt import FloatModel
from vitquant.architectures.model import QuantModel
from vitquant.arguments import require_count, require_kind, require_path
from vitquant.compiler.deployability import Deployability
from vitquant.config import QuantConfig
from vitquant.config.candidates import Candidates
from vitquant.data import ImagesLike, model_batches, open_images
from vitquant.errors import ArtifactError, ConfigError, DataError
from vitquant.files import write_folder
from vitquant.layers import QuantLinear
from vitquant.measure.table import estimate
from vitquant.numerics.sqnr import decibel
from vitquant.report.sensitivity import SensitivityTable, Setting, load_sensitivity
from vitquant.version import __version__
from vitquant.workflows.quantize import ConfigLike, as_config, calibrate, prepare

DEFAULT = Candidates(bits=(4, 6, 8, 16), weight_bits=(3, 4, 6, 8), observers=("minmax", "omse"))
DRAWS = 8
"""Random vectors per image."""
HELD_OUT = 4
"""One of so many images is held out."""


def hold_out(count: int) -> Tensor:
    """Which of so many images are held out: every fourth one, at least one if there are two; bool ``[count]``.

    >>> hold_out(6).tolist()
    [False, False, False, True, False, False]
    >>> hold_out(2).tolist()
    [False, True]
    """
    place = min(HELD_OUT, count) - 1
    return (torch.arange(count) % HELD_OUT == place) & (count > 1)


def read_pixels(images: ImagesLike, model: QuantModel | FloatModel, limit: int | None = None) -> Tensor:
    """The images as one tensor, ``uint8 [N, C, h, w]``.

    Raises:
        DataError: there are fewer than two, so that none could be held out.
    """
    source = open_images(images, model.preprocessing, limit=limit, ignore_labels=True)
    batches = [batch.pixels for batch in model_batches(source, 16)]
    count = sum(map(len, batches))
    if count < 2:
        fix = "give at least two images: some calibrate, others are held out to choose on"
        raise DataError("too few images", where="calibration", got=count, expected="at least two images", fix=fix)
    return torch.cat(batches)


def candidate_settings(
    model: QuantModel, candidates: Candidates, *, simulation_only: bool = False
) -> dict[str, list[QuantConfig]]:
    """The other settings of each quantized point that the main output depends on.

    Args:
        model: calibrated or not.
        candidates: what to compare.
        simulation_only: also settings that integers cannot execute.

    Raises:
        ConfigError: a pattern matches no such point, or no point has another setting.
    """
    graph = model.graph.choose()
    reached = {point.name for point in graph.points()}
    active = {name: point for name, point in model.point_modules().items() if point.active and name in reached}
    judge = Deployability(model.graph, model.graph.shapes(model.preprocessing.shape))
    found = {}
    for name in candidates.chosen(list(active)):
        configs = candidates.of(name, active[name].require_config())
        found[name] = [c for c in configs if simulation_only or judge.ships_alone(active[name], c)]
    if not any(found.values()):
        expected = "bits, observers, granularities or forms of softmax that differ from those of the points"
        raise ConfigError("there is nothing to compare", where="candidates", expected=expected)
    return found


def sensitivity(
    model: QuantModel,
    images: ImagesLike,
    *,
    candidates: Candidates = DEFAULT,
    name: str = "model",
    limit: int | None = None,
    draws: int = DRAWS,
    seed: int = 0,
    batch_size: int = 8,
    exact: bool = False,
    simulation_only: bool = False,
    cache: str | Path | None = None,
) -> SensitivityTable:
    """What every point of a model costs at the output, with the settings that it has and with others.

    Every fourth image is held out: the others give the parameters of the settings that are compared, and all figures
    are those on the images that are held out. For figures to be comparable, calibrate the model on the same images
    without these (:func:`calibration_part`). Repair steps are not repeated for other settings.

    Args:
        model: calibrated; it is the same afterwards.
        images: calibration images, as for :func:`vitquant.quantize`. They are kept in memory.
        candidates: the settings to compare.
        name: of the model, for the table.
        limit: use at most so many images.
        draws: random vectors per image for the estimates (:mod:`vitquant.measure.sensitivity`).
        seed: of the random vectors.
        batch_size: images in one forward.
        exact: measure each setting by running the model, rather than estimate it.
        simulation_only: also compare settings that integers cannot execute.
        cache: a folder in which tables are kept; the same model, images and settings give the table from there.

    Raises:
        ConfigError: a pattern matches no point, or there is nothing to compare.
        DataError: fewer than two images.
        LifecycleError: the model is not calibrated, or has no float weights.
    """
    require_kind(model, QuantModel, "model").require_calibrated()
    require_kind(candidates, Candidates, "candidates")
    require_count(draws, "draws")
    require_count(batch_size, "batch_size")
    settings = candidate_settings(model, candidates, simulation_only=simulation_only)
    pixels = read_pixels(images, model, limit)
    described = {name: [c.model_dump() for c in configs] for name, configs in settings.items()}
    parts = (described, draws, seed, exact, name)
    place = None if cache is None else require_path(cache, "cache") / fingerprint(model, pixels, *parts)
    if place is not None and place.is_dir():
        try:
            return load_sensitivity(place)
        except ArtifactError:  # it is computed and written again
            pass
    held_out = hold_out(len(pixels))
    found = estimate(model, pixels, held_out, settings, draws=draws, seed=seed, batch_size=batch_size, exact=exact)
    signal = float(found.signal[held_out].sum())
    points = model.point_modules()
    table = SensitivityTable(
        model=name,
        output=next(iter(model.graph.outputs)),
        settings=tuple(Setting(point, config, config == points[point].config) for point, config in found.rows),
        products=found.products.numpy(),
        signal=found.signal.numpy(),
        noise=found.noise.numpy(),
        held_out=held_out.numpy(),
    )
    if found.exact:
        table = table.with_exact({row: decibel(signal, noise) for row, noise in enumerate(found.exact)})
    if place is not None:
        write_folder(place, table.files())
    return table


def calibrated(
    model: FloatModel,
    config: ConfigLike,
    pixels: Tensor,
    *,
    batch_size: int = 8,
    device: str | torch.device = "cpu",
    output: str | None = None,
) -> QuantModel:
    """A model calibrated on the images that are not held out."""
    made = prepare(model, as_config(config), device=device, output=output)
    return calibrate(made, pixels[~hold_out(len(pixels))], batch_size=batch_size)


def fingerprint(model: QuantModel, pixels: Tensor, *described: object) -> str:
    """A digest of a calibrated model, images and settings, which names the table in a cache."""
    digest = hashlib.blake2b(digest_size=16)
    for text in (__version__, model.config.to_yaml(), json.dumps(described, sort_keys=True, default=str)):
        digest.update(text.encode() + b"\0")
    for array in (*tensors_of(model), pixels.contiguous().numpy()):
        digest.update(str((array.dtype, array.shape)).encode() + array.tobytes())
    return digest.hexdigest()


def tensors_of(model: QuantModel) -> Iterable[np.ndarray]:
    """All that a calibrated model computes with."""
    for tensor in model.state_dict().values():
        yield tensor.cpu().numpy()
    for module in model.modules():
        if isinstance(module, QuantLinear):
            yield module.weight_codes.cpu().numpy()
            yield module.bias_hat.cpu().numpy()
    for point in model.point_modules().values():
        if point.params is not None:
            yield point.params.scale.cpu().numpy()
            yield point.params.zero_point.cpu().numpy()
