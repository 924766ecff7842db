"""Hostile and accidental input: whatever a file or a mapping holds, it is a configuration or a ConfigError.

:func:`check` and :func:`mutations` are plain functions, for longer runs than these.
"""

import random
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vitquant.config import ModelConfig, point_names, shipped_names
from vitquant.config.locate import shipped_folder
from vitquant.errors import ConfigError

POINTS = point_names(2)
SHIPPED = {name: (shipped_folder() / name).read_text(encoding="utf-8") for name in shipped_names()}
SNIPPETS = (
    *("{", "}", "[", "]", ":", "- ", "? ", "*a", "&a ", "!!int ", "!x ", "|", ">", "'", '"', "#", "%", "\t", "\n"),
    *(
        "<<: *a",
        "\x00",
        "\x1b[31m",
        "\u202e",
        "\u2028",
        "\x85",
        "\ufeff",
        "---\n",
        "...\n",
        "~",
        "null",
        ".nan",
        "-.inf",
    ),
    *("0x" + "f" * 5000, "9" * 5000, "1:30", "0o17", "017", "1_000", "2024-01-01", "yes", '"\\UFFFFFFFF"', '"\\ud800"'),
    *(
        "blocks.[0-11].norm1: {}",
        "repair:\n- bias_correction",
        "overrides:\n",
        "defaults:\n",
        "bits: 4",
        "x" * 300,
        "- - - -",
        "é",
    ),
)


def check(text: str) -> str | None:
    """Read text as a file and resolve it; the message if it is refused.

    Raises:
        AssertionError: a message that is long, or not printable (the lines under a caret apart).
        Exception: anything but a ConfigError is a fault of the reader.
    """
    try:
        ModelConfig.from_text(text, "a.yaml").resolve(POINTS)
    except ConfigError as error:
        message = str(error)
        assert message.startswith("a.yaml")
        assert all(line.isprintable() for line in message.split("\n"))
        assert message.count("\n") in (0, 2)
        assert len(message) < 1500
        return message
    return None


def mutations(text: str, count: int, seed: int) -> Iterator[str]:
    """``text`` with lines and characters lost, doubled, moved, and foreign snippets put in."""
    draw = random.Random(seed)
    for _ in range(count):
        lines = text.split("\n")
        for _ in range(draw.randint(1, 3)):
            at, other = draw.randrange(len(lines)), draw.randrange(len(lines))
            match draw.randrange(6):
                case 0:
                    del lines[at : at + draw.randint(1, 3)]
                    lines = lines or [""]
                case 1:
                    lines.insert(other, lines[at])
                case 2:
                    lines[at] = " " * draw.randint(0, 5) + lines[at].lstrip()
                case 3:
                    lines[at] = lines[at][: draw.randint(0, len(lines[at]))]
                case _:
                    spot = draw.randint(0, len(lines[at]))
                    lines[at] = lines[at][:spot] + draw.choice(SNIPPETS) + lines[at][spot + draw.randint(0, 4) :]
        yield "\n".join(lines)


@pytest.mark.parametrize("name", SHIPPED)
def test_mutations_of_the_shipped_files(name: str) -> None:
    refused = [check(text) for text in mutations(SHIPPED[name], 60, seed=len(name))]
    assert any(refused)
    assert check(SHIPPED[name]) is None


@settings(max_examples=150, deadline=None)
@given(st.text(st.one_of(st.sampled_from("\n\n  :-{}[]&*!|>'\"%#,?<\t\\"), st.characters()), max_size=60))
def test_arbitrary_text(text: str) -> None:
    check(text)
    check(f"weight:\n  kl_bins: {text}\n")
    check(f"repair:\n  - bias_correction: {text}\n")
    check(f"repair:\n  - gptq: {{damping: {text}}}\n")
    check(f"repair:\n  - {text}\n")
    check(f"overrides:\n  {text}: {{}}\n")


SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(max_size=8),
    st.binary(max_size=4),
    st.complex_numbers(),
)
KEYS = st.one_of(
    st.sampled_from(
        [
            *("weight", "defaults", "overrides", "norm1", "attn_qkv", "bit_type", "bits", "kl_bins", "*", "blocks.*"),
            *("repair", "bias_correction", "gptq", "images", "damping"),
        ]
    ),
    SCALARS,
)
TREES = st.recursive(SCALARS, lambda inner: st.dictionaries(KEYS, inner, max_size=3) | st.lists(inner, max_size=2))


