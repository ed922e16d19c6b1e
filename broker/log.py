"""The log: an event a line, key-value on a terminal, JSON otherwise.

Of our own, since every agent has it: the usual library draws its colours by others that take as
much memory as all the rest of an agent's code.
"""

import logging
import os
import sys
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol, Self, TextIO, cast

from pydantic_core import to_json

Facts = dict[str, Any]

_FILE_LIMIT = 1024 * 1024


class _Sink(Protocol):
    """Takes lines; one that takes no more (its disk is full, its reader gone) is borne.

    Nothing is buffered: what could not be written is not tried again at the end.
    """

    def write(self, text: str) -> object:
        """Write text, if that is possible."""

    def flush(self) -> None:
        """Do nothing: all is written."""


class _Stderr:
    def write(self, text: str) -> None:
        with suppress(OSError):
            os.write(sys.stderr.fileno(), _encoded(text))

    def flush(self) -> None:
        pass


class _File:
    """A file of its user's alone; when it is full, it becomes `NAME.1`, and a new one is begun."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def write(self, text: str) -> None:
        line = _encoded(text)
        with suppress(OSError):
            flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
            file = os.open(self._path, flags, 0o600)
            try:
                os.write(file, line)
                full = os.fstat(file).st_size >= _FILE_LIMIT
            finally:
                os.close(file)
            if full:
                self._path.replace(f"{self._path}.1")

    def flush(self) -> None:
        pass


class Log:
    """Tells events, such as `job.started`, and the facts of each; those that are None stay out."""

    def __init__(self, **facts: Any) -> None:
        """Bind facts that stand in each event."""
        self._facts = facts

    def bind(self, **facts: Any) -> Self:
        """Return a log with more facts that stand in each event."""
        return type(self)(**self._facts, **facts)

    def info(self, event: str, /, **facts: Any) -> None:
        """Tell what is as it should be."""
        tell("info", event, self._facts | facts)

    def warning(self, event: str, /, **facts: Any) -> None:
        """Tell what an administrator may want to mend."""
        tell("warning", event, self._facts | facts)

    def error(self, event: str, /, **facts: Any) -> None:
        """Tell what keeps work from being done."""
        tell("error", event, self._facts | facts)


def configure(*, file: Path | None = None, **context: str) -> None:
    """Set up logging to stderr, or to a file only; each event carries the context."""
    global _sink, _written, _context  # noqa: PLW0603 - a process has one log
    _sink = _Stderr() if file is None else _File(file)
    _written = _as_text if file is None and sys.stderr.isatty() else _as_json
    _context = context
    if file is not None:
        # What libraries tell by other ways would go to stderr.
        logging.basicConfig(stream=cast("TextIO", _sink), level=logging.WARNING, force=True)
        logging.captureWarnings(capture=True)


def tell(level: str, event: str, facts: Facts) -> None:
    """Write down an event."""
    said = {
        "timestamp": datetime.now(UTC),
        "level": level,
        "event": event,
        **_context,
        **{name: value for name, value in facts.items() if value is not None},
    }
    _sink.write(f"{_written(said)}\n")


def _encoded(text: str) -> bytes:
    return text.encode(errors="backslashreplace")


def _as_json(said: Facts) -> str:
    return to_json(said, fallback=str).decode()


def _as_text(said: Facts) -> str:
    """Return an event for people, by the clock on their wall."""
    at, level, event, *facts = said.items()
    head = f"{at[1].astimezone():%Y-%m-%d %H:%M:%S} {level[1]:<8}{event[1]:<24}"
    return " ".join((head, *(f"{name}={_plain(value)}" for name, value in facts)))


def _plain(value: Any) -> str:
    text = str(value)
    return text if text.isprintable() and " " not in text else repr(text)


_sink: _Sink
_written: Callable[[Facts], str]
_context: Facts
configure()  # whoever sets up nothing is told on stderr: stdout is for answers
