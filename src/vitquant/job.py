"""The main job, from images to a folder of results. The pipeline is :func:`run`, top to bottom."""

from __future__ import annotations

import json
import resource
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from vitquant.api import ConfigLike, as_config, calibrate, prepare
from vitquant.data import ImagesLike, open_images
from vitquant.errors import DataError
from vitquant.files import write_atomically
from vitquant.models.adapt import FloatModel
from vitquant.models.artifact import MANIFEST, TENSORS, save
from vitquant.models.quant_vit import QuantViT
from vitquant.profiling import Evaluation, ModelProfile, evaluate, profile
from vitquant.profiling.report import points_csv
from vitquant.version import __version__

RESULTS = {
    "summary.json": "the figures",
    "points.csv": "what every point loses",
    "config.resolved.yaml": "the settings of every point",
    f"{MANIFEST}, {TENSORS}": "the quantized model",
}


@dataclass(frozen=True)
class JobResult:
    """What the job found, and where it put it."""

    model: QuantViT
    evaluation: Evaluation
    profile: ModelProfile
    summary: dict[str, Any]
    out: Path


def run(
    model: FloatModel,
    config: ConfigLike,
    *,
    calibration: ImagesLike,
    evaluation: ImagesLike,
    out: str | Path,
    calibration_limit: int | None = None,
    profile_images: int = 16,
    batch_size: int = 8,
    seed: int = 0,
    device: str = "cpu",
) -> JobResult:
    """Quantize, evaluate, profile, and write everything into ``out``.

    Nothing is written before all of it has been computed.

    Args:
        model: from :func:`vitquant.models.adapt.adapt`.
        config: file, mapping or :class:`ModelConfig`.
        calibration: images to calibrate on, as for :func:`vitquant.quantize`.
        evaluation: other images, to measure on; labels give top-1. They are read twice, so no generator will do.
        out: folder of the results, made if it does not exist. Files of an earlier run are replaced one by one.
        calibration_limit: calibrate on at most so many images.
        profile_images: how many of the evaluation images to profile on.
        batch_size: images in one forward.
        seed: seed of torch's generators, recorded in ``summary.json``. The steps are deterministic and draw from none;
            it matters only to images that do, such as those of a ``DataLoader`` that shuffles.
        device: ``"cpu"`` or ``"cuda"``.

    Raises:
        VitquantError: whatever goes wrong; ``out`` is as it was before.
    """
    start = time.perf_counter()
    out = Path(out)
    if out.exists() and not out.is_dir():
        raise DataError("the results need a folder", where=str(out), got="a file", fix="choose another folder")
    torch.manual_seed(seed)

    seconds: dict[str, float] = {}
    quantized = prepare(model, as_config(config), device=device)
    # What can be known to be wrong with these images is found before the long work.
    eval_source = open_images(evaluation, model.preprocessing)
    if not eval_source.repeatable:
        raise DataError(
            "the images are read twice, to evaluate and to profile, and these can be iterated only once",
            where="evaluation",
            got=type(evaluation).__name__,
            fix="give a list, a tensor, a DataLoader, a folder or an .npz file",
        )
    with stopwatch(seconds, "calibrate"):
        calibrate(quantized, calibration, limit=calibration_limit, batch_size=batch_size)
    with stopwatch(seconds, "evaluate"):
        evaluated = evaluate(quantized, eval_source, batch_size=batch_size)
    with stopwatch(seconds, "profile"):
        profiled = profile(quantized, evaluation, limit=profile_images, batch_size=batch_size)
    seconds["total"] = time.perf_counter() - start

    summary = summarize(model, evaluated, profiled, seconds, seed)
    save(quantized, out)
    write_atomically(out / "config.resolved.yaml", quantized.config.to_yaml())
    write_atomically(out / "points.csv", points_csv(profiled))
    write_atomically(out / "summary.json", json.dumps(summary, indent=2) + "\n")
    return JobResult(quantized, evaluated, profiled, summary, out)


@contextmanager
def stopwatch(seconds: dict[str, float], name: str) -> Iterator[None]:
    """Note how long the block took."""
    start = time.perf_counter()
    yield
    seconds[name] = time.perf_counter() - start


def summarize(
    model: FloatModel, evaluated: Evaluation, profiled: ModelProfile, seconds: dict[str, float], seed: int
) -> dict[str, Any]:
    """The content of ``summary.json``."""
    return {
        "vitquant": __version__,
        "model": model.name,
        "parity_db": None if model.parity_db is None else min(round(model.parity_db, 2), 300.0),
        "preprocessing": model.preprocessing.to_dict(),
        "notes": list(model.notes),
        "seed": seed,
        "images": evaluated.images,
        "fp32": {"top1": evaluated.fp32_top1},
        "quantized": {"top1": evaluated.quantized_top1, "agreement": evaluated.agreement},
        "sqnr_db": round(evaluated.sqnr_db, 3),
        "sqnr_final_norm_db": round(evaluated.sqnr_final_norm_db, 3),
        "profile_images": profiled.images,
        "points": {
            p.name: {
                "active": p.active,
                "sqnr_isolated_db": None if p.sqnr_isolated_db is None else round(p.sqnr_isolated_db, 3),
                "sqnr_cumulative_db": None if p.sqnr_cumulative_db is None else round(p.sqnr_cumulative_db, 3),
            }
            for p in profiled.points
        },
        "seconds": {name: round(value, 3) for name, value in seconds.items()},
        "peak_rss_mb": round(peak_rss_mb(), 1),
    }


def peak_rss_mb() -> float:
    """Largest resident memory of this process so far, in MB (10^6 bytes)."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak * (1 if sys.platform == "darwin" else 1024) / 1e6
