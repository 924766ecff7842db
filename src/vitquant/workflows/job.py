"""The main job, from images to a folder of results. The pipeline is :func:`run`, top to bottom."""

from __future__ import annotations

import os
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

from vitquant.adapters.adapt import FloatModel
from vitquant.architectures.model import QuantModel
from vitquant.arguments import require_count, require_kind, require_path, require_whole
from vitquant.artifact.storage import TENSORS, encode_model
from vitquant.compiler.float_share import float_share
from vitquant.compiler.lowering import compile  # noqa: A004
from vitquant.data import ImagesLike, SharedImages, open_images
from vitquant.device import require_device
from vitquant.errors import DataError, DeployabilityError, NumericsError
from vitquant.files import require_writable, write_folder
from vitquant.measure import ModelProfile, evaluate, profile
from vitquant.measure.compare import compare_models
from vitquant.measure.evaluate import check_classes
from vitquant.measure.outliers import OutlierWarning, outlier_message
from vitquant.measure.profile import Exact, exact_points
from vitquant.program import storage
from vitquant.program.program import IntegerProgram
from vitquant.report.files import run_files
from vitquant.report.record import RunRecord
from vitquant.results import Evaluation
from vitquant.runs import MANIFEST, POINTS, SUMMARY
from vitquant.workflows.quantize import ConfigLike, as_config, calibrate_and_repair, prepare
from vitquant.workflows.record import float_bytes, integer_record, repair_step_record, run_record

RESULTS = {
    SUMMARY: "all metrics",
    POINTS: "metrics per point",
    "config.resolved.yaml": "the settings of each point",
    f"{MANIFEST}, {TENSORS}": "the quantized model",
}
PROGRAM_FILES = f"{storage.PROGRAM_MANIFEST}, {storage.PROGRAM_TENSORS}"


@dataclass(frozen=True)
class JobResult:
    """What the job found, and where it put it.

    ``record`` is what :func:`vitquant.load_run` reads from ``out``. ``program`` is ``None`` if integers cannot execute
    the configuration.
    """

    model: QuantModel
    evaluation: Evaluation
    profile: ModelProfile
    program: IntegerProgram | None
    record: RunRecord
    out: Path

    @property
    def files(self) -> dict[str, str]:
        """The files that were written, and what is in them."""
        return RESULTS | ({PROGRAM_FILES: "the integer program"} if self.program is not None else {})


