"""Open the dispatcher or the history for a command; map their errors to one-line messages."""

import asyncio
import re
import signal
import sys
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from broker.cli.command_line import (
    BrokerUnreachable,
    CommandError,
    NoSuchJob,
    UsageError,
    argument_errors,
)
from broker.cli.options import as_option
from broker.settings import DispatcherSettings, HistorySettings, WrongSetting, load
from schemas import explain
from schemas.names import check_name, check_text, check_user
from schemas.times import parse_duration

if TYPE_CHECKING:
    from sqlalchemy import Engine

    from broker.amqp.connection import BrokerError
    from broker.client.dispatcher import Dispatcher
_COMPLETE_ID = re.compile(r"\d{8}-\d{6}-[0-9a-z]{10}")


def with_dispatcher(work: "Callable[[Dispatcher], Awaitable[int]]") -> int:
    """Run a command's work with a connected dispatcher; return the exit status."""
    from broker.client.dispatcher import Dispatcher

    settings = load(DispatcherSettings)

    async def connected() -> int:
        async with Dispatcher.connect(settings, on_unreachable=print_retry) as dispatcher:
            return await work(dispatcher)

    return run_async(connected())


def run_async(work: Coroutine[Any, Any, int]) -> int:
    """Run a command's work with the broker; return the exit status.

    Raises:
        CommandError: the broker refused it or is unreachable, or the input is invalid.
    """
    from broker.amqp.connection import BrokerError
    from broker.client.follow import UnknownJob

    try:
        return asyncio.run(work)
    except BrokerError as error:
        raise as_command_error(error) from error
    except UnknownJob as error:
        raise NoSuchJob(str(error)) from error
    except ValidationError as error:
        raise UsageError(as_option(explain(error))) from error
    except ValueError as error:
        raise UsageError(str(error)) from error


def as_command_error(error: "BrokerError") -> CommandError:
    """Return the error of a command for the broker's; a refused login is not out of reach."""
    from broker.amqp.connection import LoginRefused, Unreachable

    is_unreachable = isinstance(error, Unreachable) and not isinstance(error, LoginRefused)
    return (BrokerUnreachable if is_unreachable else CommandError)(str(error))


def run_until_stopped(service: Coroutine[Any, Any, None]) -> None:
    """Run a service until SIGTERM or SIGINT."""

    async def run() -> None:
        task = asyncio.create_task(service)
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, task.cancel)
        await asyncio.wait({task})
        if not task.cancelled():
            task.result()

    asyncio.run(run())


def print_retry(reason: str) -> None:
    """Print that the broker is unreachable and the connection is retried."""
    print(f"pcm: {reason}; retrying", file=sys.stderr)


def seconds(text: str) -> float:
    """Parse a duration given as an option."""
    with argument_errors():
        return float(parse_duration(text).total_seconds())


def valid_text(text: str) -> str:
    """Check text given as an option; a shell can pass any bytes."""
    with argument_errors():
        return check_text(text)


def name(text: str) -> str:
    """Check a workstation's name or a job's id given as an argument."""
    with argument_errors():
        return check_name(text)


def user(text: str) -> str:
    """Check a login name given as an option."""
    with argument_errors():
        return check_user(text)


@contextmanager
def history_errors() -> "Iterator[None]":
    """Map errors of the history's database to one-line messages.

    Raises:
        CommandError: the database cannot be used.
        WrongSetting: its URL is wrong.
    """
    from broker.history.engine import HistoryError, WrongHistory

    try:
        yield
    except WrongHistory:
        raise
    except HistoryError as error:
        raise CommandError(str(error)) from error


@contextmanager
def history_engine() -> "Iterator[Engine]":
    """Open the history after reading what no collector has read yet.

    If the broker is unreachable, open the history as it is and print that on stderr.

    Raises:
        CommandError: the database cannot be used, or it is empty and the broker is unreachable.
        WrongSetting: its URL is wrong, or it is the history of another broker.
    """
    from broker.history.engine import open_history

    settings = load(HistorySettings)
    with history_errors():
        engine = open_history(settings.history_url)
        try:
            _refresh(settings, engine)
            yield engine
        finally:
            engine.dispose()


def _refresh(settings: "HistorySettings", engine: "Engine") -> None:
    from broker.amqp.connection import BrokerError
    from broker.history.collector import refresh
    from broker.history.position import is_empty, transact
    from broker.history.source import check_virtual_host

    try:
        asyncio.run(refresh(settings, engine))
    except BrokerError as error:
        if is_empty(engine):
            raise as_command_error(error) from error
        transact(engine, check_virtual_host, settings.virtual_host)
        print(f"pcm: the history may be out of date: {error}", file=sys.stderr)


@contextmanager
def optional_history_engine() -> "Iterator[Engine | None]":
    """Open the history; yield None if it cannot be used."""
    stack = ExitStack()
    with stack:
        try:
            engine = stack.enter_context(history_engine())
        except (CommandError, WrongSetting):
            engine = None
        yield engine


def complete_id(job: str) -> str:
    """Return the id of the only job in the history whose id begins so.

    Raises:
        CommandError: there are several.
    """
    if _COMPLETE_ID.fullmatch(job):
        return job
    from broker.history.queries.jobs import query_jobs
    from broker.history.queries.rows import UnknownId

    with optional_history_engine() as engine:
        if engine is None:
            return job
        with query_jobs(engine) as queries:
            try:
                return queries.find(job).id
            except UnknownId as error:
                if error.several:
                    raise CommandError(str(error)) from error
                return job  # the stream may have it
