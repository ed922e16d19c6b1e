"""`pcm send --secret`: read and seal secret environment variables of a job."""

import os
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import ValidationError

from broker.cli.command_line import Parser, UsageError
from broker.cli.session import history_engine
from broker.cli.targets import known_suggestions
from schemas import explain
from schemas.orders.secrets import check_variable

if TYPE_CHECKING:
    from schemas import Job

_LIMIT = 1_000_000


def add_option(parser: Parser) -> None:
    """Add the option to a command."""
    parser.add_argument(
        "--secret",
        action="append",
        metavar="K=@FILE",
        help="environment variable that only the addressed agents can read; its value is read from"
        " FILE, from stdin (K=-) or from our environment (K=env:NAME); repeat for more",
    )


def read_secrets(options: Iterable[str]) -> dict[str, str]:
    """Return the values that options name, without a final line end.

    Raises:
        UsageError: one is invalid; the text never contains a value.
    """
    values: dict[str, str] = {}
    for option in options:
        name, equals, source = option.partition("=")
        if not equals or not (source == "-" or source.startswith(("@", "env:"))):
            raise UsageError(f"--secret: {name!r}: write NAME=@FILE, NAME=- or NAME=env:VARIABLE")
        if name in values:
            raise UsageError(f"--secret: {name} is given twice")
        try:
            check_variable(name)
        except ValueError as error:
            raise UsageError(f"--secret: {error}") from error
        values[name] = _value(name, source)
    return values


def _value(name: str, source: str) -> str:
    if source.startswith("env:"):
        variable = source.removeprefix("env:")
        if variable not in os.environ:
            raise UsageError(f"--secret: {name}: there is no variable {variable!r}")
        return _decode(name, os.environb[variable.encode(errors="surrogateescape")])
    try:
        data = _read(source)
    except OSError as error:
        raise UsageError(f"--secret: {name}: {source[1:]}: {error.strerror}") from error
    return _decode(name, data)


def _read(source: str) -> bytes:
    if source == "-":
        return sys.stdin.buffer.read(_LIMIT)
    with Path(source[1:]).open("rb") as opened:
        return opened.read(_LIMIT)


def _decode(name: str, data: bytes) -> str:
    try:
        text = data.decode()
    except UnicodeDecodeError:
        raise UsageError(f"--secret: {name}: is not UTF-8") from None
    if "\0" in text:
        raise UsageError(f"--secret: {name}: contains a NUL character")
    return text.removesuffix("\n").removesuffix("\r")


def sealed(jobs: "list[Job]", values: dict[str, str]) -> "list[Job]":
    """Return jobs with the values sealed for the agents of their targets.

    Raises:
        UsageError: the values cannot be sealed for all of them.
        CommandError: the history cannot be used.
    """
    from broker.history.queries.workstations import query_fleet
    from broker.signing.sealing import CannotSeal, seal

    with history_engine() as engine, query_fleet(engine) as known:
        try:
            return [seal(job, values, known) for job in jobs]
        except CannotSeal as error:
            near = known_suggestions((target for job in jobs for target in job.targets), engine)
            raise UsageError(f"{error}; nothing was sent{near}") from error
        except ValidationError as error:
            raise UsageError(f"--secret: {explain(error)}") from error
