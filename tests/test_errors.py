"""Every error says where it came from, keeps what it knows on the way, and is one line of printable characters."""

import copy
import importlib
import pickle
import pkgutil
from collections.abc import Callable, Iterator

import pytest

import vitquant
from vitquant.config.explain import FieldError
from vitquant.config.source import YamlSyntaxError, read_text
from vitquant.errors import MAX_PART, ConfigError, VitquantError, printable

SPECIAL: dict[type[VitquantError], Callable[[], VitquantError]] = {
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


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a\nb\rc\td", r"a\nb\rc\td"),
        ("\x1b[31mred\x9b0m\x07", r"\x1b[31mred\x9b0m\x07"),
        ("photo\udcff.png", r"photo\udcff.png"),
        ("\u202etxt.exe\u2028", r"\u202etxt.exe\u2028"),
        ("Größe 図 [/] :smile:", "Größe 図 [/] :smile:"),
        (3, "3"),
    ],
)
def test_printable(text: object, shown: str) -> None:
    assert printable(text) == shown


def test_absurd_lengths_are_cut_in_the_middle() -> None:
    shown = printable("start" + "x" * 10**6 + "end", most=1000)
    assert len(shown) < 1000
    assert shown.startswith("startxxx")
    assert shown.endswith("xxxend")
    assert "(1000008 characters)" in shown
    assert printable("x" * 1000, most=1000) == "x" * 1000


@pytest.mark.parametrize("part", ["problem", "where", "got", "expected", "fix"])
def test_every_part_of_a_message(part: str) -> None:
    parts = {"problem": "bad", part: "\x1b[2J\n" + "y" * 10**5}
    error = ConfigError(**parts)
    assert str(error).isprintable()
    assert len(str(error)) < MAX_PART + 50
    assert getattr(error, part) == parts[part], "the attributes hold what was given"


def test_a_syntax_error_keeps_its_caret() -> None:
    with pytest.raises(ConfigError) as caught:
        read_text("weight:\n  bit_type: {bits: 8\nactivation: {}\n", "my\x1b.yaml")
    message, line, caret = str(caught.value).split("\n")
    assert message.startswith(r"my\x1b.yaml:3:11: bad YAML")
    assert (line, caret) == ("  activation: {}", "            ^")
