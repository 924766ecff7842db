"""Patterns of points: what they match, how they rank, and what is refused instead of matching something else."""

import re
import time
from collections.abc import Callable, Iterator
from fnmatch import fnmatchcase
from itertools import pairwise, product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vitquant.config import ModelConfig, ResolvedConfig, json_schema, point_names
from vitquant.config.pattern import Numbers, Pattern, number_range, runs
from vitquant.errors import ConfigError

Resolve = Callable[..., ResolvedConfig]
POINTS = point_names(13)


def matched(text: str) -> list[str]:
    pattern = Pattern.parse(text)
    return [point for point in POINTS if pattern.matches(point)]


def blocks(text: str) -> set[int]:
    return {int(point.split(".")[1]) for point in matched(text)}


def refused(text: str) -> str:
    with pytest.raises(ConfigError) as caught:
        Pattern.parse(text)
    return str(caught.value)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("blocks.{0..11}.norm1", set(range(12))),
        ("blocks.{3..3}.norm1", {3}),
        ("blocks.{00..02}.norm1", {0, 1, 2}),
        ("blocks.{0,3,12}.norm1", {0, 3, 12}),
        ("blocks.{0..2,10..11}.norm1", {0, 1, 2, 10, 11}),
        ("blocks.{7..99}.norm1", set(range(7, 13))),
        ("blocks.{1..2}*.weight", {1, 2}),  # a whole number, not the beginning of one
        ("blocks.1{0..2}.norm1", set()),
        ("blocks.[0-3].norm1", {0, 1, 2, 3}),
        ("blocks.[12].norm1", {1, 2}),
        ("blocks.[0-9][0-9].norm1", {10, 11, 12}),
        ("blocks.[!0-9].norm1", set()),
        ("blocks.[!1]*.norm1", {0, *range(2, 10)}),
        ("blocks.?.norm1", set(range(10))),
        ("blocks.**.norm1", set(range(13))),
        ("blocks.{0..999999999}.norm1", set(range(13))),
    ],
)
def test_numbers(text: str, expected: set[int]) -> None:
    assert blocks(text) == expected


def test_words_and_several_choices() -> None:
    assert matched("{patch_embed,head}.weight") == ["patch_embed.weight", "head.weight"]
    names = [f"blocks.{i}.{layer}.weight" for i in (0, 1) for layer in ("attn_qkv", "mlp_fc1")]
    assert matched("blocks.{0,1}.{mlp_fc1,attn_qkv}.weight") == names
    assert matched("blocks.0.mlp_fc{1,2}.weight") == ["blocks.0.mlp_fc1.weight", "blocks.0.mlp_fc2.weight"]
    assert matched("blocks.2.{norm1,mlp_fc1.weight}") == ["blocks.2.norm1", "blocks.2.mlp_fc1.weight"]


WRITE = {  # what people write -> what they mean
    "blocks.[0-11].mlp_fc1.weight": "blocks.{0..11}.mlp_fc1.weight",
    "blocks.[10-11].norm1": "blocks.{10..11}.norm1",
    "blocks.[0-35].norm1": "blocks.{0..35}.norm1",
    "blocks.[11].norm1": "blocks.{11}.norm1",
    "blocks.[0,3,5].norm1": "blocks.{0,3,5}.norm1",
    "blocks.[0-3,7-11].norm1": "blocks.{0..3,7..11}.norm1",
    "blocks.[0..11].norm1": "blocks.{0..11}.norm1",
    "blocks.[3-0].norm1": "blocks.{0..3}.norm1",
    "blocks.[^0]*.norm1": "blocks.[!0]*.norm1",
    "blocks.{0-11}.norm1": "blocks.{0..11}.norm1",
    "blocks.{0:11}.norm1": "blocks.{0..11}.norm1",
    "blocks.{11..0}.norm1": "blocks.{0..11}.norm1",
    "blocks.{0, 3}.norm1": "blocks.{0,3}.norm1",
    "blocks.0-11.norm1": "blocks.{0..11}.norm1",  # what `config show` prints
    "blocks.0,2-4.norm1": "blocks.{0,2..4}.norm1",
    "blocks.0:11.norm1": "blocks.{0..11}.norm1",
    "blocks.(0|1).norm1": "blocks.{0,1}.norm1",
    "blocks.0.(attn_qkv|mlp_fc1).weight": "blocks.0.{attn_qkv,mlp_fc1}.weight",
    r"blocks.\d+.norm1": "blocks.*.norm1",
    r"^blocks\.\d+\.mlp_fc1\.weight$": "blocks.*.mlp_fc1.weight",
    r"blocks\..*\.weight": "blocks.*.weight",
    "blocks/0/norm1": "blocks.0.norm1",
    "blocks. 0.norm1": "blocks.0.norm1",
    "blocks.0.norm1 ": "blocks.0.norm1",
}


