"""JSON, YAML and TOML as trees in which each value knows its line, and its path for people."""

import json
import re
import tomllib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import date, datetime, time
from io import StringIO
from itertools import islice
from typing import Any, NoReturn

from ruamel.yaml import YAML, events
from ruamel.yaml.error import YAMLError
from ruamel.yaml.nodes import ScalarNode

from schemas.errors import PcmError

_DEEPEST = 20  # a job has five levels
_TOO_DEEP = f"is nested more than {_DEEPEST} levels deep"


class Unreadable(PcmError):
    """The text cannot be read; `line` says where, if that is known."""

    def __init__(self, line: int | None, text: str) -> None:
        super().__init__(text)
        self.line = line


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong in a file; the text says what would be right."""

    line: int | None
    field: str
    text: str

    def __str__(self) -> str:
        return f"{self.field}: {self.text}" if self.field else self.text


@dataclass
class Node:
    """A value, where it stands, and its path such as `jobs[1].command`."""

    line: int
    path: str = ""
    value: Any = None  # a dict or a list of nodes, or a plain value

    def plain(self) -> Any:
        """Return the value without its marks."""
        if isinstance(self.value, dict):
            return {name: node.plain() for name, node in self.value.items()}
        if isinstance(self.value, list):
            return [node.plain() for node in self.value]
        return self.value

    def under(self, name: str) -> str:
        """Return the path of what has a name in it."""
        return f"{self.path}.{name}" if self.path else name


def read_text(text: str, suffix: str) -> tuple[list[Node], list[Problem]]:
    """Return the documents of a text, and the keys that are wrong in themselves.

    Raises:
        Unreadable: it is not what its suffix says.
    """
    if suffix == ".toml":
        return [_from_toml(text)], []
    if suffix == ".json" or (
        suffix not in {".yaml", ".yml"} and text.lstrip().startswith(("{", "["))
    ):
        return _from_json(text)
    return _from_yaml(text)


@dataclass
class _Tree:
    """Grows documents out of what comes in the order of the text."""

    documents: list[Node] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)
    _open: list[Node] = field(default_factory=list)
    _keys: list[tuple[str, int] | None] = field(default_factory=list)

    @property
    def wants_key(self) -> bool:
        """Whether a key comes next, not a value."""
        return bool(self._open) and isinstance(self._open[-1].value, dict) and not self._keys[-1]

    def key(self, text: str, line: int) -> None:
        """Take in the key of the next value."""
        self._keys[-1] = (text, line)

    def begin(self, value: dict[str, Node] | list[Node], line: int) -> None:
        """Take in the beginning of a mapping or a list."""
        if self.wants_key:
            raise Unreadable(line, "a key must be plain text")
        if len(self._open) == _DEEPEST:
            raise Unreadable(line, _TOO_DEEP)
        node = self.add(value, line)
        self._open.append(node)
        self._keys.append(None)

    def end(self) -> None:
        """Take in the end of what was begun last."""
        self._open.pop()
        self._keys.pop()

    def add(self, value: Any, line: int) -> Node:
        """Take in a value."""
        node = Node(line, value=value)
        if not self._open:
            self.documents.append(node)
        elif isinstance(self._open[-1].value, list):
            parent = self._open[-1]
            node.path = f"{parent.path}[{len(parent.value)}]"
            parent.value.append(node)
        else:
            self._set(self._open[-1], node)
        return node

    def _set(self, parent: Node, node: Node) -> None:
        name, node.line = self._keys[-1] or ("", node.line)
        self._keys[-1] = None
        node.path = parent.under(name)
        if name in parent.value:
            first = parent.value[name].line
            self.problems.append(
                Problem(node.line, node.path, f"is there twice: in line {first}, too")
            )
        else:
            parent.value[name] = node


_JSON_WORD = re.compile(r'[{}\[\]\n]|"(?:[^"\\]|\\.)*"|[^\s{}\[\],:"]+')


def _from_json(text: str) -> tuple[list[Node], list[Problem]]:
    try:
        json.loads(text, parse_constant=_no_number)
    except json.JSONDecodeError as error:
        raise Unreadable(error.lineno, f"is no JSON: {error.msg}") from None
    except RecursionError:
        raise Unreadable(None, _TOO_DEEP) from None
    except ValueError as error:
        raise Unreadable(None, f"is no JSON: {error}") from None
    tree, line = _Tree(), 1
    for word in _JSON_WORD.findall(text):
        if word == "\n":
            line += 1
        elif word in "{[":
            tree.begin({} if word == "{" else [], line)
        elif word in "}]":
            tree.end()
        elif tree.wants_key:
            tree.key(json.loads(word), line)
        else:
            tree.add(json.loads(word), line)
    return tree.documents, tree.problems


def _no_number(text: str) -> NoReturn:
    raise ValueError(f"{text} is no number")


def _from_yaml(text: str) -> tuple[list[Node], list[Problem]]:
    yaml = YAML(typ="safe", pure=True)
    tree = _Tree()
    try:
        for event in yaml.parse(StringIO(text)):
            _take(tree, event, lambda event: _scalar(yaml, event))
    except YAMLError as error:
        raise _no_yaml(error) from None
    return tree.documents, tree.problems


def _take(tree: _Tree, event: Any, scalar: Callable[[Any], Any]) -> None:
    """Let a tree grow by an event of the YAML parser."""
    line = event.start_mark.line + 1
    match event:
        case events.AliasEvent():
            raise Unreadable(line, f"*{event.anchor}: aliases are not taken; write it out")
        case events.MappingStartEvent():
            tree.begin({}, line)
        case events.SequenceStartEvent():
            tree.begin([], line)
        case events.MappingEndEvent() | events.SequenceEndEvent():
            tree.end()
        case events.ScalarEvent() if tree.wants_key:
            tree.key(event.value, line)
        case events.ScalarEvent():
            tree.add(scalar(event), line)


_YAML = "tag:yaml.org,2002:"
_AS_IT_STANDS = {f"{_YAML}{kind}" for kind in ("str", "timestamp", "merge", "value")}


def _scalar(yaml: Any, event: Any) -> Any:
    line = event.start_mark.line + 1
    tag = str(event.tag or yaml.resolver.resolve(ScalarNode, event.value, event.implicit))
    if tag in _AS_IT_STANDS:
        return event.value
    if tag not in {f"{_YAML}{kind}" for kind in ("null", "bool", "int", "float")}:
        raise Unreadable(line, f"{tag}: such tags are not taken")
    try:
        return yaml.constructor.construct_object(ScalarNode(tag=tag, value=event.value))
    except (ValueError, LookupError, OverflowError):
        kind = tag.removeprefix(_YAML)
        raise Unreadable(line, f"{event.value!r} is no {kind}; put text in quotes") from None


def _no_yaml(error: Exception) -> Unreadable:
    problem: Any = getattr(error, "problem", None) or "it has characters that may not be there"
    mark: Any = getattr(error, "problem_mark", None)
    return Unreadable(mark.line + 1 if mark else None, f"is no YAML: {problem}")


def _from_toml(text: str) -> Node:
    lines = dict(_toml_lines(text))  # first: it refuses keys that tomllib takes for ever to read
    try:
        value = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        what, _, where = str(error).partition(" (at ")
        line = re.match(r"line (\d+)", where)
        raise Unreadable(int(line[1]) if line else None, f"is no TOML: {what}") from None
    except RecursionError:
        raise Unreadable(None, _TOO_DEEP) from None
    except ValueError as error:
        raise Unreadable(None, f"is no TOML: {error}") from None
    return _marked(value, (), Node(1), lines)


_Path = tuple[str | int, ...]


def _marked(value: Any, place: _Path, node: Node, lines: dict[_Path, int]) -> Node:
    """Fill a node; what has no line of its own is where its table is."""
    if len(place) > _DEEPEST:
        raise Unreadable(node.line, _TOO_DEEP)
    node.line = lines.get(place, node.line)
    if isinstance(value, dict):
        node.value = {
            name: _marked(item, (*place, name), Node(node.line, node.under(name)), lines)
            for name, item in value.items()
        }
    elif isinstance(value, list):
        node.value = [
            _marked(item, (*place, number), Node(node.line, f"{node.path}[{number}]"), lines)
            for number, item in enumerate(value)
        ]
    else:
        node.value = value.isoformat() if isinstance(value, date | datetime | time) else value
    return node


_WORD = r"""(?:[A-Za-z0-9_-]+|"[^"]*"|'[^']*')"""
_WORDS = rf"\s*({_WORD}(?:\s*\.\s*{_WORD})*)\s*"
_HEADER = re.compile(rf"\s*(\[\[?){_WORDS}\]")
_SETTING = re.compile(rf"{_WORDS}=")
_QUOTES = re.compile(r'"""|' + "'''")


