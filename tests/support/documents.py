"""The repository's files that tests compare with."""

from pathlib import Path

ROOT = Path(__file__).parents[2]
TESTS = ROOT / "tests"
GOLDEN = TESTS / "golden" / "tiny_vit_v1"
FAILURES = (ROOT / "docs" / "failures.md").read_text(encoding="utf-8")


def documented(message: object) -> bool:
    """Whether docs/failures.md has an error as a block of its own: its message, or a whole line of the terminal."""
    text = str(message)
    whole = text if text.startswith(("error: ", "warning: ")) else f"error: {text}"
    return f"```text\n{whole}\n```" in FAILURES
