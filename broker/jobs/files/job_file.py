"""Read the jobs of a file in JSON, YAML or TOML; report every error with its line."""

import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from broker.client.publishing import check_sendable
from broker.files.formats import Content, read_text
from broker.files.model_errors import explain_error, field_of_text
from broker.files.problems import Place, Problem, Unreadable, WrongFile, path_of
from broker.jobs.files.programs import WrongProgram, with_package, with_script
from broker.jobs.mandatory_time import check_not_past
from schemas import Command, Job
from schemas.errors import PcmError
from schemas.text import did_you_mean, nearest
from schemas.times import parse_moment

SIZE_LIMIT = 20_000_000
"""The maximum size of a file in bytes; YAML and TOML have a lower limit."""

_TIMES = ("offer_at", "mandatory_at", "expires_at")
_MAX_PROBLEMS = 1000
_ANY_COMMAND = {"argv": ["true"]}


class WrongJobFile(WrongFile):
    """A file of jobs is wrong; each line of the text names the file, line, field and remedy."""


def read_jobs(file: str | Path) -> list[Job]:
    """Return the jobs of a file; `-` is standard input.

    Times such as `+10m` and `now` are relative to one instant: the time of the call.

    Raises:
        WrongJobFile: the file is wrong; it names every error.
        OSError: the file cannot be read.
    """
    if str(file) == "-":
        return parse_jobs(sys.stdin.buffer.read(SIZE_LIMIT + 1), "stdin")
    with Path(file).open("rb") as opened:
        return parse_jobs(opened.read(SIZE_LIMIT + 1), str(file))


def parse_jobs(body: bytes, name: str) -> list[Job]:
    """Return the jobs in the content of a file; the suffix of its name determines the format.

    Raises:
        WrongJobFile: the content is wrong; it names every error.
    """
    try:
        content = read_text(_decoded(body), Path(name).suffix.lower())
    except Unreadable as error:
        raise WrongJobFile(name, [Problem(error.line, "", str(error))]) from None
    found = _Jobs(content, datetime.now(UTC), Path(name).parent)
    found.take_all()
    problems = found.problems()
    if not (found.jobs or problems):
        problems.append(Problem(None, "", "has no jobs: write one, or jobs: [...]"))
    if problems:
        raise WrongJobFile(name, problems)
    return found.jobs


def _decoded(body: bytes) -> str:
    if len(body) > SIZE_LIMIT:
        raise Unreadable(None, f"is over the limit of {SIZE_LIMIT // 1_000_000} MB")
    try:
        return body.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = body.count(b"\n", 0, error.start) + 1
        raise Unreadable(line, "is not UTF-8: save it as UTF-8") from None


class _TooManyProblems(PcmError):
    """Further ones are not looked for."""


