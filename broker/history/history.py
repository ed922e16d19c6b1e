"""The history for scripts: opened up to date, and asked as of one instant."""

from collections.abc import Iterator
from contextlib import contextmanager

from sqlalchemy import Connection, Engine

from broker.amqp.connection import Unreachable
from broker.history.position import is_collected
from broker.history.queries import Accounts
from broker.history.schema import open_history, snapshot, told
from broker.history.workstations import Fleet
from broker.settings import HistorySettings, load


class History:
    """What came of all jobs, and who is there.

    Attributes:
        accounts: answers about jobs.
        fleet: answers about workstations.
        connection: to the database, within the transaction in which all is asked.
    """

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self.accounts = Accounts(connection)
        self.fleet = Fleet(connection, self.accounts.now)

    @staticmethod
    @contextmanager
    def read(settings: HistorySettings | None = None) -> "Iterator[History]":
        """Open the history; what no collector has read of the stream, is read first.

        Args:
            settings: how; default: from the environment.

        Raises:
            HistoryError: the database cannot be used, or was read of another broker.
            BrokerError: the broker cannot be reached, and no collector keeps the history up to
                date; or it does not let us.
        """
        settings = settings or load(HistorySettings)
        engine = open_history(settings.history_url)
        try:
            try:
                _refresh(settings, engine)
            except Unreachable:
                if not is_collected(engine):
                    raise
            with asked(engine) as history:
                yield history
        finally:
            engine.dispose()


@contextmanager
def asked(engine: Engine) -> Iterator[History]:
    """Ask a history that is open, as of one instant.

    Raises:
        HistoryError: the database cannot be used.
    """
    with told(engine), snapshot(engine) as connection:
        yield History(connection)


def _refresh(settings: HistorySettings, engine: Engine) -> None:
    import asyncio
    from concurrent.futures import ThreadPoolExecutor

    from broker.history.collector import refresh

    # In a thread of its own: the caller's may have a loop that runs.
    with ThreadPoolExecutor(1) as thread:
        thread.submit(asyncio.run, refresh(settings, engine)).result()
