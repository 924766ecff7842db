"""Patterns of points: globs, with numbers and words in braces as in bash.

``*`` is any text, dots included, ``?`` one character, ``[0-3]`` one of several characters, ``{0..11}`` one of several
numbers, ``{0,3,5}`` or ``{attn_qkv,mlp_fc1}`` one of a list. What is none of these, or would match something else than
it says, is refused with the pattern that was probably meant.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from vitquant.config.explain import brief
from vitquant.errors import ConfigError

MAX_STARS = 6  # each multiplies the ways to match a name

_TOKEN = re.compile(
    r"(?P<text>[A-Za-z0-9_.]+)|(?P<star>\*+)|(?P<one>\?)|(?P<set>\[[^\]]*\])|(?P<choice>\{[^{}]*\})", re.ASCII
)
_SET_PART = re.compile(r"([a-z])-([a-z])|([A-Z])-([A-Z])|([0-9])-([0-9])|[A-Za-z0-9_.]")
_RANGE = re.compile(r"([0-9]{1,9})(?:\.\.([0-9]{1,9}))?")
_WORD = re.compile(r"[A-Za-z_][A-Za-z0-9_.]*")
_HOW = "a name with *, ?, [0-3] (one character), {0..11} (a number) or {0,3,5} (one of a list)"


class _NoPatternError(Exception):
    """Says why a text is no pattern; for this module only."""


@dataclass(frozen=True)
class Numbers:
    """The whole numbers from ``first`` to ``last``, one item of a choice; never listed one by one."""

    first: int
    last: int

    def __str__(self) -> str:
        return str(self.first) if self.first == self.last else f"{self.first}..{self.last}"

    def __contains__(self, number: int) -> bool:
        return self.first <= number <= self.last

    def without(self, used: set[int]) -> list[Numbers]:
        """What remains, as few ranges."""
        inside = sorted(n for n in used if n in self)
        starts, ends = [self.first, *(n + 1 for n in inside)], [*(n - 1 for n in inside), self.last]
        return [Numbers(a, b) for a, b in zip(starts, ends, strict=True) if a <= b]


Item = Numbers | str


def runs(numbers: set[int]) -> list[Numbers]:
    """Numbers as few ranges."""
    starts = sorted(n for n in numbers if n - 1 not in numbers)
    ends = sorted(n for n in numbers if n + 1 not in numbers)
    return [Numbers(a, b) for a, b in zip(starts, ends, strict=True)]


@dataclass(frozen=True)
class Pattern:
    """What names the points of an override.

    ``pieces`` are the tokens of the text in order, ``choices`` the items of those in braces by their index.
    """

    text: str
    regex: re.Pattern[str]
    pieces: tuple[str, ...]
    choices: dict[int, tuple[Item, ...]]
    literals: int

    @classmethod
    def parse(cls, text: str) -> Pattern:
        """Read and check a pattern.

        Raises:
            ConfigError: it is no pattern, or not the one that was meant.

        >>> Pattern.parse("blocks.{0..11}.mlp_fc1.weight").matches("blocks.10.mlp_fc1.weight")
        True
        """
        try:
            return cls._read(text)
        except _NoPatternError as error:
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
        """Whether it can match more than its own text."""
        return any(char in self.text for char in "*?[{")

    @property
    def specificity(self) -> tuple[bool, int]:
        """Sorts patterns: an exact name above all others, these by their number of literal characters.

        A choice has as many as its shortest item, so ``{0..11}`` goes before ``*`` and behind a number.
        """
        return not self.is_glob, self.literals

    def matches(self, point: str) -> bool:
        """Whether the whole name matches."""
        return self.regex.fullmatch(point) is not None

    def idle(self, points: Sequence[str]) -> Iterator[tuple[str, list[str], str]]:
        """The choices of which a part matches no point: as written, these parts, and the choice without them."""
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
            raise _NoPatternError(_reason(text[position]))
        yield match.lastgroup or "", match[0]
        position = match.end()
    if not text:
        raise _NoPatternError("an empty pattern")
    if len(re.findall(r"\*+", text)) > MAX_STARS:
        raise _NoPatternError(f"more than {MAX_STARS} times `*` in a pattern")


def _reason(char: str) -> str:
    if char.isspace():
        return "a space in a pattern"
    if char in "[]{}":
        return f"an unmatched {char}"
    if char in "\\()|+^$":
        return f"`{char}` belongs to regular expressions, and patterns are globs"
    return f"`{char}` is in no name of a point" if char.isprintable() else "a control character in a pattern"


def _set_regex(piece: str) -> str:
    negated, body = piece[1:2] == "!", piece[1:-1].removeprefix("!")
    parts = list(_SET_PART.finditer(body))
    if not body:
        raise _NoPatternError(f"`{piece}` is an empty set")
    if "".join(part[0] for part in parts) != body:
        raise _NoPatternError(f"`{brief(piece)}` is a set of single characters, and is not written as one")
    characters: list[str] = []
    for part in parts:
        ends = [end for end in part.groups() if end]
        if ends and ends[0] > ends[1]:
            raise _NoPatternError(f"the range {part[0]} in `{brief(piece)}` runs backwards")
        near = body[max(part.start() - 1, 0) : part.start()] + body[part.end() : part.end() + 1]
        if ends and ends[0].isdigit() and any(char.isdigit() for char in near):
            raise _NoPatternError(f"`{brief(piece)}` stands for one character, not for a number of several digits")
        characters += [chr(c) for c in range(ord(ends[0]), ord(ends[1]) + 1)] if ends else [part[0]]
    if len(set(characters)) < len(characters):
        raise _NoPatternError(f"`{brief(piece)}` stands for one character and names one twice")
    return f"[{'^' if negated else ''}{re.escape(''.join(characters))}]"


def _items(piece: str) -> tuple[Item, ...]:
    items: list[Item] = []
    for part in piece[1:-1].split(","):
        numbers = _RANGE.fullmatch(part)
        if numbers:
            first, last = int(numbers[1]), int(numbers[2] or numbers[1])
            if first > last:
                raise _NoPatternError(f"the range {part} runs backwards")
            items.append(Numbers(first, last))
        elif _WORD.fullmatch(part):
            items.append(part)
        else:
            what = f"`{brief(part)}` in `{brief(piece)}`" if part else f"an item of `{brief(piece)}`"
            raise _NoPatternError(f"{what} is neither a number, a range such as 0..11, nor a name")
    return tuple(items)


def _choice_regex(items: Sequence[Item]) -> str:
    """One of the items; a number only as a whole, not as a part of a longer one."""
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
    if low[1:].strip("0"):  # the lowest first digit does not take all that may follow
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
    """The pattern that a text in another notation probably stands for."""
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
    except _NoPatternError:
        return None


def _repaired(group: re.Match[str]) -> str:
    """A set or a choice as it is, if it can be read, and otherwise as a choice, if it can be one."""
    try:
        Pattern._read(group[0])
    except _NoPatternError:
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
