"""YAML text as a tree with the location of each key.

Files are untrusted: size, depth and the number of values after alias expansion are limited, and tags are rejected,
before anything is built (an alias bomb of 400 bytes would otherwise expand to gigabytes).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import yaml

from vitquant.config.explain import brief, show, yaml_number
from vitquant.config.quant_config import BitType
from vitquant.errors import ConfigError

MAX_BYTES = 1 << 20
MAX_VALUES = 100_000
MAX_DEPTH = 16
MAX_KEY = 200

_MERGE_TAG = "tag:yaml.org,2002:merge"
_SCALAR_TAGS = {f"tag:yaml.org,2002:{name}" for name in ("null", "bool", "int", "float")}


@dataclass(frozen=True)
class Location:
    """A location in a file; ``line`` counts from 1 and is ``None`` for a mapping created in Python."""

    file: str
    line: int | None = None

    def __str__(self) -> str:
        return self.file if self.line is None else f"{self.file}:{self.line}"


@dataclass(frozen=True)
class Leaf:
    """A value that is not a mapping."""

    value: object
    location: Location


@dataclass(frozen=True)
class Table:
    """A mapping. The location of an entry is that of its key."""

    entries: Mapping[str, Node]
    location: Location


@dataclass(frozen=True)
class Items(Leaf):
    """A list, whose items have locations too. Its ``value`` is shown where no list is allowed."""

    items: tuple[Node, ...]


Node = Leaf | Table


def plain(node: Node) -> object:
    """A tree without locations."""
    return node.value if isinstance(node, Leaf) else {key: plain(child) for key, child in node.entries.items()}


def tree(value: object, location: Location, depth: int = 1) -> Node:
    """Plain Python mappings and lists as a tree.

    Raises:
        ConfigError: a key is not text, or they are nested too deeply (for example, one that contains itself).
    """
    if isinstance(value, BitType):
        value = value.model_dump()
    if isinstance(value, Mapping | list | tuple) and depth > MAX_DEPTH:
        raise ConfigError("nested too deeply", where=str(location), expected=f"at most {MAX_DEPTH} levels")
    if isinstance(value, Mapping):
        return Table({check_key(key, location): tree(v, location, depth + 1) for key, v in value.items()}, location)
    if isinstance(value, list | tuple):
        return Items(value, location, tuple(tree(item, location, depth + 1) for item in value))
    return Leaf(value, location)


class YamlSyntaxError(ConfigError):
    """The text is not valid YAML; the message ends with the line and a caret under the error."""

    def __init__(self, problem: str, *, where: str, snippet: str, fix: str | None) -> None:
        self.snippet = snippet
        super().__init__(problem, where=where, fix=fix)

    def _text(self) -> str:
        return f"{super()._text()}\n{self.snippet}"


def read_file(path: Path, name: str) -> Table:
    """Read a YAML file; error messages refer to it as ``name``.

    Raises:
        ConfigError: the file is unreadable, too large, not UTF-8, not YAML, empty or not a mapping, or a key is
            duplicated.
    """
    try:
        if not path.is_file():  # reading a named pipe could block forever
            raise ConfigError("is not a regular file", where=name, fix="save the configuration as a file")
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise ConfigError(f"cannot be read: {error.strerror}", where=name) from error
    if len(data) > MAX_BYTES:
        raise ConfigError("the file is too large", where=name, expected=f"at most {MAX_BYTES:,} bytes")
    try:
        return read_text(data.decode("utf-8-sig"), name)
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        got = "UTF-16" if data[:2] in (b"\xff\xfe", b"\xfe\xff") else f"byte 0x{data[error.start]:02x}"
        raise ConfigError("not UTF-8 text", where=f"{name}:{line}", got=got, fix="save the file as UTF-8") from error


def read_text(text: str, name: str) -> Table:
    """Like :func:`read_file`, for text in memory."""
    try:
        _check_limits(text, name)
        root = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.YAMLError as error:
        raise _syntax_error(error, text, name) from error
    except (ValueError, OverflowError) as error:  # such as a \\U escape beyond the last character
        raise ConfigError(f"bad YAML, {brief(str(error))}", where=name) from error
    node = _convert(root, Location(name, root.start_mark.line + 1)) if root else Leaf(None, Location(name))
    if node in (Leaf(None, node.location), Table({}, node.location)):
        raise ConfigError(
            "the file is empty", where=name, expected="a mapping of sections", fix="start from a shipped file"
        )
    if not isinstance(node, Table):
        raise ConfigError("not a configuration", where=str(node.location), got=show(node.value), expected="a mapping")
    return node


def _check_limits(text: str, name: str) -> None:
    """Walk the events, which does not expand aliases, and count the values that expansion would produce."""
    sizes: dict[str | None, int] = {}
    open_collections: list[tuple[str | None, int]] = []
    values = 0
    for event in yaml.parse(text, Loader=yaml.SafeLoader):
        where = str(Location(name, event.start_mark.line + 1 if event.start_mark else None))
        if isinstance(event, yaml.AliasEvent):
            if any(anchor == event.anchor for anchor, _ in open_collections):
                raise ConfigError(f"alias *{brief(event.anchor or '')} refers to itself", where=where)
            values += sizes.get(event.anchor, 1)
        elif isinstance(event, yaml.ScalarEvent | yaml.CollectionStartEvent):
            if event.tag is not None:
                raise ConfigError(
                    "YAML tags are not allowed",
                    where=where,
                    got=brief(event.tag),
                    expected="plain values",
                    fix="remove it",
                )
            if isinstance(event, yaml.CollectionStartEvent):
                open_collections.append((event.anchor, values))
            elif event.anchor:
                sizes[event.anchor] = 1
            values += 1
        elif isinstance(event, yaml.CollectionEndEvent):
            anchor, before = open_collections.pop()
            if anchor:
                sizes[anchor] = values - before
        if values > MAX_VALUES:
            raise ConfigError("too many values after alias expansion", where=where, expected=f"at most {MAX_VALUES:,}")
        if len(open_collections) > MAX_DEPTH:
            raise ConfigError("nested too deeply", where=where, expected=f"at most {MAX_DEPTH} levels")


def _convert(node: yaml.Node, location: Location) -> Node:
    if isinstance(node, yaml.MappingNode):
        return _table(node, location)
    if isinstance(node, yaml.SequenceNode):
        items = tuple(_convert(item, Location(location.file, item.start_mark.line + 1)) for item in node.value)
        return Items([item.value if isinstance(item, Leaf) else "a mapping" for item in items], location, items)
    return Leaf(_scalar(node, location), location)


def _table(node: yaml.MappingNode, location: Location) -> Table:
    entries: dict[str, Node] = {}
    inherited: dict[str, Node] = {}
    for key_node, value_node in node.value:
        at = Location(location.file, key_node.start_mark.line + 1)
        if not isinstance(key_node, yaml.ScalarNode):
            raise ConfigError("a key must be a name", where=str(at))
        key = check_key(key_node.value, at)
        if key_node.tag == _MERGE_TAG:
            inherited = {**_merged(value_node, at), **inherited}
        elif key in entries:
            lines = f"lines {entries[key].location.line} and {at.line}"
            raise ConfigError(f"the key is given twice, on {lines}", where=f"{at} {key}", fix="remove one of them")
        else:
            entries[key] = _convert(value_node, at)
    return Table({**inherited, **entries}, location)


def check_key(key: object, at: Location) -> str:
    """The key of a mapping, if it is printable text.

    Raises:
        ConfigError: it is not.
    """
    if not isinstance(key, str):
        raise ConfigError("a key must be a name", where=str(at), got=show(key))
    if len(key) > MAX_KEY:
        raise ConfigError("the key is too long", where=str(at), got=show(key), expected=f"at most {MAX_KEY} characters")
    if not key.isprintable():
        raise ConfigError("the key contains unprintable characters", where=str(at), got=show(key))
    return key


def _merged(node: yaml.Node, at: Location) -> Mapping[str, Node]:
    """The entries of YAML's merge key ``<<``; of several mappings the earlier one wins."""
    merged: dict[str, Node] = {}
    for item in node.value if isinstance(node, yaml.SequenceNode) else [node]:
        table = _convert(item, at)
        if not isinstance(table, Table):
            raise ConfigError("`<<` needs a mapping", where=f"{at} <<", got=show(table.value))
        merged = {**table.entries, **merged}
    return merged


