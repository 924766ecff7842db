"""SQNR at the final norm, 8 bits: ours beside ONNX Runtime static quantization and NNCF, on the same photos.

The photos of one folder are split by name into calibration (even places) and evaluation (odd places). The calibration
set is filled up to --images with crops of the calibration photos. SQNR is 10 log10(sum f^2 / sum (f - q)^2) over
all evaluation photos, tokens and channels, f being the float model and q the quantized one.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeAlias

import torch
from nncf import QuantizationPreset
from onnxruntime.quantization import CalibrationMethod, QuantType
from torch import Tensor

from benchmarks import peers
from benchmarks.model import FinalNorm, arguments, load_model
from benchmarks.peers import Features, OrtSettings
from benchmarks.photos import load, load_crops, split
from benchmarks.report import Report
from vitquant.adapters.adapt import FloatModel, sqnr_db
from vitquant.workflows.quantize import quantize

Row: TypeAlias = tuple[str, str, Callable[[], Features]]
"""Tool, settings, and what quantizes the model so."""

EVALUATION_BATCH = 8


def ours(model: FloatModel, images: Tensor) -> Iterator[Row]:
    def row(config: str) -> Row:
        return "vitquant", config, lambda: quantize(model, config, calibration=images).forward_features

    yield row("linears_int8.yaml")
    yield row("vit_int8.yaml")


def onnx_runtime(prepared: Path, images: Tensor, few: int, threads: int) -> Iterator[Row]:
    def row(name: str, settings: OrtSettings, data: Tensor = images) -> Row:
        def quantized() -> Features:
            path = prepared.with_name("quantized.onnx")
            peers.quantize_ort(prepared, path, data, settings)
            return peers.ort_features(path, threads)

        return "ONNX Runtime", name, quantized

    unsigned = QuantType.QUInt8
    entropy, percentile = CalibrationMethod.Entropy, CalibrationMethod.Percentile
    yield row("all ops, int8, MinMax (its defaults)", OrtSettings())
    yield row("all ops, uint8, MinMax", OrtSettings(activation=unsigned))
    yield row("linears, int8, MinMax", OrtSettings(linears_only=True))
    yield row("linears, uint8, MinMax", OrtSettings(linears_only=True, activation=unsigned))
    # These two keep every activation of every image in memory, hence fewer images.
    clipped = {"CalibPercentile": 99.999}
    yield row(
        f"linears, uint8, Percentile, {few} images",
        OrtSettings(percentile, unsigned, linears_only=True, options=clipped),
        images[:few],
    )
    yield row(f"linears, uint8, Entropy, {few} images", OrtSettings(entropy, unsigned, linears_only=True), images[:few])


def nncf(float_path: Path, images: Tensor, threads: int) -> Iterator[Row]:
    def row(name: str, **settings: object) -> Row:
        return (
            "NNCF",
            name,
            lambda: peers.openvino_features(peers.quantize_nncf(float_path, images, **settings), threads),
        )

    yield row("transformer preset (its defaults)")
    yield row("transformer preset, mixed", preset=QuantizationPreset.MIXED)
    yield row("transformer preset, exact bias correction", fast_bias_correction=False)


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--images", type=int, default=128, help="calibration images")
    parser.add_argument("--few", type=int, default=16, help="for the methods of ONNX Runtime that keep all activations")
    parser.add_argument("--skip-peers", action="store_true", help="ours only")
    args = parser.parse_args()
    torch.set_grad_enabled(False)
    warnings.simplefilter("ignore")
    model = load_model(args)
    calibration_files, evaluation_files = split(args.photos, model.preprocessing)
    calibration = model.preprocessing.normalize(load_crops(calibration_files, model.preprocessing, args.images))
    evaluation = model.preprocessing.normalize(load(evaluation_files, model.preprocessing))
    reference = run(FinalNorm(model.vit), evaluation)

    packages = ("torch",) if args.skip_peers else peers.PACKAGES
    report = Report(
        f"SQNR at the final norm, {args.model} at {args.img_size}", ["tool", "settings", "SQNR, dB"], packages
    )
    report.notes.append(
        f"{len(calibration)} calibration images: {len(calibration_files)} photos and crops of them; "
        f"{len(evaluation)} evaluation photos; no photo is in both."
    )
    with peers.scratch() as folder:
        float_path, prepared = Path(folder, "float.onnx"), Path(folder, "prepared.onnx")
        rows = list(ours(model, calibration))
        if not args.skip_peers:
            peers.export_onnx(FinalNorm(model.vit), evaluation[:1], float_path)
            peers.prepare_ort(float_path, prepared)
            exported = sqnr_db(reference, run(peers.ort_features(float_path, args.threads), evaluation))
            report.notes.append(f"The exported float graph agrees with the float model to {exported:.0f} dB.")
            rows += onnx_runtime(prepared, calibration, args.few, args.threads)
            rows += nncf(float_path, calibration, args.threads)
        for tool, settings, quantized in rows:
            report.add(tool, settings, f"{sqnr_db(reference, run(quantized(), evaluation)):.2f}")
    report.show(args.markdown)


def run(features: Features, images: Tensor) -> Tensor:
    return torch.cat([features(batch) for batch in images.split(EVALUATION_BATCH)])


if __name__ == "__main__":
    main()
