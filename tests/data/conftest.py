"""The document of failures, as an oracle of messages."""

from collections.abc import Callable
from pathlib import Path

import pytest

FAILURES = (Path(__file__).parents[2] / "docs" / "failures.md").read_text(encoding="utf-8")


@pytest.fixture
def documented() -> Callable[[str], bool]:
    """Whether the document has a message as a block of its own."""
    return lambda message: f"```text\n{message}\n```" in FAILURES
