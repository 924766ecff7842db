"""JSON that any reader takes."""

import json
import math

from vitquant.files import json_text


def test_json_has_no_nan() -> None:
    value = {"a": [math.nan, 1.5, -math.inf], "b": (math.inf, None, "NaN"), "c": {"d": True}}
    assert json.loads(json_text(value)) == {"a": [None, 1.5, None], "b": [None, None, "NaN"], "c": {"d": True}}
