"""The status of the history itself."""

import time
from dataclasses import dataclass

from sqlalchemy import Engine, Table, func, select

from broker.history.address import shown
from broker.history.engine import map_database_errors, open_history
from broker.history.position import LEASE, read_position
from broker.history.queries.jobs import JobQueries
from broker.history.schema import jobs, outcomes, reading, rejected_entries, reports, workstations
from broker.settings import HistorySettings, load


@dataclass(frozen=True)
class HistoryStatus:
    """The contents and the read position of a history. Times are seconds since the epoch."""

    database: str
    cluster: str
    virtual_host: str
    jobs: int
    outcomes: int
    reports: int
    workstations: int
    oldest_job: float | None
    next_offset: int
    collector: str
    gaps: list[str]
    rejected: int


def history_status(settings: HistorySettings | None = None) -> HistoryStatus:
    """Return the status of the history; read nothing new from the stream.

    Args:
        settings: the settings; default: from the environment.

    Raises:
        HistoryError: the database cannot be used.
    """
    engine = open_history((settings or load(HistorySettings)).history_url)
    try:
        return status(engine)
    finally:
        engine.dispose()


def status(engine: Engine) -> HistoryStatus:
    """Return the status of a history.

    Raises:
        HistoryError: the database cannot be used.
    """
    with map_database_errors(engine), engine.connect() as connection:

        def count(table: Table) -> int:
            return connection.scalar(select(func.count()).select_from(table)) or 0

        read = connection.execute(select(reading)).one()
        is_collected = (
            read.collected_at is not None and abs(time.time() - read.collected_at) < LEASE
        )
        return HistoryStatus(
            shown(engine.url),
            read.cluster,
            read.virtual_host,
            jobs=count(jobs),
            outcomes=count(outcomes),
            reports=count(reports),
            workstations=count(workstations),
            oldest_job=connection.scalar(select(func.min(jobs.c.created_at))),
            next_offset=read.next_offset,
            collector=read.collector if is_collected else "",
            gaps=JobQueries(connection).gaps(),
            rejected=count(rejected_entries),
        )


def jobs_before(engine: Engine, offset: int) -> int:
    """Return the number of jobs before an offset of the stream, or of a former stream."""
    with map_database_errors(engine), engine.connect() as connection:
        before = jobs.c.offset < read_position(connection).base + offset
        return connection.scalar(select(func.count()).select_from(jobs).where(before)) or 0
