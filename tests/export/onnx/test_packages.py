"""Packages that only exports need."""

import sys

import pytest

from vitquant.errors import MissingDependencyError
from vitquant.export.onnx.packages import optional


@pytest.mark.parametrize(
    ("package", "fix"),
    [
        ("onnx", r"pip install 'vitquant\[export\]'"),
        ("onnxruntime", r"pip install 'vitquant\[export\]'"),
        ("openvino", "pip install openvino"),
    ],
)
def test_a_missing_package_is_told(package: str, fix: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(MissingDependencyError, match=rf"^export: {package} is needed for this .* Fix: {fix}\.$"):
        optional(package)
