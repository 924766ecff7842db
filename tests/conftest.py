"""Shared by all tests: few threads, a profile for hypothesis, and a timm that imports beside a foreign torchvision."""

import importlib.util
from pathlib import Path

import torch
from hypothesis import settings

torch.set_num_threads(2)  # the tensors are small

# The same examples in every run; new ones with --hypothesis-profile=explore.
settings.register_profile("default", deadline=None, max_examples=50, derandomize=True)
settings.register_profile("explore", deadline=None, max_examples=1000)
settings.load_profile("default")


def torchvision_loads() -> bool:
    """Whether torchvision's operators can be loaded; where it is not installed, none are missed."""
    spec = importlib.util.find_spec("torchvision")
    if spec is None or spec.origin is None:
        return True
    try:
        for binary in Path(spec.origin).parent.glob("_C.*"):
            torch.ops.load_library(str(binary))
    except OSError:
        return False
    return True


def declare_operators() -> torch.library.Library:
    """Declare the two operators that torchvision's Python code needs on import; timm imports it, and calls neither."""
    library = torch.library.Library("torchvision", "DEF")
    for name in ("nms", "qnms"):
        library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    return library


# A torchvision built for another torch cannot be imported otherwise. The declaration lives as long as this object.
TORCHVISION_OPERATORS = None if torchvision_loads() else declare_operators()
