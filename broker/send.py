"""Makes a job from what an administrator wrote: options, or a file."""

import argparse
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from broker.command_line import WrongUse
from schemas import Command, InvalidMessage, Job, Target, explain
from schemas.times import parse_moment

# Where an option's field has another name.
_OPTIONS = {
    "argv": "COMMAND",
    "environment": "--env",
    "success_exit_codes": "--success-exit",
    "restart_exit_codes": "--restart-exit",
    "platforms": "--platform",
    "targets": "--to",
}
_WITH_FILE = {"command", "file", "wait", "json", "give_up_after"}


def read_job(arguments: argparse.Namespace) -> Job:
    """Return the job that the options of `pcm send` ask for.

    Raises:
        WrongUse: one of them is wrong; the text names it.
    """
    if arguments.file is not None:
        return _from_file(arguments)
    if not arguments.argv:
        raise WrongUse("send: give a command after --, or --file")
    now = datetime.now(UTC)
    try:
        command = Command(
            argv=(" ".join(arguments.argv),) if arguments.shell else tuple(arguments.argv),
            shell=arguments.shell,
            background=arguments.background,
            user_input_required=arguments.user_input_required,
            survives_agent=arguments.survives_agent,
            rerun_interrupted=arguments.rerun_interrupted,
            environment=dict(map(_variable, arguments.env or [])),
            **_given(
                cwd=arguments.cwd,
                timeout=arguments.timeout,
                success_exit_codes=_codes("--success-exit", arguments.success_exit),
                restart_exit_codes=_codes("--restart-exit", arguments.restart_exit),
                platforms=arguments.platform,
            ),
        )
        return Job(
            command=command,
            targets=tuple(map(_target, arguments.to or ["all"])),
            created_at=now,
            **_given(
                name=arguments.name,
                offer_at=_moment("--offer-at", arguments.offer_at, now),
                mandatory_at=_moment("--mandatory-at", arguments.mandatory_at, now),
                expires_at=_moment("--expires-at", arguments.expires_at, now),
                supersedes=arguments.supersedes,
            ),
        )
    except ValidationError as error:
        raise WrongUse(as_option(explain(error))) from error


def _from_file(arguments: argparse.Namespace) -> Job:
    given = [name for name, value in vars(arguments).items() if value and name not in _WITH_FILE]
    if given:
        option = "COMMAND" if given[0] == "argv" else f"--{given[0].replace('_', '-')}"
        raise WrongUse(f"{option}: the file says it all; leave out one of the two")
    try:
        if arguments.file == "-":
            body = sys.stdin.buffer.read()
        else:
            body = Path(arguments.file).read_bytes()
        return Job.read(body)
    except OSError as error:
        raise WrongUse(f"--file: {arguments.file}: {error.strerror}") from error
    except InvalidMessage as error:
        raise WrongUse(f"--file: {arguments.file}: {error}") from error


def _target(text: str) -> Target:
    try:
        return Target.parse(text)
    except ValidationError as error:
        raise WrongUse(f"--to: {explain(error)}") from error


def _given(**values: Any) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}


def _variable(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals:
        raise WrongUse(f"--env: {text!r}: write NAME=VALUE")
    return name, value


def _codes(option: str, text: str | None) -> frozenset[int] | None:
    if text is None:
        return None
    try:
        return frozenset(int(code) for code in text.split(","))
    except ValueError as error:
        raise WrongUse(f"{option}: {text!r}: write numbers, such as 0,2") from error


def _moment(option: str, text: str | None, now: datetime) -> Any:
    if text is None:
        return None
    try:
        return parse_moment(text, now)
    except ValueError as error:
        raise WrongUse(f"{option}: {error}") from error


def as_option(text: str) -> str:
    """Name the option where a message names the field."""
    field, colon, rest = text.partition(":")
    name = field.split(".")[0]
    if not colon or not name.isidentifier():
        return text
    return _OPTIONS.get(name, f"--{name.replace('_', '-')}") + colon + rest
