"""The read position of the history in the stream, and the collector's lease."""

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TypeVar

from sqlalchemy import Connection, Engine, inspect, select

from broker.history.engine import check_version, map_database_errors
from broker.history.schema import reading
from broker.stream.entry import StreamEntry

LEASE_RENEWAL = 5.0
"""Interval in seconds at which a collector renews its lease."""
LEASE = 3 * LEASE_RENEWAL
"""Seconds after which a lease that was not renewed ends."""
_T = TypeVar("_T")


@dataclass(frozen=True)
class Position:
    """The read position in the stream.

    Attributes:
        base: is added to the stream's offsets, so that they follow those of a former stream.
        next_offset: the offset of the next entry to read.
        last: the digest of the entry before it; another stream has another one.
    """

    base: int
    next_offset: int
    last: str

    def after(self, entry: StreamEntry) -> "Position":
        """Return the position behind an entry."""
        return replace(self, next_offset=entry.offset + 1, last=entry.digest)


def read_position(connection: Connection) -> Position:
    """Return the read position.

    Raises:
        UnusableHistory: a newer program has migrated the tables.
    """
    columns = (reading.c.version, reading.c.base, reading.c.next_offset, reading.c.last)
    version, *position = connection.execute(select(*columns)).one()
    check_version(connection, version)
    return Position(*position)


def transact(engine: Engine, work: Callable[..., _T], *values: object) -> _T:
    """Call `work` with a connection, in a transaction.

    Raises:
        HistoryError: the database cannot be used.
    """
    with map_database_errors(engine), engine.begin() as connection:
        return work(connection, *values)


def is_collected(engine: Engine) -> bool:
    """Whether a collector has a valid lease."""
    query = select(reading.c.collected_at)
    with map_database_errors(engine), engine.connect() as connection:
        has_table = inspect(connection).has_table(reading.name)  # not in a new database
        at = connection.scalar(query) if has_table else None
    return at is not None and abs(time.time() - at) < LEASE


def is_empty(engine: Engine) -> bool:
    """Whether nothing has been read into the history."""
    with map_database_errors(engine), engine.connect() as connection:
        return read_position(connection) == Position(0, 0, "")
