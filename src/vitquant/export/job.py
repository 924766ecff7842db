"""Export, run what was exported, compare, write the graph and what came of it."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from vitquant.data import ImagesLike, Preprocessing, open_images
from vitquant.errors import AgreementError
from vitquant.export.onnx_integer import export_integer
from vitquant.export.onnx_qdq import export_qdq, notes
from vitquant.export.runtime import SESSIONS, runtime_name
from vitquant.files import write_together
from vitquant.integer.classify import preprocessing_of
from vitquant.integer.program import IntegerProgram
from vitquant.integer.reference import Reference
from vitquant.models.quant_vit import QuantViT
from vitquant.profiling import SqnrMeter

REPORT = "verify.json"
MIN_QDQ_DB = 15.0
"""A quantize/dequantize graph computes LayerNorm, softmax and GELU in float, so its codes part from the simulation's;
below this it is another model."""

BATCH = 8


@dataclass(frozen=True)
class Verification:
    """What was compared, and how it came out. ``sqnr_db`` is against what ``compared_with`` names."""

    form: str
    compared_with: str
    runtime: str
    images: int
    source: str
    equal: bool
    largest_difference: float
    sqnr_db: float
    ok: bool
    bytes: int
    sha256: str
    notes: tuple[str, ...] = ()

    def __str__(self) -> str:
        if self.equal:
            found = "equal, bit for bit" if self.form == "integer" else "equal"
        else:
            found = f"{self.sqnr_db:.1f} dB, differs by up to {self.largest_difference:.4g}"
        return f"{self.runtime} against the {self.compared_with}, {self.images} images: {found}"


def export_onnx_integer(
    program: IntegerProgram, path: str | Path, *, images: ImagesLike | None = None, count: int = 100
) -> Verification:
    """Write a program as an ONNX graph of integer operators, and compare ONNX Runtime's logits with the reference's.

    Args:
        program: what to export.
        path: the ``.onnx`` file; ``verify.json`` is written beside it.
        images: pictures to compare on; made-up ones if there are none.
        count: how many of them.

    Raises:
        MissingDependencyError: ``onnx`` or ``onnxruntime`` is not installed.
        AgreementError: the logits differ; both files are written, marked as failed.
    """
    blob = export_integer(program).SerializeToString()
    pixels, source = pixels_for(preprocessing_of(program), images, count)
    reference = Reference(program)
    wanted = torch.cat([reference(batch).codes for batch in torch.split(pixels, BATCH)])
    session = SESSIONS["onnxruntime"](blob)
    found = torch.cat([torch.from_numpy(session(batch.numpy())) for batch in torch.split(pixels, BATCH)])
    verification = compared("integer", "reference executor", blob, wanted, found, source, "onnxruntime")
    return finish(verification, blob, Path(path))


def export_onnx_qdq(
    model: QuantViT,
    path: str | Path,
    *,
    target: str = "onnxruntime",
    images: ImagesLike | None = None,
    count: int = 16,
) -> Verification:
    """Write a calibrated model as a quantize/dequantize ONNX graph, and compare it with the simulation.

    Args:
        model: calibrated, in mode ``QUANTIZED``.
        path: the ``.onnx`` file; ``verify.json`` is written beside it.
        target: ``onnxruntime``, ``openvino`` or ``tensorrt``: what each takes is told in ``docs/export.md``.
        images: pictures to compare on; made-up ones if there are none.
        count: how many of them.

    Raises:
        MissingDependencyError: ``onnx`` or the runtime is not installed.
        DeployabilityError: the target cannot take these settings.
        AgreementError: the graph is another model; both files are written, marked as failed.
    """
    exported = export_qdq(model, target=target)
    blob = exported.SerializeToString()
    pixels, source = pixels_for(model.preprocessing, images, count)
    batches = [model.preprocessing.normalize(batch) for batch in torch.split(pixels, BATCH)]
    runtime = "openvino" if target == "openvino" else "onnxruntime"
    with torch.no_grad():
        wanted = torch.cat([model(batch) for batch in batches])
    session = SESSIONS[runtime](blob)
    found = torch.cat([torch.from_numpy(session(batch.numpy())) for batch in batches])
    told = [f"{point}: {note}" for point, note in notes(exported).items()]
    if target == "tensorrt":
        told.append("compared in ONNX Runtime; TensorRT itself was not run")
    verification = compared("qdq", "simulation", blob, wanted, found, source, runtime, told)
    return finish(verification, blob, Path(path))


def pixels_for(preprocessing: Preprocessing, images: ImagesLike | None, count: int) -> tuple[Tensor, str]:
    """``count`` images ``uint8 [N, C, h, w]``, and where they come from."""
    if images is None:
        return made_up(preprocessing.shape, count), f"{count} made-up images"
    batches = open_images(images, preprocessing).batches(BATCH)
    pixels = torch.cat([preprocessing.to_pixels(b.images) for b in islice(batches, -(-count // BATCH))])
    return pixels[:count], str(images) if isinstance(images, str | Path) else "given images"


def made_up(shape: tuple[int, int, int], count: int) -> Tensor:
    """Smooth shapes with some noise, the same ones every time; black and white first."""
    generator = torch.Generator().manual_seed(0)
    colours, height, width = shape
    smooth = F.interpolate(torch.rand(count, colours, 5, 5, generator=generator), (height, width), mode="bicubic")
    noise = torch.rand(count, *shape, generator=generator)
    images = ((0.8 * smooth + 0.2 * noise) * 255).round().clamp(0, 255).to(torch.uint8)
    images[0] = 0
    images[1:2] = 255
    return images


def compared(
    form: str,
    compared_with: str,
    blob: bytes,
    wanted: Tensor,
    found: Tensor,
    source: str,
    runtime: str,
    told: list[str] | None = None,
) -> Verification:
    """The figures of a comparison of outputs."""
    meter = SqnrMeter()
    meter.add(wanted.double(), found.double())
    equal = torch.equal(wanted, found)
    finite = bool(found.double().isfinite().all())
    return Verification(
        form=form,
        compared_with=compared_with,
        runtime=runtime_name(runtime),
        images=len(wanted),
        source=source,
        equal=equal,
        largest_difference=float((wanted.double() - found.double()).abs().max()),
        sqnr_db=round(meter.db, 2) if finite else 0.0,
        ok=equal if form == "integer" else finite and meter.db >= MIN_QDQ_DB,
        bytes=len(blob),
        sha256=hashlib.sha256(blob).hexdigest(),
        notes=tuple(told or ()),
    )


def finish(verification: Verification, blob: bytes, path: Path) -> Verification:
    """Write the graph and its entry in ``verify.json``; complain if they disagree."""
    path.parent.mkdir(parents=True, exist_ok=True)
    report = path.with_name(REPORT)
    entries = {**read_report(report), path.name: asdict(verification)}
    write_together({path: blob, report: json.dumps(entries, indent=2) + "\n"})
    if not verification.ok:
        raise AgreementError(
            f"the exported graph disagrees with the {verification.compared_with}; it is marked as failed in {report}",
            where=str(path),
            got=str(verification),
            expected="equal logits" if verification.form == "integer" else f"at least {MIN_QDQ_DB:.0f} dB",
            fix="do not ship it; try another version of the runtime",
        )
    return verification


def read_report(path: Path) -> dict[str, Any]:
    """The entries of earlier exports into the same folder."""
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return entries if isinstance(entries, dict) else {}
