"""What commands stand on: a dispatcher that is connected, and errors told in one line."""

import re
import sys
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

from broker.cli.command_line import OutOfReach, Wrong, WrongUse, argument_errors
from broker.cli.options import as_option
from broker.settings import WrongSetting

if TYPE_CHECKING:
    from sqlalchemy import Engine

    from broker.client.dispatcher import Dispatcher
    from broker.settings import HistorySettings

_WHOLE_ID = re.compile(r"\d{8}-\d{6}-[0-9a-z]{10}")


def with_dispatcher(work: "Callable[[Dispatcher], Awaitable[int]]") -> int:
    """Connect, work, and return the exit status; what goes wrong is a line on stderr."""
    from broker.client.dispatcher import Dispatcher
    from broker.settings import DispatcherSettings, load

    settings = load(DispatcherSettings)

    async def connected() -> int:
        async with Dispatcher.connect(settings, on_unreachable=trying) as dispatcher:
            return await work(dispatcher)

    return finish(connected())


def finish(work: Coroutine[Any, Any, int]) -> int:
    """Run work that speaks to the broker, and return the exit status.

    Raises:
        Wrong: it cannot be done, and why.
    """
    import asyncio

    from pydantic import ValidationError

    from broker.amqp.connection import BrokerError, Unreachable
    from broker.client.follow import UnknownJob
    from schemas import explain

    try:
        return asyncio.run(work)
    except Unreachable as error:
        raise OutOfReach(str(error)) from error
    except (BrokerError, UnknownJob) as error:
        raise Wrong(str(error)) from error
    except ValidationError as error:
        raise WrongUse(as_option(explain(error))) from error
    except ValueError as error:
        raise WrongUse(str(error)) from error


def run_until_stopped(service: Coroutine[Any, Any, None]) -> None:
    """Run a service until SIGTERM or SIGINT."""
    import asyncio
    import signal

    async def run() -> None:
        task = asyncio.create_task(service)
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, task.cancel)
        await asyncio.wait({task})
        if not task.cancelled():
            task.result()

    asyncio.run(run())


def trying(reason: str) -> None:
    """Tell the user that the broker is out of reach, and tried again."""
    print(f"pcm: {reason}; trying again", file=sys.stderr)


def seconds(text: str) -> float:
    """Read a duration that is an option."""
    from schemas.times import parse_duration

    with argument_errors():
        return float(parse_duration(text).total_seconds())


def plain(text: str) -> str:
    """Read text that is an option; a shell may give any bytes."""
    from schemas.names import check_text

    with argument_errors():
        return check_text(text)


def name(text: str) -> str:
    """Read the name of a workstation, or the id of a job, that is an argument."""
    from schemas.names import check_name

    with argument_errors():
        return check_name(text)


@contextmanager
def history_errors() -> "Iterator[None]":
    """Tell what is wrong with the history's database in one line.

    Raises:
        Wrong: it cannot be used.
        WrongSetting: its URL is wrong.
    """
    from broker.history.schema import HistoryError, WrongHistory

    try:
        yield
    except WrongHistory:
        raise
    except HistoryError as error:
        raise Wrong(str(error)) from error


@contextmanager
def history() -> "Iterator[Engine]":
    """Open the history, up to date: what a collector has not read, is read first.

    Where the broker is out of reach, the history answers as it is, and stderr says so.

    Raises:
        Wrong: the database cannot be used, or there is neither broker nor history.
        WrongSetting: its URL is wrong, or leads to the history of another broker.
    """
    from broker.history.schema import open_history
    from broker.settings import HistorySettings, load

    settings = load(HistorySettings)
    with history_errors():
        engine = open_history(settings.history_url)
        try:
            _refresh(settings, engine)
            yield engine
        finally:
            engine.dispose()


def _refresh(settings: "HistorySettings", engine: "Engine") -> None:
    import asyncio

    from broker.amqp.connection import BrokerError
    from broker.history.collector import refresh
    from broker.history.position import is_empty

    try:
        asyncio.run(refresh(settings, engine))
    except BrokerError as error:
        if is_empty(engine):
            raise OutOfReach(str(error)) from error
        print(f"pcm: as far as is known here: {error}", file=sys.stderr)


@contextmanager
def known_history() -> "Iterator[Engine | None]":
    """Open the history for what is better with it, and goes without: then it is None."""
    stack = ExitStack()
    with stack:
        try:
            engine = stack.enter_context(history())
        except (Wrong, WrongSetting):
            engine = None
        yield engine


def whole_id(job: str) -> str:
    """Return the id of the only job that begins so, as far as the history goes.

    Raises:
        Wrong: more than one does.
    """
    if _WHOLE_ID.fullmatch(job):
        return job
    from broker.history.queries import UnknownId, accounts

    with known_history() as engine:
        if engine is None:
            return job
        with accounts(engine) as asked:
            try:
                return asked.find(job).id
            except UnknownId as error:
                if error.several:
                    raise Wrong(str(error)) from error
                return job  # the broker may know it
