"""JSON that every reader accepts."""

from __future__ import annotations

import json
import math
import re
from typing import Any

NUMBERS = re.compile(r'\[\n\s*([^]["{}]+)\n\s*]')
"""A list without texts, lists or objects. Within a text there are no line ends."""


def json_text(value: Any) -> str:
    """A value as indented JSON, with the numbers of a list in one line.

    NaN and infinities, which JSON does not support, become ``null``.
    """
    text = json.dumps(finite(value), indent=2, allow_nan=False)
    return NUMBERS.sub(lambda found: f"[{' '.join(found[1].split())}]", text)


def finite(value: Any) -> Any:
    """The value with ``None`` for NaN and infinities."""
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