@pytest.mark.job
@settings(max_examples=120, deadline=None)
@given(TREES)
def test_arbitrary_python_values(value: Any) -> None:
    for given_ in (value, {"weight": value}, {"overrides": {"*": value}}, {"norm1": {"kl_bins": value}}):
        message = "configuration"
        try:
            ModelConfig.from_dict(given_).resolve(POINTS)
        except ConfigError as error:
            message = str(error)
        assert message.startswith("configuration")
        assert message.isprintable()


class Unspeakable:
    def __repr__(self) -> str:
        raise RuntimeError


CYCLE: dict[str, Any] = {}
CYCLE["weight"] = CYCLE


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (None, "configuration: not a configuration. Got nothing (null), expected a mapping."),
        (5, "configuration: not a configuration. Got 5, expected a mapping."),
        ({1: {}}, "configuration: a key must be a name. Got 1."),
        ({float("nan"): {}}, "configuration: a key must be a name. Got nan."),
        ({"norm": {None: 1}}, "configuration: a key must be a name. Got nothing (null)."),
        ({"norm": Unspeakable()}, "norm: not a section. Got an object of type Unspeakable, expected a mapping."),
        ({"norm": {"kl_bins": np.zeros(99)}}, "configuration norm.kl_bins: value not allowed. Got array([0., 0., 0.,"),
        ({"norm": {"kl_bins": np.array(64)}}, "configuration norm.kl_bins: value not allowed. Got array(64), expected"),
        ({"norm": {"kl_bins": 10**9999}}, "Got an integer of 33,216 bits, expected an even integer from 64 to 65536."),
        ({"norm": {"percentile_sigma": np.float64("nan")}}, "Got nan, expected a number above 0 and at most 1."),
        (CYCLE, "configuration: nested too deeply. Expected at most 16 levels."),
    ],
)  # fmt: skip
def test_odd_python_values(value: Any, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        ModelConfig.from_dict(value)
    assert message in str(caught.value)


def test_numpy_scalars_are_numbers() -> None:
    settings_ = {
        "bit_type": {"bits": np.int64(4), "signed": np.bool_(False)},
        "kl_bins": np.uint16(64),
        "percentile_alpha": np.float32(0.75),
        "observer_type": np.str_("KLObserver"),
    }
    plain = {
        "bit_type": {"bits": 4, "signed": False},
        "kl_bins": 64,
        "percentile_alpha": 0.75,
        "observer_type": "KLObserver",
    }
    one, other = (ModelConfig.from_dict({"norm": value}).resolve(POINTS) for value in (settings_, plain))
    assert one == other
    config = one["final_norm"]
    assert config is not None
    assert type(config.kl_bins) is int
    with pytest.raises(ConfigError, match=r"Got 4\.0, expected an integer from 2 to 16\. Fix: write 4\."):
        ModelConfig.from_dict({"norm": {"bit_type": {"bits": np.float64(4)}}})


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("0x" + "f" * 100_000, "bits: value not allowed. Got an integer of 400,000 bits, expected an integer"),
        ("0b" + "1" * 100_000, "Got an integer of 100,000 bits, expected"),
        ("9" * 10_000, "a.yaml:3: not a number. Got '999"),
        ("x" * 100_000, "Got 'xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx..., expected an integer"),
        ("010", "a.yaml:3: YAML reads this as a number in base 8. Got '010'. Fix: write 10, or 8 if base 8 is meant."),
        ("-0_7", "a.yaml:3: YAML reads this as a number in base 8. Got '-0_7'. Fix: write -7."),
        ("0o10", "Got '0o10', expected an integer from 2 to 16. Fix: write 8, which YAML reads as a number."),
        ("008", "Got '008', expected an integer from 2 to 16. Fix: write 8, which YAML reads as a number."),
        ("1:30", "a.yaml:3: YAML reads this as a number in base 60. Got '1:30'. Fix: write a plain number."),
        ("1:30.5", "a.yaml:3: YAML reads this as a number in base 60. Got '1:30.5'."),
        ("8.0", "Got 8.0, expected an integer from 2 to 16. Fix: write 8."),
        ("8e0", "Got '8e0', expected an integer from 2 to 16. Fix: write 8."),
        (".nan", "Got nan, expected an integer"),
        ("2024-01-01", "Got '2024-01-01', expected an integer"),
        ("on", "Got true, expected an integer"),
        ("1_000", "Got 1000, expected an integer"),
        ('"\\x1b[31m\\u202e"', r"Got '\x1b[31m\u202e', expected an integer"),
        ('"\\ud800"', r"Got '\ud800', expected an integer"),
        ('"\\UFFFFFFFF"', "a.yaml: bad YAML, "),
        ('"\\U00110000"', "a.yaml: bad YAML, "),
        ("!" + "a" * 1000 + " 8", "a.yaml:3: YAML tags are not allowed. Got !aaa"),
        ("*" + "a" * 1000, "bad YAML, found undefined alias 'aaa"),
    ],
)  # fmt: skip
def test_odd_scalars(value: str, message: str) -> None:
    start = time.process_time()
    found = check(f"weight:\n  bit_type:\n    bits: {value}\n")
    assert time.process_time() - start < 2
    assert found is not None
    assert message in found