def _scalar(node: yaml.Node, location: Location) -> object:
    if node.tag not in _SCALAR_TAGS:  # text; dates and similar types have no meaning here and stay text as well
        return node.value
    digits = node.value.replace("_", "")
    if node.tag.endswith((":int", ":float")) and ":" in digits:
        raise ConfigError(
            "YAML reads this as a number in base 60",
            where=str(location),
            got=show(node.value),
            fix="write a plain number",
        )
    if node.tag.endswith(":int") and re.fullmatch(r"[-+]?0[0-7]{1,18}", digits):
        octal, decimal = int(digits, 8), int(digits)
        other = "" if octal == decimal else f", or {octal} if base 8 is meant"
        problem = "YAML reads this as a number in base 8"
        raise ConfigError(problem, where=str(location), got=show(node.value), fix=f"write {decimal}{other}")
    try:
        return yaml.constructor.SafeConstructor().construct_object(node)
    except ValueError as error:
        fix = yaml_number(node.value)
        raise ConfigError(
            "not a number", where=str(location), got=show(node.value), fix=fix and f"write {fix}"
        ) from error


def _syntax_error(error: yaml.YAMLError, text: str, name: str) -> YamlSyntaxError:
    if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark is not None:
        line, column = error.problem_mark.line, error.problem_mark.column
        problem: str = brief(error.problem or "unreadable", 120)
    else:  # yaml.reader.ReaderError: a character that YAML does not allow
        index = getattr(error, "position", 0)
        line, column = text.count("\n", 0, index), index - (text.rfind("\n", 0, index) + 1)
        problem = str(getattr(error, "reason", "unreadable"))
    lines = text.splitlines()
    shown = lines[line] if line < len(lines) else ""
    start = max(0, column - 60)
    snippet = "".join(c if c.isprintable() else " " for c in shown[start : start + 100])
    return YamlSyntaxError(
        f"bad YAML, {problem}",
        where=f"{name}:{line + 1}:{column + 1}",
        snippet=f"  {snippet}\n  {' ' * (column - start)}^",
        fix="YAML indents with spaces, replace the tab" if "\t" in shown[: column + 1] else None,
    )