class _Jobs:
    """Collects the jobs of documents, and the errors in them."""

    def __init__(self, content: Content, now: datetime, folder: Path) -> None:
        self._folder = folder
        self.jobs: list[Job] = []
        self._content = content
        self._now = now
        self._wrong: list[tuple[Place, str, str]] = []  # where, the missing field, what is wrong
        self._ids: dict[str, Place] = {}

    def take_all(self) -> None:
        """Read each document: a job, a list of jobs, or a mapping with such a list."""
        with suppress(_TooManyProblems):
            for number, document in enumerate(self._content.documents):
                for place, value in self._nodes((number,), document):
                    if isinstance(value, dict):
                        self._take_job(place, value)
                    else:
                        self._add(place, "is not a job: write a mapping with command and targets")

    def problems(self) -> list[Problem]:
        """Return the errors with their lines."""
        lines = self._content.find_lines([place for place, _, _ in self._wrong])
        problems = [
            Problem(lines.get(place), path_of((*place, *filter(None, [missing]))), text)
            for place, missing, text in self._wrong
        ]
        if len(problems) >= _MAX_PROBLEMS:
            problems.append(Problem(None, "", f"has {_MAX_PROBLEMS:,} errors or more"))
        return self._content.problems[:_MAX_PROBLEMS] + problems

    def _nodes(self, place: Place, value: Any) -> Iterator[tuple[Place, Any]]:
        if value is None:  # as between two --- in YAML
            return
        if isinstance(value, dict) and "jobs" in value:
            for name in value:
                if name != "jobs":
                    self._add((*place, name), "no such field beside jobs; write it into each job")
            place, value = (*place, "jobs"), value["jobs"]
            if not isinstance(value, list):
                self._add(place, "is not a list of jobs")
                return
        if isinstance(value, list):
            yield from (((*place, number), item) for number, item in enumerate(value))
        else:
            yield place, value

    def _take_job(self, place: Place, given: dict[str, Any]) -> None:
        known = len(self._wrong)
        self._check_id(place, given)
        fields = {"created_at": self._now, **given}
        for name in _TIMES:
            if fields.get(name) is not None:
                self._read_time((*place, name), fields)
        self._read_program(place, fields)
        try:
            job = Job.model_validate(fields)
            check_not_past(job, self._now)
            check_sendable(job)
        except ValidationError as error:
            for found in error.errors(include_url=False):
                self._explain(place, given, found)
        except ValueError as error:
            self._add_to_field(place, given, str(error))
        else:
            if len(self._wrong) == known:
                self.jobs.append(job)

    def _read_time(self, place: Place, fields: dict[str, Any]) -> None:
        """Replace the text of a time by the time."""
        name = str(place[-1])
        given = fields[name]
        try:
            if isinstance(given, str):
                fields[name] = parse_moment(given, self._now)
            elif not isinstance(given, dict):
                raise ValueError(  # noqa: TRY301, TRY004 - reported like the others
                    f"{given!r} is not a time: write 2026-11-30T02:00Z, +10m or now"
                )
        except (ValueError, OverflowError) as error:
            self._add(place, str(error))
            fields.pop(name)

    def _read_program(self, place: Place, fields: dict[str, Any]) -> None:
        """Replace the name of a package, or of a script's file, by what the job carries."""
        package, script = fields.get("package"), fields.pop("script", None)
        if isinstance(package, str) or (isinstance(package, dict) and "manifest" not in package):
            fields.pop("package")
            self._add_errors(
                (*place, "package"), lambda: fields.update(with_package(package, fields)), fields
            )
        if script is not None:
            self._add_errors(
                (*place, "script"),
                lambda: fields.update(with_script(script, fields, self._folder)),
                fields,
            )

    def _add_errors(self, place: Place, work: Callable[[], None], fields: dict[str, Any]) -> None:
        try:
            work()
        except WrongProgram as error:
            self._add(place, str(error))
            fields["command"] = _ANY_COMMAND  # look for further errors

    def _check_id(self, place: Place, given: dict[str, Any]) -> None:
        if not isinstance(given.get("id"), str):
            return
        name, place = given["id"].lower(), (*place, "id")
        if name in self._ids:
            first = self._ids[name]
            line = self._content.find_lines([first]).get(first)
            where = f"line {line}" if line else path_of(first)
            self._add(place, f"{name!r} is the id of the job in {where}, too")
        self._ids.setdefault(name, place)

    def _explain(self, job: Place, given: dict[str, Any], found: Any) -> None:
        """Report an error of pydantic at the place of its value."""
        error = explain_error(given, found, _no_such_field)
        if error is None:
            return
        place = (*job, *error.place)
        if error.is_about_a_field:
            self._add_to_field(place, error.value, error.text)
        else:
            self._add(place, error.text, error.missing)

    def _add_to_field(self, place: Place, value: Any, text: str) -> None:
        """Add a problem whose text may begin with the field that it is about."""
        self._add(*field_of_text(place, value, text))

    def _add(self, place: Place, text: str, missing: str = "") -> None:
        if len(self._wrong) == _MAX_PROBLEMS:
            raise _TooManyProblems
        self._wrong.append((place, missing, text))


def _no_such_field(place: Place) -> str:
    at_top, name = len(place) == 1, str(place[-1])
    here, there = (Job, Command) if at_top else (Command, Job)
    if name in there.model_fields:
        return "no such field here; it belongs " + ("into command" if at_top else "beside command")
    return "no such field" + did_you_mean(nearest(name, here.model_fields))
