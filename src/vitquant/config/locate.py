"""Finding configuration files: by path, or a shipped file by name."""

from __future__ import annotations

from pathlib import Path

from vitquant.config.explain import brief, show
from vitquant.errors import ConfigError


def shipped_folder() -> Path:
    """The folder of shipped files: inside the installed package, or ``configs/`` of the checkout in development."""
    package = Path(__file__).resolve().parent.parent
    inside = package / "configs"
    return inside if inside.is_dir() else package.parent.parent / "configs"


def shipped_names() -> tuple[str, ...]:
    """Names of the shipped files, sorted."""
    return tuple(sorted(path.name for path in shipped_folder().glob("*.yaml")))


def find_config(path: str | Path) -> Path:
    """The file that ``path`` refers to: itself, or the shipped file for ``NAME.yaml`` or ``configs/NAME.yaml``.

    Raises:
        ConfigError: neither exists.
    """
    if not isinstance(path, str | Path):
        raise ConfigError("not a path", where="configuration", got=show(path), expected="the name of a YAML file")
    given = Path(path)
    try:
        if given.exists() and not given.is_dir():
            return given
        folder = given.is_dir()
        shipped = shipped_folder() / given.name
        if given in (Path(given.name), Path("configs", given.name)) and shipped.is_file():
            return shipped
    except OSError as error:  # a name that is too long, or a folder without permission
        raise ConfigError(f"cannot be read: {error.strerror}", where=brief(str(path), 200)) from error
    raise ConfigError(
        "is a folder" if folder else "no such file",
        where=str(given),
        expected=f"a YAML file, or one of the shipped {', '.join(shipped_names())}",
    )
