"""Reads the stream into the history's tables: each entry once, whoever else reads at the time."""

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
from broker.history.position import BEAT, Position, place_in, transact
from broker.history.projection import rejected as forgeries
from broker.history.projection.projection import Fold
from broker.history.schema import CONTENT, gaps, reading
from broker.log import get_logger
from broker.stream import stream
from broker.stream.entry import StreamEntry
from schemas.errors import PcmError

_BATCH = 2000
_PREFETCH = 4000
_SILENCE = 60.0
_LONGEST_REASON = 300
_log = get_logger()
_T = TypeVar("_T")


class Overtaken(PcmError):
    """Somebody else has read on meanwhile, or reads on instead of us."""


class Reader:
    """One reading of the stream over one connection; with a beat it goes on for ever."""

    def __init__(
        self,
        engine: Engine,
        publisher: Publisher,
        beat: Callable[[Position], Awaitable[None]] | None = None,
    ) -> None:
        self._engine = engine
        self._publisher = publisher
        self._beat = beat
        self._mark = ""
        self._teller: Publisher | None = None
        self._may_tell = True

    async def run(self) -> None:
        """Read to the end of what is there, and on if there is a beat.

        Raises:
            Overtaken: somebody else has read on, or the stream is another one: run again.
            BrokerError: the broker cannot be reached, or does not let us.
            HistoryError: the database cannot be used.
        """
        place = await self._database(place_in)
        self._mark = await stream.mark(self._publisher)
        if not await self._reaches(place.next_offset):
            await self._database(_begin_anew, place)
            raise Overtaken
        start = place.next_offset - 1 if place.next_offset else None
        async with stream.read(self._publisher.connection, start, _PREFETCH) as entries:
            first = await self._check(place, await self._next(entries)) if place.next_offset else []
            await self._read_on(place, first, entries)

    async def _check(self, place: Position, entry: StreamEntry) -> list[StreamEntry]:
        """Look whether the stream goes on where we left it; return what is new of an entry."""
        if entry.offset >= place.next_offset:
            return [entry]
        if entry.digest != place.last:
            await self._database(_begin_anew, place)
            raise Overtaken
        return []

    async def _read_on(
        self, place: Position, batch: list[StreamEntry], entries: stream.StreamReader
    ) -> None:
        caught_up, heard, beaten = False, time.monotonic(), 0.0
        while True:
            now = time.monotonic()
            if batch:
                await entries.let_come()
                place, heard = await self._database(store, place, batch), now
                caught_up = caught_up or any(entry.is_mark(self._mark) for entry in batch)
                if caught_up:  # not sooner: what comes may say that others have told
                    await self._tell_forgeries(place)
            elif not caught_up and now - heard > CALL_LIMIT:
                raise Unreachable(f"reading {topology.REPORTS}: nothing more comes")
            elif caught_up and now - heard > _SILENCE:  # is it silent, or does nobody tell us?
                self._mark, caught_up, heard = await stream.mark(self._publisher), False, now
            if caught_up and self._beat is None:
                return
            if caught_up and self._beat is not None and now - beaten > BEAT:
                beaten = now
                await self._beat(place)
            batch = []
            with suppress(TimeoutError):
                async with timeout(BEAT):
                    batch = await entries.batch(_BATCH)

    async def _tell_forgeries(self, place: Position) -> None:
        """Tell the administrators of entries that are forged, where nobody has."""
        while self._may_tell and (found := await self._database(forgeries.untold)):
            if self._teller is None:
                self._teller = await Publisher.open(self._publisher.connection)
            try:
                await forgeries.tell(self._teller, found, place.base)
            except Refused as error:  # who may not write letters can still read
                _log.warning("history.forgeries_untold", reason=str(error))
                self._may_tell = False
                return
            await self._database(forgeries.was_told, [row.digest for row in found])

    async def _reaches(self, offset: int) -> bool:
        """Whether the stream goes as far as an offset; another one in its place may not."""
        async with stream.read(self._publisher.connection, "last") as entries:
            while True:
                entry = await self._next(entries)
                if entry.offset >= offset:
                    return True
                if entry.is_mark(self._mark):
                    return False

    async def _next(self, entries: stream.StreamReader) -> StreamEntry:
        try:
            async with timeout(CALL_LIMIT):
                return await anext(entries)
        except TimeoutError:
            raise Unreachable(f"reading {topology.REPORTS}: nothing comes") from None

    async def _database(self, work: Callable[..., _T], *values: object) -> _T:
        return await asyncio.to_thread(transact, self._engine, work, *values)


def rebuild(engine: Engine) -> None:
    """Empty the history, so that it is read anew: what the stream has dropped is lost.

    Raises:
        HistoryError: the database cannot be used.
    """

    def work(connection: Connection) -> None:
        anew = {"base": 0, "next_offset": 0, "last": "", "collected_at": None, "kept_at": None}
        connection.execute(update(reading).values(anew))
        for table in CONTENT:
            connection.execute(delete(table))

    transact(engine, work)


def _move(connection: Connection, place: Position, to: Position) -> None:
    """Note how far was read; the first statement of its transaction, so that others wait for it.

    Raises:
        Overtaken: it is not as we left it.
    """
    moved: CursorResult[object] = connection.execute(
        update(reading)
        .where(
            reading.c.version == SCHEMA_VERSION,
            reading.c.base == place.base,
            reading.c.next_offset == place.next_offset,
            reading.c.last == place.last,
        )
        .values(base=to.base, next_offset=to.next_offset, last=to.last)
    )
    if moved.rowcount != 1:
        raise Overtaken


def store(connection: Connection, place: Position, entries: list[StreamEntry]) -> Position:
    """Write entries, and how far was read with them; return the place behind them.

    Raises:
        Overtaken: somebody else has read on meanwhile.
    """
    to = place.after(entries[-1])
    _move(connection, place, to)
    if (first := entries[0].offset) > place.next_offset:
        why = "the stream had dropped it, by age or size, before it was read"
        _log.warning("history.gap", first=place.next_offset, next=first)
        _note_gap(connection, place.base + place.next_offset, place.base + first, why)
    if place.base:
        entries = [entry._replace(offset=place.base + entry.offset) for entry in entries]
    _fold(connection, entries)
    return to


def _fold(connection: Connection, entries: list[StreamEntry]) -> None:
    """Fold entries; one that the database cannot hold costs itself, and no other."""
    try:
        with connection.begin_nested():
            fold = Fold(connection)
            fold.add(entries)
            fold.flush()
    except (DataError, OverflowError, ValueError) as error:
        if len(entries) > 1:
            middle = len(entries) // 2
            _fold(connection, entries[:middle])
            _fold(connection, entries[middle:])
            return
        offset = entries[0].offset
        _log.warning("history.unreadable", offset=offset, reason=str(error)[:_LONGEST_REASON])
        _note_gap(connection, offset, offset + 1, "it cannot be kept")


def _begin_anew(connection: Connection, place: Position) -> None:
    """Read another stream from its beginning; what is known of the former one stays."""
    base = place.base + place.next_offset
    _move(connection, place, Position(base, 0, ""))
    why = "another stream has taken its place: what came last in the former one may be missing"
    _log.warning("history.other_stream", next=place.next_offset)
    _note_gap(connection, base, base, why)


def _note_gap(connection: Connection, first: int, until: int, why: str) -> None:
    connection.execute(delete(gaps).where(gaps.c.first == first))
    connection.execute(insert(gaps).values(first=first, next=until, why=why))
