"""Jobs in files: JSON, YAML or TOML, one job or many, and all that is wrong in them by its line."""

import sys
from datetime import UTC, datetime, timedelta
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from broker.client.publishing import check_sendable
from broker.jobs.marked import Node, Problem, Unreadable, read_text
from schemas import Command, Job
from schemas.errors import PcmError
from schemas.message import cause
from schemas.times import latest, parse_moment

SIZE_LIMIT = 100_000_000
"""Bytes that a file may have."""

_TIMES = ("offer_at", "mandatory_at", "expires_at")
_TAGS = {"instant", "wall clock", "[key]"}  # pydantic's own, in the place of an error
_LONGEST_VALUE = 80
_ROUNDING = timedelta(minutes=1)
_PLAIN = {
    "string_type": "is no text: put it in quotes",
    "too_short": "is empty",
    "string_unicode": "is not UTF-8",
    "tuple_type": "is no list: write it in [ ]",
    "frozen_set_type": "is no list: write it in [ ]",
    "dict_type": "is no mapping: write { NAME: VALUE }",
    "model_type": "is no mapping: write { FIELD: VALUE }",
    "model_attributes_type": "is no mapping: write { FIELD: VALUE }",
    "bool_type": "is neither true nor false",
    "bool_parsing": "is neither true nor false",
}


class WrongJobFile(PcmError, ValueError):
    """A file of jobs is wrong; each line of the text names file, line, field and what to write."""

    def __init__(self, name: str, problems: list[Problem]) -> None:
        self.name = name
        self.problems = sorted(problems, key=lambda problem: problem.line or 0)
        super().__init__("\n".join(map(self._line, self.problems)))

    def _line(self, problem: Problem) -> str:
        place = f"{self.name}:{problem.line}" if problem.line else self.name
        return "".join(_visible(char) for char in f"{place}: {problem}")


def read_jobs(file: str | Path) -> list[Job]:
    """Return the jobs of a file; `-` is standard input.

    Times such as `+10m` and `now` are all told from one instant: that of the reading.

    Raises:
        WrongJobFile: something in it is wrong; it names all of it.
        OSError: it cannot be read.
    """
    if str(file) == "-":
        return parse_jobs(sys.stdin.buffer.read(SIZE_LIMIT + 1), "stdin")
    with Path(file).open("rb") as opened:
        return parse_jobs(opened.read(SIZE_LIMIT + 1), str(file))


def parse_jobs(body: bytes, name: str) -> list[Job]:
    """Return the jobs in the content of a file, whose name says by its suffix what it is.

    Raises:
        WrongJobFile: something in it is wrong; it names all of it.
    """
    try:
        documents, problems = read_text(_decoded(body), Path(name).suffix.lower())
    except Unreadable as error:
        raise WrongJobFile(name, [Problem(error.line, "", str(error))]) from None
    found = _Jobs(problems, datetime.now(UTC))
    for document in documents:
        found.take(document)
    if not (found.jobs or problems):
        problems.append(Problem(None, "", "has no jobs: write one, or jobs: [...]"))
    if problems:
        raise WrongJobFile(name, problems)
    return found.jobs


def check_not_past(job: Job, now: datetime) -> None:
    """Refuse a mandatory time in the past: the job would run at once everywhere.

    Raises:
        ValueError: it is in the past, by more than the rounding of times that people write.
    """
    if job.mandatory_at is not None and latest(job.mandatory_at) < now - _ROUNDING:
        raise ValueError("mandatory_at: is in the past: write now to run it at once")


def _decoded(body: bytes) -> str:
    if len(body) > SIZE_LIMIT:
        raise Unreadable(None, f"is over the limit of {SIZE_LIMIT // 1_000_000} MB")
    try:
        return body.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = body.count(b"\n", 0, error.start) + 1
        raise Unreadable(line, "is not UTF-8: save it as UTF-8") from None


