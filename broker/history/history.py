"""The history for scripts: updated when opened, and queried as of one instant."""

from collections.abc import Iterator
from contextlib import contextmanager

from sqlalchemy import Connection, Engine

from broker.amqp.connection import Unreachable
from broker.history.engine import map_database_errors, open_history, snapshot
from broker.history.position import is_collected
from broker.history.queries.jobs import JobQueries
from broker.history.queries.packages import PackageQueries
from broker.history.queries.workstations import Fleet
from broker.settings import HistorySettings, load


class History:
    """Query jobs and workstations.

    Attributes:
        jobs: queries of jobs.
        fleet: queries of workstations.
        packages: queries of the packages on workstations.
        packages: queries of the packages on workstations.
        connection: to the database, in the transaction of all queries.
    """

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self.jobs = JobQueries(connection)
        self.fleet = Fleet(connection, self.jobs.now)
        self.packages = PackageQueries(connection)
        self.packages = PackageQueries(connection)

    @staticmethod
    @contextmanager
    def read(settings: HistorySettings | None = None) -> "Iterator[History]":
        """Open the history; without a collector, read the stream's new entries first.

        Args:
            settings: the settings; default: from the environment.

        Raises:
            HistoryError: the database cannot be used, or was read from another broker.
            BrokerError: the broker is unreachable, and there is no collector; or it refuses.
        """
        settings = settings or load(HistorySettings)
        engine = open_history(settings.history_url)
        try:
            try:
                _refresh(settings, engine)
            except Unreachable:
                if not is_collected(engine):
                    raise
            with query_history(engine) as history:
                yield history
        finally:
            engine.dispose()


@contextmanager
def query_history(engine: Engine) -> Iterator[History]:
    """Query an open history, as of one instant.

    Raises:
        HistoryError: the database cannot be used.
    """
    with map_database_errors(engine), snapshot(engine) as connection:
        yield History(connection)


def _refresh(settings: HistorySettings, engine: Engine) -> None:
    from broker.history.collector import refresh
    from broker.run_in_thread import run_in_thread

    run_in_thread(refresh(settings, engine))
