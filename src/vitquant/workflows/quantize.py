"""The whole job in one call, and its steps."""

from __future__ import annotations

import collections
import math
from collections.abc import Iterator, Mapping, Sequence
from os import PathLike
from typing import Any, TypeAlias

import torch
from torch import nn

from vitquant.adapters.adapt import FloatModel, adapt
from vitquant.architectures.families import require_family
from vitquant.architectures.model import QuantModel
from vitquant.arguments import require_count, require_kind, require_path
from vitquant.calibration.calibrate import calibrate_batches, unchanged_if_it_fails
from vitquant.calibration.repair import RepairRecord, RepairStep, make_steps, repair_images
from vitquant.calibration.rewrite import REWRITES, rewrite_model
from vitquant.compiler.float_share import require_integers
from vitquant.config import AugmentationSettings, ModelConfig, Phase, StepSettings, load_config_from_yaml
from vitquant.data import Batch, CalibrationCheck, ImageSample, ImagesLike, model_batches, open_images
from vitquant.data.augmentation import with_copies
from vitquant.device import require_device
from vitquant.errors import ConfigError, DataError
from vitquant.layers import points_of
from vitquant.layers.memory import each_named
from vitquant.layers.plain_torch import plain_torch
from vitquant.layers.usage import using
from vitquant.progress import track

StepLike: TypeAlias = str | Mapping[str, Any] | StepSettings | RepairStep
ConfigLike: TypeAlias = ModelConfig | str | PathLike[str] | Mapping[str, Any]

__all__ = ["ConfigLike", "as_config", "calibrate", "load_config_from_yaml", "prepare", "quantize", "repair"]


def quantize(
    model: nn.Module | FloatModel | str,
    config: ConfigLike,
    *,
    calibration: ImagesLike,
    weights: str | PathLike[str] | None = None,
    weights_entry: str | None = None,
    img_size: int | tuple[int, int] | None = None,
    limit: int | None = None,
    batch_size: int = 8,
    device: str | torch.device = "cpu",
    strict: bool = False,
    output: str | None = None,
) -> QuantModel:
    """Quantize a Vision Transformer: build, calibrate, fold, repair. The result computes what integers will.

    Args:
        model: a timm model, our ``VisionTransformer``, a :class:`FloatModel`, or a name with ``weights``.
        config: a YAML file (shipped ones by name), a mapping, or a :class:`ModelConfig`.
        calibration: a folder of images, an ``.npz``, a tensor, or an iterable of tensors; see
            :func:`vitquant.data.open_images`.
        weights: local checkpoint that goes with a name.
        weights_entry: which of several models in the checkpoint to take; see :func:`vitquant.adapt`.
        img_size: input size that goes with a name, in pixels.
        limit: calibrate on at most so many images.
        batch_size: images in one forward. Statistics are streamed, so memory grows with this and with nothing else,
            except with the number of images that repair steps use (:func:`repair`).
        device: where to compute: any device of PyTorch that is there.
        strict: refuse a configuration that leaves a point in floating point.
        output: name of the main output, such as ``tokens`` for dense features; the model's first by default.

    Raises:
        VitquantError: see ``docs/failures.md`` for what can go wrong and how it reads.

    >>> import vitquant
    >>> float_model = vitquant.load_fashion()
    >>> images, _, test_images, _ = vitquant.load_fashion_images()
    >>> qmodel = vitquant.quantize(float_model, "vit_int8.yaml", calibration=images[:64])
    >>> qmodel(float_model.preprocessing.normalize(test_images[:2, None])).shape
    torch.Size([2, 10])
    """
    require_count(batch_size, "batch_size")
    qmodel = prepare(
        model,
        config,
        weights=weights,
        weights_entry=weights_entry,
        img_size=img_size,
        device=device,
        strict=strict,
        output=output,
    )
    return calibrate(qmodel, calibration, limit=limit, batch_size=batch_size)


@plain_torch()
def prepare(
    model: nn.Module | FloatModel | str,
    config: ConfigLike,
    *,
    weights: str | PathLike[str] | None = None,
    weights_entry: str | None = None,
    img_size: int | tuple[int, int] | None = None,
    device: str | torch.device = "cpu",
    strict: bool = False,
    output: str | None = None,
) -> QuantModel:
    """The first step of :func:`quantize`: the model with its points, not calibrated yet, in mode ``FP32``.

    It owns its tensors: the float model is neither changed nor needed any more.

    Raises:
        DeployabilityError: ``strict``, and a point stays float.
    """
    place = require_device(device)
    config = as_config(config)
    if isinstance(model, FloatModel):
        found = model
    else:
        found = adapt(model, weights=weights, weights_entry=weights_entry, img_size=img_size)
    qmodel = require_family(found.vit).quantized(found.vit, config, found.preprocessing).to(place)
    qmodel.choose_output(output)
    if strict:
        require_integers(qmodel)
    return qmodel


@plain_torch()
def calibrate(model: QuantModel, images: ImagesLike, *, limit: int | None = None, batch_size: int = 8) -> QuantModel:
    """The second step of :func:`quantize`: one pass over the images, after which the model is in mode ``QUANTIZED``.

    The steps of the section ``repair`` run: before the pass those that add images or rewrite float weights, after it
    those that change the integers, on some of the images.

    Warns:
        CalibrationImagesWarning: the images are of one colour, all the same, or noise.
        RepairWarning: a repair step made the output worse.

    Raises:
        DataError: no images, or images that the model cannot take.
        NumericsError: NaN or Inf in an image or an activation.
        LifecycleError: another thread computes with the model.
        OutOfMemoryError: naming the point, and the batch size that was too large.

    Whatever is raised, the model is as it was before; a calibrated one stays calibrated.
    """
    calibrate_and_repair(model, images, limit=limit, batch_size=batch_size)
    return model