@pytest.mark.parametrize("text", WRITE)
def test_other_notations_are_refused_with_what_to_write(text: str) -> None:
    assert refused(text).endswith(f"Fix: write {WRITE[text]}.")
    assert matched(WRITE[text])


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "the pattern is empty"),
        ("blocks.[0-3.norm1", "unmatched ["),
        ("blocks.0-3].norm1", "`-` does not occur in point names"),
        ("blocks.0].norm1", "unmatched ]"),
        ("blocks.{0..3.norm1", "unmatched {"),
        ("blocks.{0,{1,2}}.norm1", "unmatched {"),
        ("blocks.[].norm1", "`[]` is an empty set"),
        ("blocks.[!].norm1", "`[!]` is an empty set"),
        ("blocks.[!0-11].norm1", "`[!0-11]` matches one character"),
        ("blocks.[-1].norm1", "`[-1]` is not a valid set of single characters"),
        ("blocks.{}.norm1", "an item of `{}` is not a number"),
        ("blocks.{0,}.norm1", "an item of `{0,}` is not a number"),
        ("blocks.{-1}.norm1", "`-1` in `{-1}` is not a number"),
        (
            "blocks.{0..11..2}.norm1",
            "`0..11..2` in `{0..11..2}` is not a number, a range",
        ),
        ("blocks.{0..99999999999999999999}.norm1", "is not a number"),
        ("!blocks.0.norm1", "`!` does not occur in point names"),
        ("blocks.\u0663.norm1", "`\u0663` does not occur in point names"),
        ("blocks.0\x00.norm1", "the pattern contains a control character"),
        ("a*b*c*d*e*f*g*h", "the pattern has more than 6 `*`"),
    ],
)
def test_what_is_no_pattern(text: str, problem: str) -> None:
    message = refused(text)
    assert problem in message
    assert message.endswith("{0..11} (a number) or {0,3,5} (one of a list).")


def test_the_place_is_told(refusal: Callable[[str], str]) -> None:
    assert refusal("overrides:\n  blocks.[0-11].mlp_fc1.weight: {bit_type: {bits: 4}}\n") == (
        "a.yaml:2 overrides.blocks.[0-11].mlp_fc1.weight: `[0-11]` matches one character, not a number with "
        "several digits. Fix: write blocks.{0..11}.mlp_fc1.weight."
    )
    nested = "overrides:\n  blocks.[0-11].mlp_fc1:\n    weight: {}\n"
    assert refusal(nested).startswith("a.yaml:2 overrides.blocks.[0-11].mlp_fc1: `[0-11]` matches one character")
    assert refusal("blocks.*.norm1: {}\n").endswith("Fix: put point names and patterns under overrides.")


@pytest.mark.parametrize(
    ("text", "part", "fix"),
    [
        ("blocks.{0..11}.norm1", "3..11", "blocks.{0..2}.norm1"),
        ("blocks.{2..999999999}.norm1", "3..999999999", "blocks.{2}.norm1"),
        ("blocks.{0,2,7,9}.norm1", "7, 9", "blocks.{0,2}.norm1"),
        ("blocks.*.{norm1,nrom2}", "nrom2", "blocks.*.{norm1}"),
        ("blocks.{0..5}.{norm1,norm2}", "3..5", "blocks.{0..2}.{norm1,norm2}"),
    ],
)
def test_a_part_that_matches_nothing_is_an_error(refusal: Callable[[str], str], text: str, part: str, fix: str) -> None:
    start = time.process_time()
    message = refusal(f"overrides:\n  {text}: {{}}\n")
    assert time.process_time() - start < 1
    choice = re.search(r"\{[^}]*\}(?!.*\{)", text) if "nrom2" in text else re.search(r"\{[^}]*\}", text)
    assert choice
    assert message == (
        f"a.yaml:2 overrides.{text}: part of `{choice[0]}` matches no point of the model. Got {part}. "
        f"Fix: write {fix}; list the points with `vitquant config show`."
    )


def test_a_range_beyond_the_model_matches_nothing(refusal: Callable[[str], str]) -> None:
    assert "`blocks.{3..5}.norm1` matches no point of the model." in refusal("overrides: {'blocks.{3..5}.norm1': {}}")


