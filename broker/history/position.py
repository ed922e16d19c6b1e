"""How far the stream was read into the history, and whether somebody reads on."""

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TypeVar

from sqlalchemy import Connection, Engine, inspect, select

from broker.history.schema import check_version, reading, told
from broker.stream.entry import StreamEntry

BEAT = 5.0
"""Seconds after which a reader that goes on tells that it is there."""
FRESH = 3 * BEAT
"""Seconds after which a collector that says nothing is not there."""
_T = TypeVar("_T")


@dataclass(frozen=True)
class Position:
    """How far the stream was read.

    Attributes:
        base: what is added to this stream's offsets, so that they come after those of the former.
        next_offset: the offset of the first entry that was not read.
        last: what the entry before it was: another stream has another there.
    """

    base: int
    next_offset: int
    last: str

    def after(self, entry: StreamEntry) -> "Position":
        """Return the place behind an entry."""
        return replace(self, next_offset=entry.offset + 1, last=entry.digest)


def place_in(connection: Connection) -> Position:
    """Return how far the stream was read.

    Raises:
        UnusableHistory: a newer program has changed the tables meanwhile.
    """
    columns = (reading.c.version, reading.c.base, reading.c.next_offset, reading.c.last)
    version, *place = connection.execute(select(*columns)).one()
    check_version(connection, version)
    return Position(*place)


def transact(engine: Engine, work: Callable[..., _T], *values: object) -> _T:
    """Do something in a transaction.

    Raises:
        HistoryError: the database cannot be used.
    """
    with told(engine), engine.begin() as connection:
        return work(connection, *values)


def is_collected(engine: Engine) -> bool:
    """Whether a collector keeps the history up to date now."""
    query = select(reading.c.collected_at)
    with told(engine), engine.connect() as connection:
        there = inspect(connection).has_table(reading.name)  # a new collector makes it
        at = connection.scalar(query) if there else None
    return at is not None and abs(time.time() - at) < FRESH


def is_empty(engine: Engine) -> bool:
    """Whether nothing was ever read into the history."""
    with told(engine), engine.connect() as connection:
        return place_in(connection) == Position(0, 0, "")
