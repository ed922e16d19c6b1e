"""Read the stream into the history's tables: each entry once, also with concurrent readers."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import TypeVar

from sqlalchemy import Connection, CursorResult, Engine, delete, insert, update
from sqlalchemy.exc import DataError

from broker.amqp import topology
from broker.amqp.connection import CALL_LIMIT, Refused, Unreachable
from broker.amqp.publisher import Publisher
from broker.amqp.timeouts import timeout
from broker.history.migrations import SCHEMA_VERSION
from broker.history.position import LEASE_RENEWAL, Position, read_position, transact
from broker.history.projection import rejected
from broker.history.projection.projection import Projection
from broker.history.schema import CONTENT, gaps, reading
from broker.log import get_logger
from broker.stream import stream
from broker.stream.entry import StreamEntry
from schemas.errors import PcmError

_BATCH = 2000
_PREFETCH = 4000
_MARKER_INTERVAL = 60.0
_MAX_REASON_LENGTH = 300
_log = get_logger()
_T = TypeVar("_T")


class Overtaken(PcmError):
    """Another reader has moved the position, or has the lease."""


class Reader:
    """Read the stream over one connection; with `on_caught_up`, permanently."""

    def __init__(
        self,
        engine: Engine,
        publisher: Publisher,
        on_caught_up: Callable[[Position], Awaitable[None]] | None = None,
    ) -> None:
        self._engine = engine
        self._publisher = publisher
        self._on_caught_up = on_caught_up
        self._marker = ""
        self._rejected_publisher: Publisher | None = None
        self._can_publish_rejected = True

    async def run(self) -> None:
        """Read to the end of the stream; with `on_caught_up`, go on and call it regularly.

        Raises:
            Overtaken: another reader has moved the position, or the stream is new: run again.
            BrokerError: the broker is unreachable, or refuses.
            HistoryError: the database cannot be used.
        """
        position = await self._database(read_position)
        self._marker = await stream.append_end_marker(self._publisher)
        if not await self._reaches(position.next_offset):
            await self._database(_start_new_stream, position)
            raise Overtaken
        start = position.next_offset - 1 if position.next_offset else None
        async with stream.read_stream(self._publisher.connection, start, _PREFETCH) as entries:
            first: list[StreamEntry] = []
            if position.next_offset:
                first = await self._check(position, await self._next(entries))
            await self._read_on(position, first, entries)

    async def _check(self, position: Position, entry: StreamEntry) -> list[StreamEntry]:
        """Check that an entry is the last one read; return it if it is a later one."""
        if entry.offset >= position.next_offset:
            return [entry]
        if entry.digest != position.last:
            await self._database(_start_new_stream, position)
            raise Overtaken
        return []

    async def _read_on(
        self, position: Position, batch: list[StreamEntry], entries: stream.StreamReader
    ) -> None:
        caught_up, received_at, called_at = False, time.monotonic(), 0.0
        while True:
            now = time.monotonic()
            if batch:
                await entries.grant_credit()
                position, received_at = await self._database(store, position, batch), now
                caught_up = caught_up or any(entry.is_end_marker(self._marker) for entry in batch)
                if caught_up:  # not before: later entries may show that they are published
                    await self._publish_rejected(position)
            elif not caught_up and now - received_at > CALL_LIMIT:
                raise Unreachable(f"reading {topology.REPORTS}: no more entries")
            elif caught_up and now - received_at > _MARKER_INTERVAL:  # is the consumer alive?
                self._marker = await stream.append_end_marker(self._publisher)
                caught_up, received_at = False, now
            if caught_up and self._on_caught_up is None:
                return
            if caught_up and self._on_caught_up is not None and now - called_at > LEASE_RENEWAL:
                called_at = now
                await self._on_caught_up(position)
            batch = []
            with suppress(TimeoutError):
                async with timeout(LEASE_RENEWAL):
                    batch = await entries.batch(_BATCH)

    async def _publish_rejected(self, position: Position) -> None:
        """Publish rejected entries as dead letters, if no other reader has."""
        while self._can_publish_rejected and (rows := await self._database(rejected.unpublished)):
            if self._rejected_publisher is None:
                self._rejected_publisher = await Publisher.open(self._publisher.connection)
            for row in rows:
                self._warn("history.rejected", offset=row.offset, reason=row.reason)
            try:
                await rejected.publish_rejected(self._rejected_publisher, rows, position.base)
            except Refused as error:  # reading needs no such permission
                self._warn("history.rejected_not_published", reason=str(error))
                self._can_publish_rejected = False
                return
            await self._database(rejected.mark_published, [row.digest for row in rows])

    def _warn(self, event: str, **fields: object) -> None:
        """Log a warning of a collector; the stderr of a command is for its user."""
        if self._on_caught_up is not None:
            _log.warning(event, **fields)

    async def _reaches(self, offset: int) -> bool:
        """Whether the stream has an offset, or has ever had it; a new stream may not."""
        async with stream.read_stream(self._publisher.connection, "last") as entries:
            while True:
                entry = await self._next(entries)
                if entry.offset >= offset:
                    return True
                if entry.is_end_marker(self._marker):
                    return False

    async def _next(self, entries: stream.StreamReader) -> StreamEntry:
        try:
            async with timeout(CALL_LIMIT):
                return await anext(entries)
        except TimeoutError:
            raise Unreachable(f"reading {topology.REPORTS}: no entries") from None

    async def _database(self, work: Callable[..., _T], *values: object) -> _T:
        return await asyncio.to_thread(transact, self._engine, work, *values)


def rebuild(engine: Engine) -> None:
    """Empty the history, to read it again; entries that the stream has dropped are lost.

    Raises:
        HistoryError: the database cannot be used.
    """

    def work(connection: Connection) -> None:
        initial = {
            "base": 0,
            "next_offset": 0,
            "last": "",
            "collected_at": None,
            "cleaned_at": None,
        }
        connection.execute(update(reading).values(initial))
        for table in CONTENT:
            connection.execute(delete(table))

    transact(engine, work)


def _move(connection: Connection, position: Position, new: Position) -> None:
    """Move the position; the first statement of its transaction, so that other readers wait.

    Raises:
        Overtaken: another reader has moved it.
    """
    moved: CursorResult[object] = connection.execute(
        update(reading)
        .where(
            reading.c.version == SCHEMA_VERSION,
            reading.c.base == position.base,
            reading.c.next_offset == position.next_offset,
            reading.c.last == position.last,
        )
        .values(base=new.base, next_offset=new.next_offset, last=new.last)
    )
    if moved.rowcount != 1:
        raise Overtaken


def store(connection: Connection, position: Position, entries: list[StreamEntry]) -> Position:
    """Write entries and the position behind them; return that position.

    Raises:
        Overtaken: another reader has moved the position.
    """
    new = position.after(entries[-1])
    _move(connection, position, new)
    # RabbitMQ begins a segment of the stream with an entry of its own, which is no message. The
    # stream drops whole segments, never a single message.
    if (first := entries[0].offset) > position.next_offset + 1:
        why = "the stream had dropped it, by age or size, before it was read"
        _log.warning("history.gap", first=position.next_offset, next=first)
        _record_gap(connection, position.base + position.next_offset, position.base + first, why)
    if position.base:
        entries = [entry._replace(offset=position.base + entry.offset) for entry in entries]
    _project(connection, entries)
    return new


def _project(connection: Connection, entries: list[StreamEntry]) -> None:
    """Project entries; skip an entry that the database cannot store."""
    try:
        with connection.begin_nested():
            projection = Projection(connection)
            projection.add(entries)
            projection.flush()
    except (DataError, OverflowError, ValueError) as error:
        if len(entries) > 1:
            middle = len(entries) // 2
            _project(connection, entries[:middle])
            _project(connection, entries[middle:])
            return
        offset = entries[0].offset
        _log.warning("history.unreadable", offset=offset, reason=str(error)[:_MAX_REASON_LENGTH])
        _record_gap(connection, offset, offset + 1, "it cannot be stored")


def _start_new_stream(connection: Connection, position: Position) -> None:
    """Start reading a new stream; the history of the former one is kept."""
    base = position.base + position.next_offset
    _move(connection, position, Position(base, 0, ""))
    why = "another stream has replaced it: the last entries of the former one may be missing"
    _log.warning("history.other_stream", next=position.next_offset)
    _record_gap(connection, base, base, why)


def _record_gap(connection: Connection, first: int, until: int, why: str) -> None:
    connection.execute(delete(gaps).where(gaps.c.first == first))
    connection.execute(insert(gaps).values(first=first, next=until, why=why))
