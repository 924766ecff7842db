"""Finding configuration files: by path, or a shipped file by name."""

from __future__ import annotations

import re
from pathlib import Path

from vitquant.config.explain import brief, show
from vitquant.errors import ConfigError

RECIPES = "recipes/"


def shipped_folder() -> Path:
    """The folder of shipped files: inside the installed package, or ``configs/`` of the checkout in development."""
    package = Path(__file__).resolve().parent.parent
    inside = package / "configs"
    return inside if inside.is_dir() else package.parent.parent / "configs"


def shipped_names() -> tuple[str, ...]:
    """Names of the shipped files, sorted; those of recipes begin with ``recipes/``."""
    folder = shipped_folder()
    return tuple(sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.yaml")))


def recipe_names() -> tuple[str, ...]:
    """Names of the shipped recipes, such as ``w8a8``: complete configurations, from the widest to the narrowest."""
    found = [Path(name).stem for name in shipped_names() if name.startswith(RECIPES)]
    return tuple(sorted(found, key=lambda name: [int(bits) for bits in re.findall("[0-9]+", name)], reverse=True))


def recipe_file(name: str) -> str:
    """The name of a recipe's file."""
    return f"{RECIPES}{name}.yaml"


def find_config(path: str | Path) -> Path:
    """The file that ``path`` refers to: itself, or the shipped file for ``NAME.yaml`` or ``configs/NAME.yaml``.

    ``NAME`` may be that of a recipe, such as ``recipes/w8a8``.

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
        name = given.as_posix().removeprefix("configs/")
        if name in shipped_names():
            return shipped_folder() / name
    except OSError as error:  # a name that is too long, or a folder without permission
        raise ConfigError(f"cannot be read: {error.strerror}", where=brief(str(path), 200)) from error
    raise ConfigError(
        "is a folder" if folder else "no such file",
        where=str(given),
        expected=f"a YAML file, or one of the shipped {', '.join(shipped_names())}",
    )
