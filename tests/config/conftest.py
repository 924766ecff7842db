from collections.abc import Callable
from pathlib import Path
from textwrap import dedent

import pytest

from vitquant.config import ModelConfig, ResolvedConfig, point_names
from vitquant.errors import ConfigError


@pytest.fixture
def write(tmp_path: Path) -> Callable[[str], Path]:
    """Write dedented text to ``a.yaml`` in an empty folder."""

    def to_file(text: str) -> Path:
        path = tmp_path / "a.yaml"
        path.write_text(dedent(text), encoding="utf-8")
        return path

    return to_file


@pytest.fixture
def resolve(write: Callable[[str], Path]) -> Callable[..., ResolvedConfig]:
    """Resolve YAML text on the points of a small model."""

    def on_points(text: str, depth: int = 3) -> ResolvedConfig:
        return ModelConfig.from_yaml(write(text)).resolve(point_names(depth))

    return on_points


@pytest.fixture
def refusal(resolve: Callable[..., ResolvedConfig], tmp_path: Path) -> Callable[[str], str]:
    """The message with which text is refused, its folder left out."""

    def message(text: str) -> str:
        with pytest.raises(ConfigError) as caught:
            resolve(text)
        assert caught.value.exit_code == 2
        return str(caught.value).replace(f"{tmp_path}/", "")

    return message
