"""JSON that every reader accepts."""

from __future__ import annotations

import json
import math
from typing import Any


def json_text(value: Any) -> str:
    """A value as indented JSON. NaN and infinities, which JSON does not support, become ``null``."""
    return json.dumps(finite(value), indent=2, allow_nan=False)


def finite(value: Any) -> Any:
    """The value with ``None`` for NaN and infinities."""
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
