"""Rows 1, 3 and 8 of the failure modes: what is wrong with a file before any setting is looked at."""

import time
from collections.abc import Callable
from pathlib import Path

import pytest

from vitquant.config import ModelConfig, find_config, shipped_names
from vitquant.config.source import MAX_BYTES, MAX_DEPTH, Leaf, Table, read_text
from vitquant.errors import ConfigError

Refusal = Callable[[str], str]


def test_every_key_knows_its_line() -> None:
    root = read_text("# c\na:\n  b: 1\n\n  c: {d: x}\n", "f")
    a = root.entries["a"]
    assert isinstance(a, Table)
    assert (a.location.line, a.entries["b"].location.line, str(a.entries["c"].location)) == (2, 3, "f:5")
    b = a.entries["b"]
    assert isinstance(b, Leaf)
    assert b.value == 1


def test_bad_syntax_gives_line_column_and_caret(refusal: Refusal) -> None:
    message = refusal("weight:\n  bit_type: {bits: 8\nactivation:\n")
    lines = message.splitlines()
    assert lines[0].startswith("a.yaml:3:11: bad YAML, ")
    assert lines[1:] == ["  activation:", "            ^"]


def test_a_tab_is_named(refusal: Refusal) -> None:
    message = refusal("weight:\n\tkl_bins: 64\n")
    assert message.startswith("a.yaml:2:1: bad YAML, found character '\\t'")
    assert "Fix: YAML indents with spaces, replace the tab." in message
    assert message.endswith("\n   kl_bins: 64\n  ^")


def test_a_long_line_is_cut_around_the_caret(refusal: Refusal) -> None:
    shown, caret = refusal("weight: {" + "x" * 500 + ": ]").splitlines()[1:]
    assert len(shown) <= 102
    assert shown[caret.index("^")] == "]"


def test_a_control_character_is_bad_syntax(refusal: Refusal) -> None:
    assert refusal("weight:\n  kl_bins: 6\x004\n").startswith("a.yaml:2:13: bad YAML, special characters")


@pytest.mark.parametrize("text", ["", "\n\n", "# only a comment\n", "---\n", "{}\n"])
def test_an_empty_file_is_an_error(refusal: Refusal, text: str) -> None:
    assert "a.yaml: the file is empty. Expected a mapping of sections." in refusal(text)


@pytest.mark.parametrize(("text", "got"), [("- weight\n", "['weight']"), ("weight\n", "'weight'"), ("8\n", "8")])
def test_something_else_than_a_mapping(refusal: Refusal, text: str, got: str) -> None:
    assert refusal(text) == f"a.yaml:1: not a configuration. Got {got}, expected a mapping."


def test_two_documents_are_refused(refusal: Refusal) -> None:
    assert refusal("weight: {}\n---\nweight: {}\n").startswith("a.yaml:2:1: bad YAML, but found another document")


def test_a_duplicate_key_names_both_lines(refusal: Refusal) -> None:
    message = refusal("weight:\n  kl_bins: 64\n  enable_profiler: true\n  kl_bins: 64\n")
    assert message == "a.yaml:4 kl_bins: the key is given twice, on lines 2 and 4. Fix: remove one of them."
    assert "on lines 1 and 2" in refusal("weight: {}\nweight: {}\n")


def test_a_number_that_yaml_reads_as_text(refusal: Refusal) -> None:
    message = refusal("activation:\n  observer_type: PercentileObserver\n  percentile_sigma: 1e-5\n")
    assert message == (
        "a.yaml:3 activation.percentile_sigma: value not allowed. Got '1e-5', expected a number above 0 and at most 1. "
        "Fix: write 1.0e-5, which YAML reads as a number."
    )


@pytest.mark.parametrize("key", ["[a, b]", "{a: b}"])
def test_a_key_that_is_no_name(refusal: Refusal, key: str) -> None:
    assert refusal(f"? {key}\n: 1\n") == "a.yaml:1: a key must be a name."


def bomb(levels: int) -> str:
    lines = ["a0: &a0 {x: 1, y: 2}"]
    lines += [f"a{i}: &a{i} {{p: *a{i - 1}, q: *a{i - 1}, r: *a{i - 1}, s: *a{i - 1}}}" for i in range(1, levels)]
    return "\n".join(lines)


def test_an_alias_bomb_is_refused_before_it_expands(refusal: Refusal) -> None:
    start = time.process_time()
    message = refusal(bomb(200))  # 4^200 values
    assert time.process_time() - start < 2
    assert "too many values after alias expansion. Expected at most 100,000" in message


