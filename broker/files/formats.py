"""Read JSON, YAML and TOML, and find the lines of their values."""

import json
import re
import tomllib
from collections.abc import Collection, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import date, datetime, time
from io import StringIO
from typing import Any, NoReturn

from ruamel.yaml import YAML, events
from ruamel.yaml.error import YAMLError
from ruamel.yaml.nodes import ScalarNode

from broker.files.problems import DEEPEST, TOO_DEEP, Place, Problem, Unreadable, path_of
from broker.files.toml_lines import toml_lines

LIMIT = 1_000_000
"""Characters that a text of YAML or TOML may have: both are read slowly."""

_MAX_EVENTS = 150_000  # of a YAML text: some 6,000 jobs


@dataclass
class Content:
    """The documents of a text, the lines of their values, and the duplicate keys."""

    documents: list[Any]
    lines: Mapping[Place, int] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)
    json: str = ""  # the text, if it is JSON: its lines are found only when they are needed

    def find_lines(self, places: Collection[Place]) -> dict[Place, int]:
        """Return the lines of values, as far as they are known."""
        lines = _json_lines(self.json, set(places)) if self.json else self.lines
        found = {}
        for place in places:
            # What has no line of its own is where its mapping or list is.
            above = (place[:length] for length in range(len(place), 0, -1))
            if known := next((one for one in above if one in lines), None):
                found[place] = lines[known]
        return found


def read_text(text: str, suffix: str) -> Content:
    """Return the content of a text.

    Raises:
        Unreadable: it is not what its suffix says.
    """
    if suffix == ".json" or (
        suffix not in {".toml", ".yaml", ".yml"} and text.lstrip().startswith(("{", "["))
    ):
        return _from_json(text)
    if len(text) > LIMIT:
        raise Unreadable(None, f"is over the limit of {LIMIT // 1_000_000} MB; write it as JSON")
    return _from_toml(text) if suffix == ".toml" else _from_yaml(text)


