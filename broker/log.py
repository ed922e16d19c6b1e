"""The log: structlog's events, key-value on a terminal, JSON otherwise."""

import os
import sys
from contextlib import suppress
from typing import Any, TextIO, cast

import structlog
from pydantic_core import to_json


class _Lines:
    """Stderr, line by line; a log that takes no more (its disk is full, its reader gone) is borne.

    Nothing is buffered: what could not be written is not tried again at the end.
    """

    def write(self, text: str) -> None:
        """Write text, if that is possible."""
        with suppress(OSError):
            os.write(sys.stderr.fileno(), text.encode(errors="backslashreplace"))

    def flush(self) -> None:
        """Do nothing: all is written."""


def configure(**context: str) -> None:
    """Set up logging to stderr; each event carries the context."""
    terminal = sys.stderr.isatty()
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=not terminal),
            _without_nothing,
            structlog.dev.ConsoleRenderer()
            if terminal
            else structlog.processors.JSONRenderer(serializer=_to_json),
        ],
        logger_factory=structlog.WriteLoggerFactory(file=cast("TextIO", _Lines())),
        cache_logger_on_first_use=True,
    )
    structlog.contextvars.bind_contextvars(**context)


def _to_json(event: structlog.typing.EventDict, **_: Any) -> str:
    return to_json(event, fallback=str).decode()


def _without_nothing(
    _logger: structlog.typing.WrappedLogger, _name: str, event: structlog.typing.EventDict
) -> structlog.typing.EventDict:
    return {key: value for key, value in event.items() if value is not None}