@pytest.mark.parametrize("value", ["8", "+8", "0x8", "0b1000", "0_8"[2:], "1_0", "&a 8"])
def test_numbers_in_every_notation_that_means_what_it_says(value: str) -> None:
    assert check(f"weight:\n  bit_type:\n    bits: {value}\n") is None


@pytest.mark.parametrize(
    ("key", "message"),
    [
        ("[a]", "a.yaml:1: a key must be a name."),
        ('"a\\nb"', r"a.yaml:1: the key contains unprintable characters. Got 'a\nb'."),
        ('"\\e[31mweight"', r"a.yaml:1: the key contains unprintable characters. Got '\x1b[31mweight'."),
        ('"\\u202e"', r"a.yaml:1: the key contains unprintable characters. Got '\u202e'."),
        ("x" * 201, "a.yaml:1: the key is too long. Got 'xxx"),
        ("null", "a.yaml:1 null: unknown layer or section `null`"),
        (".nan", "a.yaml:1 .nan: unknown layer or section `.nan`"),
        ("8", "a.yaml:1 8: unknown layer or section `8`"),
        ("Weight", "did you mean `weight`"),
        ("ATTN_QKV", "did you mean `attn_qkv`"),
    ],
)
def test_odd_keys(key: str, message: str) -> None:
    found = check(f"{key}: {{}}\n")
    assert found is not None
    assert message in found


def test_upper_case_in_an_override_is_recognised() -> None:
    assert "such as blocks.0.mlp_fc1.weight" in (check("overrides:\n  BLOCKS.0.MLP_FC1.WEIGHT: {}\n") or "")


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ("weight: {}".encode("utf-16"), ":1: not UTF-8 text. Got UTF-16. Fix: save the file as UTF-8."),
        ("weight: {}".encode("utf-16-le"), "bad YAML, special characters are not allowed"),
        ("# é\nweight: {}".encode("latin-1"), ":1: not UTF-8 text. Got byte 0xe9. Fix: save the file as UTF-8."),
        (b"\0" * 10, "bad YAML, special characters are not allowed"),
        (b"\x1f\x8b\x08\x00", "not UTF-8 text"),
    ],
)
def test_files_in_another_encoding(tmp_path: Path, data: bytes, message: str) -> None:
    (tmp_path / "a.yaml").write_bytes(data)
    with pytest.raises(ConfigError, match=r"a\.yaml:") as caught:
        ModelConfig.from_yaml(tmp_path / "a.yaml")
    assert message in str(caught.value)


def test_line_ends_of_every_system(tmp_path: Path) -> None:
    for end in ("\n", "\r\n", "\r"):
        (tmp_path / "a.yaml").write_bytes(f"weight:{end}  kl_bins: 63{end}".encode())
        with pytest.raises(ConfigError, match=r"a\.yaml:2 weight\.kl_bins: value not allowed\. Got 63"):
            ModelConfig.from_yaml(tmp_path / "a.yaml")


@pytest.mark.skipif(sys.platform == "win32", reason="no named pipes")
def test_paths_that_are_no_files(tmp_path: Path) -> None:
    import os

    os.mkfifo(tmp_path / "pipe")

    def said(path: Any) -> str:
        with pytest.raises(ConfigError) as caught:
            ModelConfig.from_yaml(path)
        return str(caught.value)

    assert "pipe: is not a regular file. Fix: save the configuration as a file." in said(tmp_path / "pipe")
    assert "is not a regular file" in said("/dev/zero")
    assert "is a folder" in said(tmp_path)
    assert "is a folder" in said("")
    assert "no such file" in said(tmp_path / "a.yaml" / "b")
    assert "no such file" in said("a\0b")
    assert "File name too long" in said("a" * 5000)
    assert len(said("a" * 5000)) < 300
    for path in (None, 5, b"a.yaml"):
        assert said(path).startswith("configuration: not a path. Got ")
