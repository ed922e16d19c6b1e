"""Configure logging: structlog events, key-value on a terminal, JSON otherwise."""

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
    """Log by structlog's configuration as of the first event; without one, to stderr.

    structlog's own default is stdout, which is reserved for results.
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
            no_context = partial(_add_context, {}, False)  # noqa: FBT003 - no terminal
            processors: list[Any] = [no_context, _to_json]
            logger = structlog.WriteLogger(cast("TextIO", _Stderr()))
            return getattr(structlog.wrap_logger(logger, processors=processors), name)
        return getattr(self._bound, name)


def get_logger() -> Any:
    """Return a logger; structlog is imported with the first event."""
    return _Logger()


def import_structlog_without_rich() -> None:
    """Import structlog without rich, in our programs.

    rich is needed only to draw tracebacks, and takes 4 MB of an agent's memory.
    """
    if not_imported := "rich" not in sys.modules:
        sys.modules["rich"] = None  # type: ignore[assignment]
    try:
        import structlog  # noqa: F401
    finally:
        if not_imported:
            del sys.modules["rich"]


def silence_amqp_libraries() -> None:
    """Silence the libraries' own log: it has each outage three times, with tracebacks."""
    for name in ("aio_pika", "aiormq"):
        logging.getLogger(name).setLevel(logging.CRITICAL + 1)


class _Sink(Protocol):
    """Write lines unbuffered; a line that cannot be written is dropped.

    A full disk or a closed pipe must not stop the program.
    """

    def write(self, text: str) -> object:
        """Write text; ignore an OSError."""

    def flush(self) -> None:
        """Do nothing: there is no buffer."""


class _Stderr:
    def write(self, text: str) -> None:
        with suppress(OSError):
            os.write(sys.stderr.fileno(), _encoded(text))

    def flush(self) -> None:
        pass


class _File:
    """Append to a file with mode 0600; rename it to `NAME.1` when it is full."""

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
    """Log to stderr, or only to a file; each event has the context."""
    import_structlog_without_rich()
    import structlog

    terminal = file is None and sys.stderr.isatty()
    sink: _Sink = _Stderr() if file is None else _File(file)
    structlog.configure(
        processors=[
            partial(_add_context, context, terminal),
            structlog.dev.ConsoleRenderer() if terminal else _to_json,
        ],
        logger_factory=structlog.WriteLoggerFactory(file=cast("TextIO", sink)),
        cache_logger_on_first_use=True,
    )
    silence_amqp_libraries()
    if file is not None:
        # Else warnings and other loggers write to stderr.
        logging.basicConfig(stream=cast("TextIO", sink), level=logging.WARNING, force=True)
        logging.captureWarnings(capture=True)


def _add_context(
    context: dict[str, str],
    terminal: bool,  # noqa: FBT001 - bound by partial()
    _logger: object,
    level: str,
    event: "EventDict",
) -> "EventDict":
    """Add the time and the context to an event; drop values that are None."""
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
