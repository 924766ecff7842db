"""Export, run what was exported, compare, write the graph and what came of it."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from vitquant.architectures.model import QuantModel
from vitquant.arguments import require_count, require_kind, require_path
from vitquant.artifact.storage import run_id
from vitquant.data import ImagesLike, Preprocessing, open_images
from vitquant.errors import AgreementError, ConfigError, VitquantError
from vitquant.executors.reference import Reference
from vitquant.export.onnx.integer import OPSET, export_integer
from vitquant.export.onnx.qdq import export_qdq, notes
from vitquant.export.onnx.runtime import SESSIONS, runtime_name
from vitquant.files import json_text, require_writable, write_folder
from vitquant.measure import SqnrMeter
from vitquant.program.program import IntegerProgram
from vitquant.runs import KEY
from vitquant.strict_files import MAX_MANIFEST_BYTES, parse_json, read_file
from vitquant.workflows.classify import preprocessing_of

REPORT = "verify.json"
MIN_QDQ_DB = 15.0
"""A quantize/dequantize graph computes LayerNorm, softmax and GELU in float, so its codes part from the simulation's;
below this it is another model."""

BATCH = 8

COMPARED_WITH = {"integer": "reference executor", "qdq": "simulation"}
CAVEATS = {"tensorrt": "compared in ONNX Runtime; TensorRT itself was not run"}


@dataclass(frozen=True)
class Exported:
    """A serialized graph, what it was made for, and at which points it departs from the simulation."""

    form: str
    blob: bytes
    opset: int
    run: str | None
    target: str | None = None
    notes: tuple[str, ...] = ()

    @property
    def runtime(self) -> str:
        """Where it is run, to compare it."""
        return "openvino" if self.target == "openvino" else "onnxruntime"


@dataclass(frozen=True)
class Verification:
    """What was compared, and how it came out.

    ``sqnr_db`` and ``largest_difference`` are against what ``compared_with`` names; where the graph gives NaN or
    infinity they are 0 and ``None``. ``target`` is ``None`` for the integer form, which is the same for all. ``run`` is
    the run of the model, as its files name it.
    """

    form: str
    target: str | None
    opset: int
    compared_with: str
    runtime: str
    images: int
    source: str
    equal: bool
    largest_difference: float | None
    sqnr_db: float
    ok: bool
    bytes: int
    sha256: str
    run: str | None = None
    caveat: str | None = None
    notes: tuple[str, ...] = ()

    def __str__(self) -> str:
        if self.equal:
            found = "identical"
        elif self.largest_difference is None:
            found = "the output contains NaN or Inf"
        else:
            found = f"SQNR {self.sqnr_db:.1f} dB, largest difference {self.largest_difference:.4g}"
        return f"{self.runtime} compared with the {self.compared_with} on {self.images} images: {found}"


def export_onnx_integer(
    program: IntegerProgram,
    path: str | Path,
    *,
    images: ImagesLike | None = None,
    count: int = 100,
    outputs: Sequence[str] = (),
) -> Verification:
    """Write a program as an ONNX graph of integer operators, and compare ONNX Runtime's outputs with the reference's.

    Args:
        program: what to export.
        path: the ``.onnx`` file; ``verify.json`` is written beside it.
        images: pictures to compare on; made-up ones if there are none.
        count: how many of them.
        outputs: names of those that the graph gives; the first one, if none is named.

    Raises:
        ConfigError: the program has no such output, ``path`` is not that of an ``.onnx`` file, or what is called
            ``verify.json`` there is none.
        MissingDependencyError: ``onnx`` or ``onnxruntime`` is not installed.
        AgreementError: the logits differ; both files are written, marked as failed. Or the runtime does not run the
            graph; nothing is written.
    """
    path = destination(path)
    require_kind(program, IntegerProgram, "program")
    require_count(count, "count")
    graph = export_integer(program, outputs)
    exported = Exported("integer", graph.SerializeToString(), OPSET, program.metadata.get(KEY))
    pixels, source = pixels_for(preprocessing_of(program), images, count)
    batches = torch.split(pixels, BATCH)
    reference = Reference(program, outputs=outputs)
    wanted = torch.cat([joined(output.codes for output in reference.all(batch).values()) for batch in batches])
    return finish(compared(exported, wanted, outputs_of(exported, batches, path), source), exported.blob, path)


def export_onnx_qdq(
    model: QuantModel,
    path: str | Path,
    *,
    target: str = "onnxruntime",
    opset: int | None = None,
    packed: bool = True,
    images: ImagesLike | None = None,
    count: int = 16,
    outputs: Sequence[str] = (),
) -> Verification:
    """Write a calibrated model as a quantize/dequantize ONNX graph, and compare it with the simulation.

    Args:
        model: calibrated, in mode ``QUANTIZED``.
        path: the ``.onnx`` file; ``verify.json`` is written beside it.
        target: ``onnxruntime``, ``openvino`` or ``tensorrt``: what each takes is told in ``docs/export.md``.
        opset: of the graph, 18 to 21; without it the target's own.
        packed: store 4-bit weights as INT4 where opset and target have it, otherwise as int8.
        images: pictures to compare on; made-up ones if there are none.
        count: how many of them.
        outputs: names of those that the graph gives; the main one, if none is named.

    Raises:
        ConfigError: an unknown target or output, an opset that is not written, or a ``path`` as for
            :func:`export_onnx_integer`.
        MissingDependencyError: ``onnx`` or the runtime is not installed.
        AgreementError: the graph is another model; both files are written, marked as failed. Or the runtime does not
            run the graph; nothing is written.
    """
    path = destination(path)
    require_kind(model, QuantModel, "model")
    require_kind(target, str, "target")
    require_count(count, "count")
    if opset is not None:
        require_count(opset, "opset")
    graph = export_qdq(model, target=target, opset=opset, packed=packed, outputs=outputs)
    told = tuple(f"{point}: {note}" for point, note in notes(graph).items())
    exported = Exported("qdq", graph.SerializeToString(), graph.opset_import[0].version, run_id(model), target, told)
    pixels, source = pixels_for(model.preprocessing, images, count)
    batches = [model.preprocessing.normalize(batch) for batch in torch.split(pixels, BATCH)]
    with torch.no_grad():
        names = list(model.graph.choose(outputs).outputs)
        wanted = torch.cat([joined(model.outputs(batch, names).values()) for batch in batches])
    return finish(compared(exported, wanted, outputs_of(exported, batches, path), source), exported.blob, path)


def destination(path: str | Path) -> Path:
    """Where a graph goes: a name that no file of a model or program has, beside a report that can be added to.

    Raises:
        ConfigError: it is another name, or that of a folder.
    """
    path = require_path(path, "path")
    if path.suffix != ".onnx" or os.path.isdir(path):
        got = "a folder" if os.path.isdir(path) else path.suffix or "no suffix"
        raise ConfigError("not an ONNX file name", where=str(path), got=got, expected="a file with the suffix .onnx")
    read_report(path.with_name(REPORT))
    require_writable(path)
    return path


def joined(outputs: Iterable[Tensor]) -> Tensor:
    """All outputs of a batch side by side, ``[B, numbers]``."""
    return torch.cat([output.flatten(1) for output in outputs], dim=1)


def outputs_of(exported: Exported, batches: Sequence[Tensor], path: Path) -> Tensor:
    """What a graph gives in its runtime, ``[images, numbers]``.

    Raises:
        AgreementError: the runtime refuses the graph, or fails on the way.
    """
    open_session = SESSIONS[exported.runtime]
    try:
        session = open_session(exported.blob)
        return torch.cat([joined(map(torch.from_numpy, session.all(batch.numpy()))) for batch in batches])
    except VitquantError:
        raise
    except Exception as error:  # the runtimes' own errors have no root in common
        raise AgreementError(
            f"{runtime_name(exported.runtime)} cannot run the exported graph; nothing was written",
            where=str(path),
            got=str(error).strip().partition("\n")[0][:200],
            fix="try another version of the runtime, or another opset",
        ) from error


def pixels_for(preprocessing: Preprocessing, images: ImagesLike | None, count: int) -> tuple[Tensor, str]:
    """``count`` images ``uint8 [N, C, h, w]``, and where they come from."""
    if images is None:
        return made_up(preprocessing.shape, count), f"{count} synthetic images"
    batches = open_images(images, preprocessing, ignore_labels=True).batches(BATCH)
    pixels = torch.cat([batch.pixels for batch in islice(batches, -(-count // BATCH))])
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


def compared(exported: Exported, wanted: Tensor, found: Tensor, source: str) -> Verification:
    """The figures of a comparison of outputs."""
    meter = SqnrMeter()
    meter.add(wanted.double(), found.double())
    equal = torch.equal(wanted, found)
    finite = bool(found.double().isfinite().all())
    return Verification(
        form=exported.form,
        target=exported.target,
        opset=exported.opset,
        compared_with=COMPARED_WITH[exported.form],
        runtime=runtime_name(exported.runtime),
        images=len(wanted),
        source=source,
        equal=equal,
        largest_difference=float((wanted.double() - found.double()).abs().max()) if finite else None,
        sqnr_db=round(meter.db, 2) if finite else 0.0,
        ok=equal if exported.form == "integer" else finite and meter.db >= MIN_QDQ_DB,
        bytes=len(exported.blob),
        sha256=hashlib.sha256(exported.blob).hexdigest(),
        run=exported.run,
        caveat=CAVEATS.get(exported.target or ""),
        notes=exported.notes,
    )


def finish(verification: Verification, blob: bytes, path: Path) -> Verification:
    """Write the graph and its entry in ``verify.json``; complain if they disagree."""
    report = path.with_name(REPORT)
    entries = {**read_report(report), path.name: asdict(verification)}
    write_folder(path.parent, {path.name: blob, REPORT: json_text(entries) + "\n"})
    if not verification.ok:
        raise AgreementError(
            f"the exported graph does not match the {verification.compared_with}; it is marked as failed in {report}",
            where=str(path),
            got=str(verification),
            expected="identical logits" if verification.form == "integer" else f"at least {MIN_QDQ_DB:.0f} dB",
            fix="do not deploy it; try another version of the runtime",
        )
    return verification


def read_report(path: Path) -> dict[str, Any]:
    """The entries of earlier exports into the same folder.

    Raises:
        ConfigError: the file is none that an export wrote.
    """
    if not path.exists():
        return {}
    try:
        text = read_file(path, MAX_MANIFEST_BYTES, "the report", ConfigError)
        entries, reason = parse_json(text, str(path), "the file", ConfigError), "it is not a mapping"
    except ConfigError as error:
        entries, reason = None, error.problem
    if not isinstance(entries, dict):
        raise ConfigError(
            f"not a report of earlier exports: {reason}",
            where=str(path),
            fix="move it, or export to another folder",
        )
    return entries
