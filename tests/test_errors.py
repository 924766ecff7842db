"""Every error says where it came from, and keeps what it knows on the way."""

import copy
import importlib
import pickle
import pkgutil
from collections.abc import Iterator

import pytest

import vitquant
from vitquant.config.explain import FieldError
from vitquant.config.source import YamlSyntaxError
from vitquant.errors import ConfigError, VitquantError

SPECIAL = {
    FieldError: lambda: FieldError("bit_type.bits", "bad", got=1, expected="2 to 16", fix="write 2"),
    YamlSyntaxError: lambda: YamlSyntaxError("bad YAML", where="a.yaml", snippet="  x: [\n    ^", fix="close it"),
}


def subclasses(kind: type[VitquantError]) -> Iterator[type[VitquantError]]:
    yield kind
    for child in kind.__subclasses__():
        yield from subclasses(child)


def every_kind() -> list[type[VitquantError]]:
    """All classes of errors in the package: every module is imported for it."""
    for module in pkgutil.walk_packages(vitquant.__path__, "vitquant."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)
    return [kind for kind in subclasses(VitquantError) if kind.__module__.startswith("vitquant")]


def example(kind: type[VitquantError]) -> VitquantError:
    if kind in SPECIAL:
        return SPECIAL[kind]()
    return kind("it broke", where="old", got=3, expected="4", fix="mend it")


@pytest.mark.parametrize("kind", every_kind(), ids=lambda kind: kind.__name__)
def test_every_error_can_be_located_copied_and_pickled(kind: type[VitquantError]) -> None:
    error = example(kind)
    error.__cause__ = ValueError("the cause")
    error.__dict__["extra"] = "kept"
    moved = error.located("new")
    assert type(moved) is kind
    assert moved is not error
    assert moved.where == "new"
    assert str(moved) == str(error).replace(f"{error.where}: ", "new: ", 1)
    assert moved.__cause__ is error.__cause__
    assert moved.exit_code == error.exit_code
    assert {**moved.__dict__, "where": error.where} == error.__dict__
    assert str(error).startswith(f"{error.where}: "), "the first one is as it was"
    for same in (copy.copy(error), pickle.loads(pickle.dumps(error))):
        assert type(same) is kind
        assert str(same) == str(error)
        assert same.__dict__ == error.__dict__


def test_an_error_of_a_user_can_be_located() -> None:
    class OddError(ConfigError):
        def __init__(self, first: int, *, second: int) -> None:
            super().__init__(f"{first} and {second}")
            self.second = second

    moved = OddError(1, second=2).located("here")
    assert str(moved) == "here: 1 and 2."
    assert moved.second == 2