def _toml_lines(text: str) -> Iterator[tuple[_Path, int]]:
    """Yield the places of a TOML file's headers and keys, with their lines."""
    table: _Path = ()
    counts: dict[_Path, int] = {}
    quoted = False
    for number, line in enumerate(text.split("\n"), 1):
        if quoted:
            pass
        elif header := _HEADER.match(line):
            table = _table(_words(header[2], number), counts, begins=header[1] == "[[")
            yield table, number
        elif setting := _SETTING.match(line):
            words = _words(setting[1], number)
            yield from ((table + words[: end + 1], number) for end in range(len(words)))
        if len(_QUOTES.findall(line)) % 2:
            quoted = not quoted


def _words(text: str, line: int) -> tuple[str, ...]:
    words = [word[0].strip("\"'") for word in islice(re.finditer(_WORD, text), _DEEPEST + 1)]
    if len(words) > _DEEPEST:
        raise Unreadable(line, _TOO_DEEP)
    return tuple(words)


def _table(words: tuple[str, ...], counts: dict[_Path, int], *, begins: bool) -> _Path:
    """Return the place of a table; in an array of tables, in its newest."""
    place: _Path = ()
    for word in words[:-1]:
        place += (word,)
        if place in counts:
            place += (counts[place] - 1,)
    place += (words[-1],)
    if begins:
        counts[place] = counts.get(place, 0) + 1
        place += (counts[place] - 1,)
    return place