@plain_torch()
def calibrate_and_repair(
    model: QuantModel, images: ImagesLike, *, limit: int | None = None, batch_size: int = 8
) -> tuple[RepairRecord, ...]:
    """What :func:`calibrate` does; returns what each repair step did."""
    require_kind(model, QuantModel, "model")
    require_count(batch_size, "batch_size")
    settings = model.config.repair
    rewrites = [REWRITES[step.name](step) for step in settings if step.phase is Phase.FLOAT]
    steps = make_steps([step for step in settings if step.phase is Phase.INTEGERS])
    copies = [step for step in settings if isinstance(step, AugmentationSettings)]
    source = open_images(images, model.preprocessing, limit=limit, ignore_labels=True)
    times = math.prod(1 + step.copies for step in copies)
    total, count = (n if n is None else n * times for n in (source.batch_count(batch_size), source.count))
    check = CalibrationCheck()
    sample = ImageSample(max([getattr(step, "images", 1) for step in settings], default=0), count)

    def read(task: str) -> Iterator[Batch]:
        found = model_batches(source, batch_size)
        if not check.count:  # the first time
            found = check.watch(found)
        for step in copies:
            found = with_copies(found, step.copies, step.seed)
        return track(each_named(found, "images", batch_size), task, total)

    with using(points_of(model), alone=True), unchanged_if_it_fails(model):
        if rewrites:
            seen = sample.watch(read("reading"))
            kept = collections.deque(seen, maxlen=0 if source.repeatable else None)
            rewrite_model(model, rewrites, sample.images, batch_size=batch_size)
            calibrate_batches(model, kept if kept else read("calibrating"))
        else:
            calibrate_batches(model, sample.watch(read("calibrating")))
        check.warn()
        return repair_images(model, steps, sample.images, batch_size=batch_size) if steps else ()


@plain_torch()
def repair(
    model: QuantModel,
    images: ImagesLike,
    steps: Sequence[StepLike] | None = None,
    *,
    limit: int | None = None,
    batch_size: int = 8,
) -> tuple[RepairRecord, ...]:
    """Run repair steps on a calibrated model, one after the other: methods that change it block by block.

    :func:`calibrate` and :func:`quantize` do this for the steps of the configuration. The model keeps its
    configuration, also if other steps are given here. Another calibration starts again from the float weights.

    Args:
        model: calibrated. It is changed in place.
        images: as for :func:`quantize`: the calibration images, or others, but none that the model is evaluated on. Of
            all images, each step uses evenly spaced ones, at most as many as its setting ``images`` says.
        steps: names, mappings as in a file (``{"bias_correction": {"images": 16}}``), settings, or steps of your own
            (:class:`vitquant.calibration.repair.RepairStep`). By default those of the configuration.
        limit: read at most this many images.
        batch_size: images in one forward.

    Returns:
        A record per step, with the SQNR of the model's output before and after it, in dB.

    Warns:
        RepairWarning: a step lowered that SQNR.

    Raises:
        ConfigError: an unknown step or setting.
        DataError: no images, or images that the model cannot take.
        LifecycleError: the model is not calibrated, or was loaded without its float weights, or another thread
            computes with it.
        OutOfMemoryError: naming the layer, and the batch size that was too large.

    Whatever is raised, the model is as it was before.

    >>> import vitquant
    >>> images, *_ = vitquant.load_fashion_images()
    >>> model = vitquant.quantize(vitquant.load_fashion(), "vit_int8.yaml", calibration=images[:64])
    >>> (record,) = vitquant.repair(model, images[:64], [{"bias_correction": {"images": 16}}])
    >>> record.step, record.images
    ('bias_correction', 16)
    """
    require_kind(model, QuantModel, "model").require_calibrated()
    require_count(batch_size, "batch_size")
    configured = [step for step in model.config.repair if step.phase is Phase.INTEGERS]
    made = make_steps(configured if steps is None else steps)
    source = open_images(images, model.preprocessing, limit=limit, ignore_labels=True)
    sample = ImageSample(max((step.settings.images for step in made), default=0), source.count)
    for _ in sample.watch(model_batches(source, batch_size)):
        pass
    if not sample.read:
        raise DataError("there are no images", where="images", fix="pass at least one image")
    return repair_images(model, made, sample.images, batch_size=batch_size) if made else ()


def as_config(config: ConfigLike) -> ModelConfig:
    """A configuration from a file, a shipped file's name, or a mapping.

    Raises:
        ConfigError: it is none of these, or something in it is wrong.
    """
    if isinstance(config, ModelConfig):
        return config
    if isinstance(config, Mapping):
        return ModelConfig.from_dict(config)
    if isinstance(config, str | PathLike):
        return ModelConfig.from_yaml(require_path(config, "config"))
    expected = "a YAML file, a shipped one's name, a mapping or a ModelConfig"
    raise ConfigError("not a configuration", where="config", got=type(config).__name__, expected=expected)
