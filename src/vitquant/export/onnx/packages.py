"""Packages that only exports need, imported when they are."""

from __future__ import annotations

import importlib
from typing import Any

from vitquant.errors import MissingDependencyError

EXTRA = "pip install 'vitquant[export]'"
"""Brings ``onnx`` and ``onnxruntime``."""


def optional(package: str) -> Any:
    """A package, imported.

    Raises:
        MissingDependencyError: it is not installed, or cannot be imported.
    """
    try:
        return importlib.import_module(package)
    except ImportError as error:
        raise MissingDependencyError(
            f"{package} is needed for this and cannot be imported: {error}",
            where="export",
            fix=EXTRA if package in ("onnx", "onnxruntime") else f"pip install {package}",
        ) from error