def test_the_count_is_of_what_aliases_expand_to(write: Callable[[str], Path]) -> None:
    # 4^7 * 5 values are below the limit: not the number of aliases counts but what they stand for.
    with pytest.raises(ConfigError, match="unknown layer or section `a0`"):
        ModelConfig.from_yaml(write(bomb(7)))
    with pytest.raises(ConfigError, match="too many values"):
        ModelConfig.from_yaml(write(bomb(9)))


def test_a_recursive_alias_is_refused(refusal: Refusal) -> None:
    assert refusal("weight: &w\n  bit_type: *w\n") == "a.yaml:2: alias *w refers to itself."


def test_deep_nesting_is_refused(refusal: Refusal) -> None:
    assert f"nested too deeply. Expected at most {MAX_DEPTH} levels" in refusal("weight: " + "[" * 200_000)


def test_a_large_file_is_refused(write: Callable[[str], Path]) -> None:
    path = write("#" * (MAX_BYTES + 1))
    with pytest.raises(ConfigError, match=r"a\.yaml: the file is too large\. Expected at most 1,048,576 bytes\."):
        ModelConfig.from_yaml(path)


@pytest.mark.parametrize(
    "value", ["!!python/object/apply:os.system ['true']", "!!python/name:os.system", "!!int '8'", "!mine 8"]
)
def test_tags_are_refused(refusal: Refusal, value: str) -> None:
    message = refusal(f"weight:\n  kl_bins: {value}\n")
    assert message.startswith("a.yaml:2: YAML tags are not allowed. Got ")
    assert message.endswith("expected plain values. Fix: remove it.")


def test_a_file_that_is_not_utf8(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_bytes(b"weight:\n  kl_bins: 64 # \xff\n")
    with pytest.raises(ConfigError, match=r"a\.yaml:2: not UTF-8 text\. Got byte 0xff"):
        ModelConfig.from_yaml(path)


def test_a_byte_order_mark_is_no_obstacle(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_bytes(b"\xef\xbb\xbfweight: {kl_bins: 64}\n")
    assert ModelConfig.from_yaml(path).document.form == "global"


def test_a_number_of_absurd_length(refusal: Refusal) -> None:
    assert refusal(f"weight:\n  kl_bins: {'9' * 10_000}\n").startswith("a.yaml:2: not a number. Got '9999")


def test_anchors_aliases_and_merge_keys(resolve: Callable[..., object], write: Callable[[str], Path]) -> None:
    config = ModelConfig.from_yaml(
        write(
            """
            attn_q_out: &q {kl_bins: 64, bit_type: &four {bits: 4}}
            attn_k_out: *q
            attn_v_input: {<<: *q, kl_bins: 128}
            attn_v_out: {<<: [{kl_bins: 256}, *q]}
            residual1: {<<: {bit_type: *four}, <<: {bit_type: {bits: 5}}}
            """
        )
    )
    table = config.resolve(["attn_q_out", "attn_k_out", "attn_v_input", "attn_v_out", "residual1"])
    assert [(c.kl_bins, c.bit_type.bits) for c in table.values() if c] == [
        (64, 4),
        (64, 4),
        (128, 4),
        (256, 4),
        (2048, 4),
    ]


def test_a_merge_key_takes_mappings_only(refusal: Refusal) -> None:
    assert refusal("weight:\n  <<: 8\n") == "a.yaml:2 <<: `<<` needs a mapping. Got 8."


def test_a_missing_file_lists_the_shipped_ones(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        find_config(tmp_path / "nothing.yaml")
    assert caught.value.exit_code == 2
    assert "nothing.yaml: no such file. Expected a YAML file, or one of the shipped attn_config.yaml" in str(
        caught.value
    )
    assert "vit_int8.yaml" in shipped_names()


def test_a_folder_is_not_a_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="is a folder"):
        find_config(tmp_path)


def test_shipped_files_are_found_by_name_from_anywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    by_name = find_config("attn_config.yaml")
    assert find_config("configs/attn_config.yaml") == by_name
    assert by_name.is_file()
    for other in ("elsewhere/attn_config.yaml", tmp_path / "attn_config.yaml"):
        with pytest.raises(ConfigError, match="no such file"):
            find_config(other)


def test_a_file_of_the_user_goes_before_a_shipped_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "attn_config.yaml").write_text("weight: {}\n")
    assert ModelConfig.from_yaml("attn_config.yaml").document.form == "global"
