"""Patterns of point names: globs, with numbers and words in braces as in bash.

``*`` matches any text, dots included, ``?`` one character, ``[0-3]`` one of several characters, ``{0..11}`` one number
of a range, ``{0,3,5}`` or ``{attn_qkv,mlp_fc1}`` one item of a list. Other notations, and patterns that would not match
what they appear to match, are errors; the message suggests the intended pattern.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from vitquant.config.explain import brief
from vitquant.errors import ConfigError

MAX_STARS = 6  # each one multiplies the number of ways to match a name

_TOKEN = re.compile(
    r"(?P<text>[A-Za-z0-9_.]+)|(?P<star>\*+)|(?P<one>\?)|(?P<set>\[[^\]]*\])|(?P<choice>\{[^{}]*\})", re.ASCII
)
_SET_PART = re.compile(r"([a-z])-([a-z])|([A-Z])-([A-Z])|([0-9])-([0-9])|[A-Za-z0-9_.]")
_RANGE = re.compile(r"([0-9]{1,9})(?:\.\.([0-9]{1,9}))?")
_WORD = re.compile(r"[A-Za-z_][A-Za-z0-9_.]*")
_HOW = "a name with *, ?, [0-3] (one character), {0..11} (a number) or {0,3,5} (one of a list)"


class _InvalidPatternError(Exception):
    """Why a text is not a pattern; internal to this module."""


@dataclass(frozen=True)
class Numbers:
    """The integers from ``first`` to ``last``, one item of a choice; never expanded into a list."""

    first: int
    last: int

    def __str__(self) -> str:
        return str(self.first) if self.first == self.last else f"{self.first}..{self.last}"

    def __contains__(self, number: int) -> bool:
        return self.first <= number <= self.last

    def without(self, used: set[int]) -> list[Numbers]:
        """The remaining numbers, as the fewest ranges."""
        inside = sorted(n for n in used if n in self)
        starts, ends = [self.first, *(n + 1 for n in inside)], [*(n - 1 for n in inside), self.last]
        return [Numbers(a, b) for a, b in zip(starts, ends, strict=True) if a <= b]


Item = Numbers | str


def runs(numbers: set[int]) -> list[Numbers]:
    """Numbers as the fewest ranges."""
    starts = sorted(n for n in numbers if n - 1 not in numbers)
    ends = sorted(n for n in numbers if n + 1 not in numbers)
    return [Numbers(a, b) for a, b in zip(starts, ends, strict=True)]


@dataclass(frozen=True)
class Pattern:
    """The pattern that selects the points of an override.

    ``pieces`` are the tokens of the text in order; ``choices`` are the items of the tokens in braces, by token index.
    """

    text: str
    regex: re.Pattern[str]
    pieces: tuple[str, ...]
    choices: dict[int, tuple[Item, ...]]
    literals: int

    @classmethod
    def parse(cls, text: str) -> Pattern:
        """Parse and validate a pattern.

        Raises:
            ConfigError: it is not a pattern, or not the intended one.

        >>> Pattern.parse("blocks.{0..11}.mlp_fc1.weight").matches("blocks.10.mlp_fc1.weight")
        True
        """
        try:
            return cls._read(text)
        except _InvalidPatternError as error:
            meant = _meant(text) if len(text) <= 200 else None
            raise ConfigError(
                str(error), expected=None if meant else _HOW, fix=f"write {meant}" if meant else None
            ) from error

    @classmethod
    def _read(cls, text: str) -> Pattern:
        regex, literals = "", 0
        pieces: list[str] = []
        choices: dict[int, tuple[Item, ...]] = {}
        for kind, piece in _tokens(text):
            if kind == "text":
                regex, literals = regex + re.escape(piece), literals + len(piece)
            elif kind == "set":
                regex += _set_regex(piece)
            elif kind == "choice":
                items = choices[len(pieces)] = _items(piece)
                regex += f"({_choice_regex(items)})"
                literals += min(len(str(item).partition("..")[0]) for item in items)
            else:
                regex += ".*" if kind == "star" else "."
            pieces.append(piece)
        return cls(text, re.compile(regex), tuple(pieces), choices, literals)

    @property
    def is_glob(self) -> bool:
        """Whether the pattern can match a text other than its own."""
        return any(char in self.text for char in "*?[{")

    @property
    def specificity(self) -> tuple[bool, int]:
        """The sort key of patterns: an exact name is the most specific, then the number of literal characters counts.

        A choice counts as its shortest item: ``{0..11}`` is more specific than ``*`` and less specific than a number.
        """
        return not self.is_glob, self.literals

    def matches(self, point: str) -> bool:
        """Whether the whole name matches."""
        return self.regex.fullmatch(point) is not None

    def idle(self, points: Sequence[str]) -> Iterator[tuple[str, list[str], str]]:
        """Choices with items that match no point: the choice as written, these items, and the choice without them."""
        matched = [match for match in map(self.regex.fullmatch, points) if match]
        known = {int(n) for point in points for n in re.findall("[0-9]+", point)}
        for group, (index, items) in enumerate(self.choices.items(), start=1):
            captured = {match[group] for match in matched}
            unused: list[str] = []
            kept: list[str] = []
            for item in items:
                values = [str(n) for n in sorted(known) if n in item] if isinstance(item, Numbers) else [item]
                used = [value for value in values if value in captured or self._narrowed(index, value, points)]
                if isinstance(item, Numbers):
                    found = {int(value) for value in used}
                    unused += map(str, item.without(found))
                    kept += map(str, runs(found))
                else:
                    unused += [] if used else [item]
                    kept += used
            if unused:
                yield self.pieces[index], unused, f"{{{','.join(kept)}}}"

    def _narrowed(self, index: int, value: str, points: Sequence[str]) -> bool:
        """Whether a point matches with ``value`` in place of a choice."""
        text = "".join(value if i == index else piece for i, piece in enumerate(self.pieces))
        narrow = Pattern._read(text)
        return any(map(narrow.matches, points))


def _tokens(text: str) -> Iterator[tuple[str, str]]:
    position = 0
    while position < len(text):
        match = _TOKEN.match(text, position)
        if match is None:
            raise _InvalidPatternError(_reason(text[position]))
        yield match.lastgroup or "", match[0]
        position = match.end()
    if not text:
        raise _InvalidPatternError("the pattern is empty")
    if len(re.findall(r"\*+", text)) > MAX_STARS:
        raise _InvalidPatternError(f"the pattern has more than {MAX_STARS} `*`")


def _reason(char: str) -> str:
    if char.isspace():
        return "the pattern contains a space"
    if char in "[]{}":
        return f"unmatched {char}"
    if char in "\\()|+^$":
        return f"`{char}` is regular expression syntax, but patterns are globs"
    return (
        f"`{char}` does not occur in point names" if char.isprintable() else "the pattern contains a control character"
    )


def _set_regex(piece: str) -> str:
    negated, body = piece[1:2] == "!", piece[1:-1].removeprefix("!")
    parts = list(_SET_PART.finditer(body))
    if not body:
        raise _InvalidPatternError(f"`{piece}` is an empty set")
    if "".join(part[0] for part in parts) != body:
        raise _InvalidPatternError(f"`{brief(piece)}` is not a valid set of single characters")
    characters: list[str] = []
    for part in parts:
        ends = [end for end in part.groups() if end]
        if ends and ends[0] > ends[1]:
            raise _InvalidPatternError(f"the range {part[0]} in `{brief(piece)}` is reversed")
        near = body[max(part.start() - 1, 0) : part.start()] + body[part.end() : part.end() + 1]
        if ends and ends[0].isdigit() and any(char.isdigit() for char in near):
            raise _InvalidPatternError(f"`{brief(piece)}` matches one character, not a number with several digits")
        characters += [chr(c) for c in range(ord(ends[0]), ord(ends[1]) + 1)] if ends else [part[0]]
    if len(set(characters)) < len(characters):
        raise _InvalidPatternError(f"`{brief(piece)}` lists a character twice")
    return f"[{'^' if negated else ''}{re.escape(''.join(characters))}]"


def _items(piece: str) -> tuple[Item, ...]:
    items: list[Item] = []
    for part in piece[1:-1].split(","):
        numbers = _RANGE.fullmatch(part)
        if numbers:
            first, last = int(numbers[1]), int(numbers[2] or numbers[1])
            if first > last:
                raise _InvalidPatternError(f"the range {part} is reversed")
            items.append(Numbers(first, last))
        elif _WORD.fullmatch(part):
            items.append(part)
        else:
            what = f"`{brief(part)}` in `{brief(piece)}`" if part else f"an item of `{brief(piece)}`"
            raise _InvalidPatternError(f"{what} is not a number, a range such as 0..11, or a name")
    return tuple(items)


def _choice_regex(items: Sequence[Item]) -> str:
    """One of the items; a number matches only as a whole, not as part of a longer number."""
    numbers = [number_range(item.first, item.last) for item in items if isinstance(item, Numbers)]
    words = [re.escape(item) for item in items if isinstance(item, str)]
    whole = [rf"(?<![0-9])(?:{'|'.join(numbers)})(?![0-9])"] if numbers else []
    return "|".join(whole + words)


def number_range(first: int, last: int) -> str:
    """A regular expression for the decimal numbers from ``first`` to ``last``, as short as their digits.

    >>> number_range(8, 123)
    '[8-9]|[1-9][0-9]|1(?:[0-1][0-9]|2[0-3])'
    """
    options = []
    for digits in range(len(str(first)), len(str(last)) + 1):
        low, high = max(first, 10 ** (digits - 1) if digits > 1 else 0), min(last, 10**digits - 1)
        options.append(_same_length(str(low), str(high)))
    return "|".join(options)


def _same_length(low: str, high: str) -> str:
    if low == high:
        return low
    rest = len(low) - 1
    if low[0] == high[0]:
        return f"{low[0]}(?:{_same_length(low[1:], high[1:])})"
    bottom, top = int(low[0]), int(high[0])
    options = []
    if low[1:].strip("0"):  # not all continuations of the lowest first digit are in the range
        options.append(low[0] + _grouped(_same_length(low[1:], "9" * rest)))
        bottom += 1
    last = []
    if high[1:].strip("9"):
        last.append(high[0] + _grouped(_same_length("0" * rest, high[1:])))
        top -= 1
    if bottom <= top:
        digit = str(bottom) if bottom == top else f"[{bottom}-{top}]"
        options.append(digit + "[0-9]" * rest)
    return "|".join(options + last)


def _grouped(regex: str) -> str:
    return f"(?:{regex})" if "|" in regex else regex


def _meant(text: str) -> str | None:
    """The pattern that a text in another notation probably means."""
    plain = re.sub(r"\s", "", text).removeprefix("^").removesuffix("$").replace("/", ".").replace("[^", "[!")
    if "\\" in plain:
        plain = re.sub(r"(?<!\\)\.[*+]", "*", plain)
    plain = re.sub(r"\\d[+*]?|\[0-9\]\+|(?<!\\)\.\+|\\w[+*]", "*", plain).replace("\\.", ".")
    plain = re.sub(r"\((?:\?:)?([^()]*)\)", lambda m: _braces(m[1].replace("|", ",")) or m[0], plain)
    plain = re.sub(r"[\[{]([^\[\]{}]*)[\]}]", _repaired, plain)
    plain = re.sub(r"(?<=[A-Za-z]\.)[0-9]+(?:[-,:][0-9]+)+(?=\.[A-Za-z*])", lambda m: _braces(m[0]) or m[0], plain)
    if plain == text or not plain:
        return None
    try:
        return Pattern._read(plain).text
    except _InvalidPatternError:
        return None


def _repaired(group: re.Match[str]) -> str:
    """A set or a choice: unchanged if it is valid, otherwise as a choice if possible."""
    try:
        Pattern._read(group[0])
    except _InvalidPatternError:
        return _braces(group[1]) or group[0]
    return group[0]


def _braces(body: str) -> str | None:
    """``{...}`` for a list of words, numbers and ranges of numbers in any notation."""
    items = []
    for part in body.split(","):
        ends = re.fullmatch(r"([0-9]{1,9})(?:(?:-|:|\.\.\.?)([0-9]{1,9}))?", part)
        if ends:
            first, last = sorted((int(ends[1]), int(ends[2] or ends[1])))
            items.append(str(Numbers(first, last)))
        elif _WORD.fullmatch(part):
            items.append(part)
        else:
            return None
    return f"{{{','.join(items)}}}"