def run(
    model: FloatModel,
    config: ConfigLike,
    *,
    calibration: ImagesLike,
    evaluation: ImagesLike,
    out: str | Path,
    calibration_limit: int | None = None,
    profile_images: int = 16,
    exact: Exact = (),
    batch_size: int = 8,
    seed: int = 0,
    device: str | torch.device = "cpu",
    strict: bool = False,
    ignore_labels: bool = False,
    output: str | None = None,
) -> JobResult:
    """Quantize, evaluate, profile, and write everything into ``out``.

    Nothing is written before all of it has been computed, and then all files are put there at once.

    Args:
        model: from :func:`vitquant.adapters.adapt.adapt`.
        config: file, mapping or :class:`ModelConfig`.
        calibration: images to calibrate on, as for :func:`vitquant.quantize`.
        evaluation: other images, to measure on; labels give top-1. They are read twice, so no generator will do.
        out: folder of the results, made if it does not exist. The files of an earlier run are replaced, others stay.
        calibration_limit: calibrate on at most so many images.
        profile_images: how many of the evaluation images to profile on.
        exact: points whose isolated SQNR is measured rather than estimated, as for :func:`vitquant.profile`.
        batch_size: images in one forward.
        seed: seed of torch's generators, recorded in ``summary.json``. The steps are deterministic and draw from none;
            it matters only to images that do, such as those of a ``DataLoader`` that shuffles.
        device: where to compute: any device of PyTorch that is there.
        strict: refuse a configuration that leaves a point in floating point.
        ignore_labels: evaluate without the labels of the images.
        output: name of the main output, such as ``tokens``; the model's first by default.

    Raises:
        VitquantError: whatever goes wrong; ``out`` is as it was before.
    """
    start = time.perf_counter()
    require_kind(model, FloatModel, "model")
    require_count(batch_size, "batch_size")
    require_count(profile_images, "profile_images")
    place = require_device(device)
    out = require_path(out, "out")
    # With 8 bits a weight the model takes a quarter of the float model's size, and so does the program.
    require_results_folder(out, space=float_bytes(model) // 2)
    torch.manual_seed(require_whole(seed, "seed", -(2**63), 2**63 - 1))

    seconds: dict[str, float] = {}
    quantized = prepare(model, as_config(config), device=place, strict=strict, output=output)
    kept_float = float_share(quantized)
    exact_points(quantized, exact)
    # What can be known to be wrong with these images is found before the long work.
    shared = SharedImages()
    opened = open_images(calibration, model.preprocessing, limit=calibration_limit, ignore_labels=True)
    calib_source = shared.calibrating(opened)
    eval_source = shared.evaluating(open_images(evaluation, model.preprocessing, ignore_labels=ignore_labels))
    check_classes(eval_source, quantized)
    if not eval_source.repeatable:
        raise DataError(
            "the images are read twice, for evaluation and profile, but this source can be iterated only once",
            where="evaluation",
            got=type(evaluation).__name__,
            fix="pass a list, a tensor, a DataLoader, a folder or an .npz file",
        )
    with stopwatch(seconds, "calibrate"):
        repairs = calibrate_and_repair(quantized, calib_source, batch_size=batch_size)
    with stopwatch(seconds, "compile"):
        program, refusal = lower(quantized, model.name)
    with stopwatch(seconds, "evaluate"):
        if program is None:
            integer, evaluated = None, evaluate(quantized, eval_source, batch_size=batch_size)
        else:
            comparison = compare_models(quantized, program, eval_source, batch_size=batch_size)
            integer, evaluated = integer_record(program, comparison), comparison.evaluation
    shared.warn()
    with stopwatch(seconds, "profile"):
        profiled = profile(quantized, evaluation, limit=profile_images, batch_size=batch_size, exact=exact)
    if profiled.outliers:
        warnings.warn(outlier_message(profiled.outliers), OutlierWarning, stacklevel=2)
    seconds["total"] = time.perf_counter() - start

    record = run_record(
        model,
        quantized,
        evaluation=evaluated,
        profile=profiled,
        kept_float=kept_float,
        integer=integer,
        refusal=refusal,
        seed=seed,
        calibration_images=shared.calibration_images,
        seconds=seconds,
        repair=tuple(map(repair_step_record, repairs)),
    )
    files = encode_model(quantized) | {"config.resolved.yaml": quantized.config.to_yaml()} | run_files(record)
    if program is not None:
        files = storage.program_files(program) | files
    # A program that lies there and is not replaced is that of another model.
    write_folder(out, files, remove=[name for name in storage.FILES if name not in files])
    return JobResult(quantized, evaluated, profiled, program, record, out)


def require_results_folder(out: Path, *, space: int = 0) -> None:
    """Refuse a folder that the results cannot be written into, before the work for them; nothing is made.

    Raises:
        DataError: it is a file.
        OutputError: it cannot be written, or there is less space than ``space`` bytes.
    """
    if os.path.lexists(out) and not os.path.isdir(out):
        raise DataError("the output folder is a file", where=str(out), fix="choose another folder")
    require_writable(out, folder=True, space=space)


def lower(model: QuantModel, name: str) -> tuple[IntegerProgram | None, str | None]:
    """The integer program of a calibrated model, or why integers cannot execute it."""
    try:
        return compile(model, name=name), None
    except (DeployabilityError, NumericsError) as error:
        return None, str(error)


@contextmanager
def stopwatch(seconds: dict[str, float], name: str) -> Iterator[None]:
    """Note how long the block took."""
    start = time.perf_counter()
    yield
    seconds[name] = time.perf_counter() - start