def _from_json(text: str) -> Content:
    twice = ""

    def mapping(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        nonlocal twice
        found = dict(pairs)
        if len(found) < len(pairs):
            names = [name for name, _ in pairs]
            twice = next(name for name in found if names.count(name) > 1)
        return found

    try:
        value = json.loads(text, parse_constant=_no_number, object_pairs_hook=mapping)
    except json.JSONDecodeError as error:
        raise Unreadable(error.lineno, f"is not valid JSON: {error.msg}") from None
    except RecursionError:
        raise Unreadable(None, TOO_DEEP) from None
    except ValueError as error:
        raise Unreadable(None, f"is not valid JSON: {error}") from None
    if twice:
        with suppress(Unreadable):
            return _from_yaml(text)
        raise Unreadable(None, f"{twice}: is twice in one mapping")
    return Content([value], json=text)


def _no_number(text: str) -> NoReturn:
    raise ValueError(f"{text} is not a number")


def _json_lines(text: str, wanted: set[Place]) -> dict[Place, int]:
    """Return the lines of values in JSON, which is YAML, up to the last one that is wanted."""
    if "\n" not in text:
        return {(0,): 1}
    builder = _Builder()
    with suppress(YAMLError, Unreadable):
        for event in _events(YAML(typ="safe", pure=True), text):
            builder.take(event)
            if wanted <= builder.lines.keys():
                break
    return builder.lines


def _from_yaml(text: str) -> Content:
    yaml = YAML(typ="safe", pure=True)
    builder = _Builder(yaml)
    try:
        for event in _events(yaml, text):
            builder.take(event)
    except YAMLError as error:
        raise _no_yaml(error) from None
    return Content(builder.documents, builder.lines, builder.problems)


def _events(yaml: Any, text: str) -> Iterator[Any]:
    if len(text) > LIMIT:
        raise Unreadable(None, "is too long")
    for count, event in enumerate(yaml.parse(StringIO(text))):
        if count == _MAX_EVENTS:
            line = event.start_mark.line + 1
            raise Unreadable(line, "has too many values for YAML; write it as JSON")
        yield event


class _Open:
    """A mapping or a list whose end has not been read."""

    def __init__(self, place: Place, value: Any) -> None:
        self.place = place
        self.value = value
        self.key: tuple[str, int] | None = None  # of the next value, with its line


class _Builder:
    """Builds the documents of a YAML text from the parser's events."""

    def __init__(self, yaml: Any = None) -> None:
        self.documents: list[Any] = []
        self.lines: dict[Place, int] = {}
        self.problems: list[Problem] = []
        self._yaml = yaml  # None: only the lines matter
        self._open: list[_Open] = []

    def take(self, event: Any) -> None:
        """Take the next event.

        Raises:
            Unreadable: it is not one that a job needs.
        """
        line = event.start_mark.line + 1
        match event:
            case events.AliasEvent():
                raise Unreadable(
                    line, f"*{event.anchor}: aliases are not supported; write the value again"
                )
            case events.MappingStartEvent():
                self._begin({}, line)
            case events.SequenceStartEvent():
                self._begin([], line)
            case events.MappingEndEvent() | events.SequenceEndEvent():
                self._open.pop()
            case events.ScalarEvent() if self._wants_key:
                self._open[-1].key = (event.value, line)
            case events.ScalarEvent():
                self._add(_scalar(self._yaml, event) if self._yaml else event.value, line)

    @property
    def _wants_key(self) -> bool:
        return (
            bool(self._open) and isinstance(self._open[-1].value, dict) and not self._open[-1].key
        )

    def _begin(self, value: dict[str, Any] | list[Any], line: int) -> None:
        if self._wants_key:
            raise Unreadable(line, "a key must be plain text")
        if len(self._open) == DEEPEST:
            raise Unreadable(line, TOO_DEEP)
        self._open.append(_Open(self._add(value, line), value))

    def _add(self, value: Any, line: int) -> Place:
        if not self._open:
            place: Place = (len(self.documents),)
            self.documents.append(value)
        elif isinstance(self._open[-1].value, list):
            parent = self._open[-1]
            place = (*parent.place, len(parent.value))
            parent.value.append(value)
        else:
            return self._set(self._open[-1], value)
        self.lines[place] = line
        return place

    def _set(self, parent: _Open, value: Any) -> Place:
        name, line = parent.key or ("", 0)
        parent.key = None
        place = (*parent.place, name)
        if name in parent.value:
            text = f"is a duplicate: it is in line {self.lines[place]}, too"
            self.problems.append(Problem(line, path_of(place), text))
        else:
            parent.value[name] = value
            self.lines[place] = line
        return place


_YAML = "tag:yaml.org,2002:"
_AS_IT_STANDS = {f"{_YAML}{kind}" for kind in ("str", "timestamp", "merge", "value")}


def _scalar(yaml: Any, event: Any) -> Any:
    line = event.start_mark.line + 1
    tag = str(event.tag or yaml.resolver.resolve(ScalarNode, event.value, event.implicit))
    if tag in _AS_IT_STANDS:
        return event.value
    if tag not in {f"{_YAML}{kind}" for kind in ("null", "bool", "int", "float")}:
        raise Unreadable(line, f"{tag}: this tag is not supported")
    try:
        return yaml.constructor.construct_object(ScalarNode(tag=tag, value=event.value))
    except (ValueError, LookupError, OverflowError):
        kind = tag.removeprefix(_YAML)
        raise Unreadable(
            line, f"{event.value!r} is not a valid {kind}; put text in quotes"
        ) from None


def _no_yaml(error: Exception) -> Unreadable:
    problem: Any = getattr(error, "problem", None) or "it has characters that may not be there"
    mark: Any = getattr(error, "problem_mark", None)
    return Unreadable(mark.line + 1 if mark else None, f"is not valid YAML: {problem}")


def _from_toml(text: str) -> Content:
    lines: dict[Place, int] = {}
    for place, number in toml_lines(text):
        lines.setdefault((0, *place), number)
    try:
        value = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        what, _, where = str(error).partition(" (at ")
        line = re.match(r"line (\d+)", where)
        raise Unreadable(int(line[1]) if line else None, f"is not valid TOML: {what}") from None
    except RecursionError:
        raise Unreadable(None, TOO_DEEP) from None
    except ValueError as error:
        raise Unreadable(None, f"is not valid TOML: {error}") from None
    return Content([_with_texts(value)], {(0,): 1, **lines})


def _with_texts(value: Any) -> Any:
    """Return a value of TOML with times as text."""
    if isinstance(value, dict):
        return {name: _with_texts(item) for name, item in value.items()}
    if isinstance(value, list):
        return list(map(_with_texts, value))
    return value.isoformat() if isinstance(value, date | datetime | time) else value
