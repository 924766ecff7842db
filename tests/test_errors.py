"""Messages are one line of printable characters, whatever they quote."""

import pytest

from vitquant.config.source import read_text
from vitquant.errors import MAX_PART, ConfigError, printable


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
