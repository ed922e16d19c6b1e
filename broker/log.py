"""The log: structlog's events, key-value on a terminal, JSON otherwise."""

import logging
import os
import sys
from contextlib import suppress
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TextIO, cast

from pydantic_core import to_json

if TYPE_CHECKING:
    from structlog.typing import EventDict

_FILE_LIMIT = 1024 * 1024


class _Logger:
    """Logs as structlog is configured when it is first used; if it is not, to stderr.

    structlog's own default is stdout, which is for answers.
    """

    def __init__(self) -> None:
        self._bound: Any = None

    def __getattr__(self, name: str) -> Any:
        if self._bound is None:
            import structlog

            if structlog.is_configured():
                bound = structlog.get_logger().bind()
                if structlog.get_config()["cache_logger_on_first_use"]:
                    self._bound = bound
                return getattr(bound, name)
            processors: list[Any] = [partial(_whole, {}, False), _to_json]  # noqa: FBT003 - of no terminal
            logger = structlog.WriteLogger(cast("TextIO", _Stderr()))
            return getattr(structlog.wrap_logger(logger, processors=processors), name)
        return getattr(self._bound, name)


def get_logger() -> Any:
    """Return a logger; structlog is not imported before something is logged."""
    return _Logger()


def import_structlog_alone() -> None:
    """Import structlog without rich, for a program of ours.

    With rich it draws tracebacks, which nobody sees here, and takes 4 MB of an agent's memory.
    """
    if absent := "rich" not in sys.modules:
        sys.modules["rich"] = None  # type: ignore[assignment]
    try:
        import structlog  # noqa: F401
    finally:
        if absent:
            del sys.modules["rich"]


def silence_amqp_libraries() -> None:
    """Stop the libraries' own log: they report each outage three times, with tracebacks."""
    for name in ("aio_pika", "aiormq"):
        logging.getLogger(name).setLevel(logging.CRITICAL + 1)


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


def configure(*, file: Path | None = None, **context: str) -> None:
    """Set up logging to stderr, or to a file only; each event carries the context."""
    import_structlog_alone()
    import structlog

    terminal = file is None and sys.stderr.isatty()
    sink: _Sink = _Stderr() if file is None else _File(file)
    structlog.configure(
        processors=[
            partial(_whole, context, terminal),
            structlog.dev.ConsoleRenderer() if terminal else _to_json,
        ],
        logger_factory=structlog.WriteLoggerFactory(file=cast("TextIO", sink)),
        cache_logger_on_first_use=True,
    )
    silence_amqp_libraries()
    if file is not None:
        # What libraries tell by other ways would go to stderr.
        logging.basicConfig(stream=cast("TextIO", sink), level=logging.WARNING, force=True)
        logging.captureWarnings(capture=True)


def _whole(
    context: dict[str, str],
    terminal: bool,  # noqa: FBT001 - bound beforehand
    _logger: object,
    level: str,
    event: "EventDict",
) -> "EventDict":
    """Return an event with its time and the context, and without what is None."""
    now = datetime.now(UTC)
    return {
        "timestamp": f"{now.astimezone():%Y-%m-%d %H:%M:%S}" if terminal else now,
        "level": level,
        **context,
        **{name: value for name, value in event.items() if value is not None},
    }


def _to_json(_logger: object, _level: str, event: "EventDict") -> str:
    return to_json(event, fallback=str).decode()


def _encoded(text: str) -> bytes:
    return text.encode(errors="backslashreplace")
