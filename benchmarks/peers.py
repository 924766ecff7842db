"""ONNX Runtime's and NNCF's post-training quantization of the same float model, on the same images."""

from __future__ import annotations

import logging
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import nncf
import numpy as np
import onnx
import onnxruntime as ort
import openvino as ov
import torch
from onnxruntime.quantization import (
    CalibrationDataReader,
    CalibrationMethod,
    QuantType,
    quantize_dynamic,
    quantize_static,
)
from onnxruntime.quantization.shape_inference import quant_pre_process
from torch import Tensor, nn

INPUT, OUTPUT = "images", "tokens"
PACKAGES = ("torch", "onnx", "onnxruntime", "nncf", "openvino")

Features = Callable[[Tensor], Tensor]
"""A quantized model: normalised images ``[B, C, h, w]`` to tokens ``[B, N, D]``."""


def export_onnx(model: nn.Module, image: Tensor, path: Path) -> None:
    """Write the float model as an ONNX graph that takes any number of images."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            model.eval(),
            (image.repeat(2, 1, 1, 1),),
            path,
            dynamo=True,
            external_data=False,
            opset_version=18,
            input_names=[INPUT],
            output_names=[OUTPUT],
            dynamic_shapes=({0: torch.export.Dim("batch")},),
            verbose=False,
        )
    onnx.checker.check_model(path)


@dataclass(frozen=True)
class OrtSettings:
    """Arguments of ``quantize_static``, where they differ from its defaults. Weights are always per channel."""

    method: CalibrationMethod = CalibrationMethod.MinMax
    activation: QuantType = QuantType.QInt8
    linears_only: bool = False
    options: Mapping[str, Any] = field(default_factory=dict)


class Reader(CalibrationDataReader):  # type: ignore[misc]
    """Hands the images to ONNX Runtime, a batch at a time."""

    def __init__(self, images: Tensor, batch_size: int) -> None:
        self.batches: Iterator[Tensor] = iter(images.split(batch_size))

    def get_next(self) -> dict[str, np.ndarray] | None:
        batch = next(self.batches, None)
        return None if batch is None else {INPUT: batch.numpy()}


def prepare_ort(float_path: Path, prepared: Path) -> None:
    """ONNX Runtime's own preparation: shape inference and graph optimisation. Needed once per model."""
    quant_pre_process(float_path, prepared)


def quantize_ort(prepared: Path, quantized: Path, images: Tensor, settings: OrtSettings, batch_size: int = 1) -> None:
    """Static quantization to a QDQ graph."""
    linears: dict[str, Any] = {"op_types_to_quantize": ["MatMul", "Gemm"]} if settings.linears_only else {}
    logging.getLogger().setLevel(logging.ERROR)  # it logs to the root
    quantize_static(
        prepared,
        quantized,
        Reader(images, batch_size),
        per_channel=True,
        activation_type=settings.activation,
        weight_type=QuantType.QInt8,
        calibrate_method=settings.method,
        extra_options={"MatMulConstBOnly": settings.linears_only, **settings.options},
        **linears,
    )


def quantize_dynamic_ort(prepared: Path, quantized: Path) -> None:
    """Dynamic quantization: weights ahead of time, activations as they come."""
    quantize_dynamic(prepared, quantized, per_channel=True, weight_type=QuantType.QInt8)


def ort_features(path: Path, threads: int) -> Features:
    """Run an ONNX graph in ONNX Runtime on the CPU."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return lambda images: torch.from_numpy(session.run([OUTPUT], {INPUT: images.numpy()})[0])


def quantize_nncf(float_path: Path, images: Tensor, **settings: Any) -> ov.Model:
    """``nncf.quantize`` with ``ModelType.TRANSFORMER`` on the OpenVINO form of the graph, one image at a time."""
    nncf.set_log_level(logging.ERROR)
    dataset = nncf.Dataset(images.split(1), lambda image: image.numpy())
    model = ov.Core().read_model(float_path)
    settings = {"subset_size": len(images), "model_type": nncf.ModelType.TRANSFORMER, **settings}
    return nncf.quantize(model, dataset, **settings)


def openvino_features(model: ov.Model, threads: int) -> Features:
    """Run a model in OpenVINO on the CPU; what is not quantized stays in float32."""
    settings = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": threads}
    compiled = ov.Core().compile_model(model, "CPU", settings)
    return lambda images: torch.from_numpy(compiled([images.numpy()])[0].copy())


def runnable(model: nn.Module, images: Tensor, folder: Path, threads: int) -> dict[str, Features]:
    """The float model in ONNX Runtime, and what ONNX Runtime and NNCF make of it with these calibration images."""
    float_path, prepared, static, dynamic = (
        folder / f"{name}.onnx" for name in ("float", "prepared", "static", "dynamic")
    )
    export_onnx(model, images[:1], float_path)
    prepare_ort(float_path, prepared)
    quantize_ort(prepared, static, images, OrtSettings(linears_only=True))
    quantize_dynamic_ort(prepared, dynamic)
    return {
        "ONNX Runtime, float": ort_features(float_path, threads),
        "ONNX Runtime, its own static int8 (linears)": ort_features(static, threads),
        "ONNX Runtime, its own dynamic int8": ort_features(dynamic, threads),
        "OpenVINO, NNCF's int8": openvino_features(quantize_nncf(float_path, images), threads),
    }


def scratch() -> tempfile.TemporaryDirectory[str]:
    """A folder for graphs, gone afterwards."""
    return tempfile.TemporaryDirectory(prefix="vitquant-bench-")