def test_a_choice_ranks_between_a_star_and_the_exact_name(resolve: Resolve) -> None:
    rules = [
        "'*': {kl_bins: 64}",
        "blocks.*.norm1: {kl_bins: 128}",
        "blocks.{0..4}.norm1: {kl_bins: 256}",
        "blocks.2.norm1: {kl_bins: 512}",
    ]
    for order in (rules, rules[::-1]):
        table = resolve("overrides:\n" + "".join(f"  {rule}\n" for rule in order), depth=6)
        found = [config.kl_bins for point, config in table.items() if config and point.endswith("norm1")]
        assert found == [256, 256, 512, 256, 256, 128]
    assert Pattern.parse("blocks.{10,3..11}.norm1").specificity == (False, len("blocks.") + 1 + len(".norm1"))
    assert Pattern.parse("{norm1,residual1}").specificity == (False, len("norm1"))


def test_overlapping_choices_that_contradict_each_other(refusal: Callable[[str], str]) -> None:
    text = "overrides:\n  blocks.{0..1}.norm1: {kl_bins: 64}\n  blocks.{1..2}.norm1: {kl_bins: 128}\n"
    assert "conflicts with overrides.blocks.{0..1}.norm1 (a.yaml:2) at blocks.1.norm1" in refusal(text)


def test_a_choice_survives_the_plain_dict_and_the_schema_names_it(resolve: Resolve) -> None:
    table = resolve("overrides: {'blocks.{0..1}.norm1': {kl_bins: 64}}")
    again = ModelConfig.from_dict({"overrides": {"blocks.{0..1}.norm1": {"kl_bins": 64}}})
    assert again.resolve(point_names(3)) == table
    assert "{0..11}" in json_schema()["properties"]["overrides"]["description"]


def test_every_range_of_numbers_exhaustively() -> None:
    numbers = [str(n) for n in range(131)]
    for first in range(125):
        for last in range(first, 125):
            regex = re.compile(number_range(first, last))
            assert [int(n) for n in numbers if regex.fullmatch(n)] == list(range(first, last + 1))


@given(st.integers(0, 10**9 - 1), st.integers(0, 10**9 - 1), st.lists(st.integers(0, 10**10), max_size=20))
def test_wide_ranges_of_numbers(one: int, other: int, numbers: list[int]) -> None:
    first, last = sorted((one, other))
    regex = re.compile(number_range(first, last))
    for n in (*numbers, first, last, first - 1, last + 1, first // 10, last * 10):
        assert bool(regex.fullmatch(str(n))) == (first <= n <= last)


@given(st.sets(st.integers(0, 30)), st.integers(0, 30), st.integers(0, 30))
def test_what_a_range_leaves_over(used: set[int], one: int, other: int) -> None:
    span = Numbers(*sorted((one, other)))
    left = {n for part in span.without(used) for n in range(part.first, part.last + 1)}
    assert left == set(range(span.first, span.last + 1)) - used
    assert {n for run in runs(used) for n in range(run.first, run.last + 1)} == used


def expanded(pieces: list[str]) -> Iterator[str]:
    """What bash makes of the braces."""

    def options(piece: str) -> list[str]:
        if not piece.startswith("{"):
            return [piece]
        ends = re.fullmatch(r"\{(\d+)\.\.(\d+)\}", piece)
        return [str(n) for n in range(int(ends[1]), int(ends[2]) + 1)] if ends else piece[1:-1].split(",")

    return map("".join, product(*map(options, pieces)))


PIECES = [
    "blocks",
    ".",
    "*",
    "?",
    "[0-3]",
    "[!2]",
    "{0..3}",
    "{1,10}",
    "{norm1,norm2}",
    "{norm,mlp_fc}",
    "norm1",
    "weight",
]


@settings(max_examples=300)
@given(st.lists(st.sampled_from(PIECES), min_size=1, max_size=6))
def test_a_pattern_is_the_globs_that_its_braces_expand_to(pieces: list[str]) -> None:
    """But for numbers, which are whole: a wildcard or a digit next to one is left to the cases above."""
    for before, after in pairwise(pieces):
        if ("{" in before + after and any(char in before + after for char in "*?[")) or before[-1:] + after[:1] == "}{":
            return
    pattern, globs = Pattern.parse("".join(pieces)), list(expanded(pieces))
    for point in POINTS:
        assert pattern.matches(point) == any(fnmatchcase(point, glob) for glob in globs)


@given(st.text(st.sampled_from("blocks.01*?[]{},-!()|\\d+ ^$"), max_size=25))
def test_any_text_is_a_pattern_or_a_config_error_whose_advice_is_one(text: str) -> None:
    try:
        pattern = Pattern.parse(text)
    except ConfigError as error:
        advice = error.fix
    else:
        advice = None
        list(pattern.idle(POINTS[:30]))
    if advice is not None:
        Pattern.parse(advice.removeprefix("write "))