class _Jobs:
    """Takes in documents, and keeps the jobs in them and what is wrong with them."""

    def __init__(self, problems: list[Problem], now: datetime) -> None:
        self.jobs: list[Job] = []
        self._problems = problems
        self._now = now
        self._ids: dict[str, int] = {}

    def take(self, document: Node) -> None:
        """Take in a document: a job, a list of jobs, or a mapping with such a list."""
        for node in self._nodes(document):
            if isinstance(node.value, dict):
                self._take_job(node)
            else:
                self._wrong(node, "is no job: write a mapping with command and targets")

    def _nodes(self, document: Node) -> list[Node]:
        value = document.value
        if value is None:  # as between two --- in YAML
            return []
        if isinstance(value, dict) and "jobs" in value:
            for name, node in value.items():
                if name != "jobs":
                    self._wrong(node, "no such field beside jobs; write it into each job")
            document = value["jobs"]
            if not isinstance(document.value, list):
                self._wrong(document, "is no list of jobs")
                return []
        return document.value if isinstance(document.value, list) else [document]

    def _take_job(self, node: Node) -> None:
        known = len(self._problems)
        self._check_id(node)
        fields = node.plain()
        for name in _TIMES:
            if fields.get(name) is not None:
                self._read_time(node.value[name], fields)
        fields.setdefault("created_at", self._now)
        try:
            job = Job.model_validate(fields)
            check_not_past(job, self._now)
            check_sendable(job)
        except ValidationError as error:
            for found in error.errors(include_url=False):
                self._explain(node, found)
        except ValueError as error:
            self._add(node, str(error))
        else:
            if len(self._problems) == known:
                self.jobs.append(job)

    def _read_time(self, node: Node, fields: dict[str, Any]) -> None:
        """Replace the text of a time by what it says."""
        name = node.path.rpartition(".")[2]
        given = node.value
        try:
            if isinstance(given, str):
                fields[name] = parse_moment(given, self._now)
            elif not isinstance(given, dict):
                raise ValueError(  # noqa: TRY301, TRY004 - told like the rest
                    f"{given!r} is no time: write 2026-11-30T02:00Z, +10m or now"
                )
        except (ValueError, OverflowError) as error:
            self._wrong(node, str(error))
            fields.pop(name)

    def _check_id(self, node: Node) -> None:
        given = node.value.get("id")
        if given is None or not isinstance(given.value, str):
            return
        name = given.value.lower()
        if name in self._ids:
            first = self._ids[name]
            self._wrong(given, f"{name!r} is the id of the job in line {first}, too")
        self._ids.setdefault(name, given.line)

    def _explain(self, job: Node, found: Any) -> None:
        """Say what pydantic found, at the place where it stands."""
        node, missing = _find(job, [part for part in found["loc"] if part not in _TAGS])
        match found["type"]:
            case "missing":
                self._problems.append(Problem(node.line, node.under(missing), "is missing"))
            case "extra_forbidden":
                name = str(found["loc"][-1])
                self._wrong(node, _no_such_field(name, at_top=len(found["loc"]) == 1))
            case "too_short" if node.value:
                pass  # what is in it is wrong, and told
            case kind if kind in _PLAIN:
                shown = (
                    ""
                    if isinstance(node.value, dict | list)
                    else f"{repr(node.value)[:_LONGEST_VALUE]} "
                )
                self._wrong(node, shown + _PLAIN[kind])
            case _:
                self._add(node, cause(found))

    def _add(self, node: Node, text: str) -> None:
        """Add a problem whose text may begin with the field that it is about."""
        name, colon, rest = text.partition(": ")
        if colon and isinstance(node.value, dict) and name in node.value:
            self._wrong(node.value[name], rest)
        else:
            self._wrong(node, text)

    def _wrong(self, node: Node, text: str) -> None:
        self._problems.append(Problem(node.line, node.path, text))


def _find(node: Node, place: list[Any]) -> tuple[Node, str]:
    """Return the node at a place, or the last on the way, and the name that is not in it."""
    for part in place:
        try:
            node = node.value[part]
        except (LookupError, TypeError):
            return node, str(part)
    return node, ""


def _no_such_field(name: str, *, at_top: bool) -> str:
    here, there = (Job, Command) if at_top else (Command, Job)
    if name in there.model_fields:
        return "no such field here; it belongs " + ("into command" if at_top else "beside command")
    near = get_close_matches(name, here.model_fields, n=1)
    return "no such field" + (f"; do you mean {near[0]}?" if near else "")


def _visible(char: str) -> str:
    """Return a character as a line of text can show it."""
    return char if char.isprintable() else char.encode("unicode_escape", "surrogatepass").decode()
