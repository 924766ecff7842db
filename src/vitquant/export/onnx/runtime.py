"""Running exported graphs on the CPU, to compare them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from vitquant.export.onnx.packages import optional
from vitquant.program.values import Array


@dataclass(frozen=True)
class Session:
    """A graph with one input, ready to run: ``all`` gives its outputs in order, a call the first of them."""

    all: Callable[[Array], list[Array]]

    def __call__(self, inputs: Array) -> Array:
        return self.all(inputs)[0]


def onnx_session(model: bytes | str | Path, *, threads: int = 2) -> Any:
    """A graph in ONNX Runtime, as an ``onnxruntime.InferenceSession``.

    Args:
        model: a serialized model, or the path of one.
        threads: within one operator; operators run one after the other.

    Raises:
        MissingDependencyError: ``onnxruntime`` is not installed.
    """
    runtime = optional("onnxruntime")
    options = runtime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.execution_mode = runtime.ExecutionMode.ORT_SEQUENTIAL
    options.log_severity_level = 3
    options.add_session_config_entry("session.x64quantprecision", "1")  # no saturating products on x86 without VNNI
    source = model if isinstance(model, bytes) else str(model)
    return runtime.InferenceSession(source, options, providers=["CPUExecutionProvider"])


def in_onnxruntime(model: bytes | str | Path, *, threads: int = 2) -> Session:
    """A graph with one input in ONNX Runtime."""
    session = onnx_session(model, threads=threads)
    name = session.get_inputs()[0].name
    return Session(lambda inputs: [np.asarray(output) for output in session.run(None, {name: inputs})])


def in_openvino(model: bytes | str | Path, *, threads: int = 2) -> Session:
    """The same in OpenVINO; what the graph leaves float stays float32.

    Raises:
        MissingDependencyError: ``openvino`` is not installed.
    """
    core = optional("openvino").Core()
    settings = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": threads}
    compiled = core.compile_model(core.read_model(model), "CPU", settings)
    return Session(lambda inputs: [np.array(output) for output in compiled([inputs]).values()])


SESSIONS: dict[str, Callable[..., Session]] = {"onnxruntime": in_onnxruntime, "openvino": in_openvino}


def runtime_name(name: str) -> str:
    """Such as ``onnxruntime 1.20.0``."""
    version: str = optional(name).__version__  # the distribution may have another name, such as onnxruntime-gpu
    return f"{name} {version.partition('-')[0]}"
