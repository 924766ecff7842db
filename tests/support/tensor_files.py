"""Reading safetensors files that are about to be overwritten."""

from pathlib import Path

from safetensors.torch import load
from torch import Tensor


def load_file(path: str | Path) -> dict[str, Tensor]:
    """Like that of safetensors, which maps the file in some versions: what is written there changes the tensors."""
    return load(Path(path).read_bytes())
