"""What public functions are given is checked by name."""

from pathlib import Path

import numpy as np
import pytest

from vitquant.arguments import require_count, require_kind, require_path, require_whole
from vitquant.errors import ConfigError


def test_whole_numbers() -> None:
    assert require_count(np.int64(3), "n") == 3
    assert require_whole(-(2**63), "seed", -(2**63), 2**63 - 1) == -(2**63)
    for value in (0, -1, 2**31, True, 1.0, float("nan"), None, "3", object(), []):
        with pytest.raises(ConfigError, match=r"^n: bad value\. Got .*, expected an integer from 1 to 2147483647\.$"):
            require_count(value, "n")


def test_paths() -> None:
    assert require_path("a/b", "out") == require_path(Path("a/b"), "out") == Path("a/b")
    with pytest.raises(ConfigError, match=r"^out: the name is too long\. Got "):
        require_path("a" * 300, "out")
    for value in ("", "a\0b", b"a", None, 3, object()):
        with pytest.raises(ConfigError, match=r"^out: not a path\. Got "):
            require_path(value, "out")


def test_kinds() -> None:
    assert require_kind(3, int, "n") == 3
    with pytest.raises(ConfigError, match=r"^n: wrong type\. Got NoneType, expected int\.$"):
        require_kind(None, int, "n")
