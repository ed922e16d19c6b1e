"""Reads the stream into the history, each entry once, whatever crashes and whoever else reads."""

import asyncio
import hashlib
import os
import random
import socket
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

import structlog
from aio_pika.abc import AbstractConnection
from sqlalchemy import Connection, CursorResult, Engine, delete, insert, or_, select, update

from broker import stream, topology
from broker.connection import (
    CALL_LIMIT,
    BrokerError,
    Publisher,
    Unreachable,
    backoff,
    connect,
    translated,
)
from broker.history.fold import Fold
from broker.history.tables import (
    CONTENT,
    HistoryError,
    UnusableHistory,
    gaps,
    jobs,
    outcomes,
    prepare,
    reading,
    reports,
    results,
    told,
)
from broker.settings import HistorySettings
from broker.stream import Entry

_BATCH = 4000
_PREFETCH = 8000
_BEAT = 5.0  # seconds
FRESH = 3 * _BEAT
"""Seconds after which a collector that says nothing is not there."""
_SILENCE = 60.0
_HOUSEKEEPING = 3600.0
_log = structlog.get_logger()
_T = TypeVar("_T")


@dataclass(frozen=True)
class _Place:
    """How far the stream was read: the next offset, and what the entry before it was."""

    next_offset: int
    last: str


class _Overtaken(Exception):
    """Somebody else has read on meanwhile, or reads on instead of us."""


def is_collected(engine: Engine) -> bool:
    """Whether a collector keeps the history up to date now."""
    query = select(reading.c.collected_at)
    with told(engine), engine.connect() as connection:
        at = connection.scalar(query)
    return at is not None and abs(time.time() - at) < FRESH


def is_empty(engine: Engine) -> bool:
    """Whether nothing was ever read into the history."""
    with told(engine), engine.connect() as connection:
        return not connection.scalar(select(reading.c.next_offset))


async def catch_up(settings: HistorySettings, engine: Engine) -> None:
    """Read into the history all that is in the stream now.

    Raises:
        BrokerError: the broker cannot be reached, or does not let us.
        HistoryError: the database cannot be used.
    """
    await Collector(settings, engine).catch_up()


async def first_offset(settings: HistorySettings) -> int:
    """Return the first offset that the stream still has.

    Raises:
        BrokerError: the broker cannot be reached, or does not let us.
    """
    async with connect(settings, "pcm history") as connection:
        await stream.mark(await Publisher.open(connection))
        async with stream.read(connection, None, 1) as entries, asyncio.timeout(CALL_LIMIT):
            return (await anext(entries)).offset


class Collector:
    """Reads the stream into a history."""

    def __init__(self, settings: HistorySettings, engine: Engine) -> None:
        self._settings = settings
        self._engine = engine
        self._name = f"{socket.gethostname()}:{os.getpid()}:{random.getrandbits(32):08x}"
        self._told = ""

    async def catch_up(self) -> None:
        """Read what is there, and return; see the function of that name."""
        async with connect(self._settings, "pcm history") as connection:
            publisher = await _publisher(connection)
            while True:
                with suppress(_Overtaken):
                    session = _Session(self._engine, publisher, None)
                    await session.run()
                    break
        await self._database(_keep_house, self._settings.history_keep.total_seconds())

    async def run(self) -> None:
        """Keep the history up to date until cancelled, whatever of broker and database is away.

        Raises:
            UnusableHistory: the database is none that this program can use.
        """
        attempt = 0
        while True:
            began = time.monotonic()
            try:
                await asyncio.to_thread(prepare, self._engine)
                await self._database(_stand_by_unless_ours, self._name)
                await self._session()
            except _Overtaken:
                self._tell("collector.stands_by", "another one collects")
                attempt = 0
                await asyncio.sleep(_BEAT)
                continue
            except UnusableHistory:
                raise
            except (BrokerError, HistoryError) as failure:
                self._tell("collector.waits", str(failure))
            if time.monotonic() - began > FRESH:
                attempt = 0
            await asyncio.sleep(backoff(attempt))
            attempt += 1

    async def leave(self) -> None:
        """Let others collect at once, when this one stops."""
        with suppress(HistoryError):
            await self._database(_leave, self._name)

    async def _session(self) -> None:
        async with connect(self._settings, f"pcm collect {self._name}") as connection:
            publisher = await _publisher(connection)
            session = _Session(self._engine, publisher, self._beat)
            housekeeping = asyncio.create_task(self._keep_house())
            try:
                await session.run()
            finally:
                housekeeping.cancel()

    async def _beat(self) -> None:
        await self._database(_beat, self._name)
        if self._told != "collector.keeps_up":
            self._tell("collector.keeps_up", "")

    async def _keep_house(self) -> None:
        keep = self._settings.history_keep.total_seconds()
        while True:
            with suppress(HistoryError):  # the session meets it as well, and says so
                await self._database(_keep_house, keep)
            await asyncio.sleep(_HOUSEKEEPING)

    def _tell(self, what: str, reason: str) -> None:
        """Say how it stands, once until that changes."""
        if self._told != what + reason:
            self._told = what + reason
            _log.info(what, **({"reason": reason} if reason else {}))

    async def _database(self, work: Callable[..., _T], *values: object) -> _T:
        return await asyncio.to_thread(_transact, self._engine, work, *values)


async def _publisher(connection: AbstractConnection) -> Publisher:
    """Return a publisher to a broker that has the stream."""
    with translated("declaring the topology"):
        async with asyncio.timeout(CALL_LIMIT):
            await topology.ensure(connection)
    return await Publisher.open(connection)


class _Session:
    """One reading of the stream over one connection; with a beat it goes on for ever."""

    def __init__(
        self,
        engine: Engine,
        publisher: Publisher,
        beat: Callable[[], Awaitable[None]] | None,
    ) -> None:
        self._engine = engine
        self._publisher = publisher
        self._beat = beat
        self._mark = ""

    async def run(self) -> None:
        """Read to the end of what is there, and on if there is a beat."""
        place = await self._database(_place)
        self._mark = await stream.mark(self._publisher)
        if not await self._reaches(place.next_offset):
            place = await self._database(_begin_anew, place)
        start = place.next_offset - 1 if place.next_offset else None
        async with stream.read(self._publisher.connection, start, _PREFETCH) as entries:
            if start is not None:
                async with asyncio.timeout(CALL_LIMIT):
                    first = await entries.batch(1)
                if first[0].offset == start and _print_of(first[0]) != place.last:
                    await self._database(_begin_anew, place)
                    raise _Overtaken
                if first[0].offset > start:
                    place = await self._store(place, first, dropped_before=first[0].offset)
            await self._read_on(place, entries)

    async def _read_on(self, place: _Place, entries: stream.Entries) -> None:
        caught_up, heard, beaten = False, time.monotonic(), 0.0
        while True:
            batch: list[Entry] = []
            with suppress(TimeoutError):
                async with asyncio.timeout(_BEAT if self._beat else CALL_LIMIT):
                    batch = await entries.batch(_BATCH)
            now = time.monotonic()
            if batch:
                place, heard = await self._store(place, batch), now
                caught_up = caught_up or any(entry.message_id == self._mark for entry in batch)
            elif not caught_up and now - heard > CALL_LIMIT - _BEAT:
                raise Unreachable(f"reading {topology.REPORTS}: nothing more comes")
            elif caught_up and now - heard > _SILENCE:  # is it silent, or does nobody tell us?
                self._mark, caught_up, heard = await stream.mark(self._publisher), False, now
            if caught_up and self._beat is None:
                return
            if caught_up and self._beat is not None and now - beaten > _BEAT:
                beaten = now
                await self._beat()

    async def _reaches(self, offset: int) -> bool:
        """Whether the stream goes as far as an offset; another one in its place may not."""
        async with stream.read(self._publisher.connection, "last") as entries:
            while True:
                try:
                    async with asyncio.timeout(CALL_LIMIT):
                        entry = await anext(entries)
                except TimeoutError:
                    raise Unreachable(f"reading {topology.REPORTS}: no end is found") from None
                if entry.offset >= offset:
                    return True
                if entry.message_id == self._mark:
                    return False

    async def _store(
        self, place: _Place, entries: list[Entry], dropped_before: int | None = None
    ) -> _Place:
        return await self._database(partial(_store, dropped_before=dropped_before), place, entries)

    async def _database(self, work: Callable[..., _T], *values: object) -> _T:
        return await asyncio.to_thread(_transact, self._engine, work, *values)


def _transact(engine: Engine, work: Callable[..., _T], *values: object) -> _T:
    with told(engine), engine.begin() as connection:
        return work(connection, *values)


def _print_of(entry: Entry) -> str:
    """Return what tells an entry from that of another stream at the same offset."""
    content = b"\0".join((entry.kind.encode(), entry.message_id.encode(), entry.body))
    return hashlib.sha256(content).hexdigest()[:32]


def _place(connection: Connection) -> _Place:
    return _Place(*connection.execute(select(reading.c.next_offset, reading.c.last)).one())


def _move(connection: Connection, place: _Place, to: _Place) -> None:
    """Note how far was read; the first statement of its transaction, so that others wait for it.

    Raises:
        _Overtaken: it is not as we left it.
    """
    moved: CursorResult[object] = connection.execute(
        update(reading)
        .where(reading.c.next_offset == place.next_offset, reading.c.last == place.last)
        .values(next_offset=to.next_offset, last=to.last)
    )
    if moved.rowcount != 1:
        raise _Overtaken


def _store(
    connection: Connection, place: _Place, entries: list[Entry], dropped_before: int | None
) -> _Place:
    to = _Place(entries[-1].offset + 1, _print_of(entries[-1]))
    _move(connection, place, to)
    if dropped_before is not None and dropped_before > place.next_offset:
        why = "the stream had dropped it, by age or size, before it was read"
        _log.warning("history.gap", first=place.next_offset, next=dropped_before)
        _note_gap(connection, place.next_offset, dropped_before, why)
    fold = Fold(connection)
    fold.add(entries)
    fold.flush()
    return to


def _begin_anew(connection: Connection, place: _Place) -> _Place:
    """Read another stream from its beginning; what is known of the former one stays."""
    anew = _Place(0, "")
    _move(connection, place, anew)
    why = "another stream has taken its place: what came last in the former one may be missing"
    _log.warning("history.other_stream", next=place.next_offset)
    _note_gap(connection, place.next_offset, place.next_offset, why)
    return anew


def _note_gap(connection: Connection, first: int, until: int, why: str) -> None:
    connection.execute(delete(gaps).where(gaps.c.first == first))
    connection.execute(insert(gaps).values(first=first, next=until, why=why))


def _stand_by_unless_ours(connection: Connection, name: str) -> None:
    """Raise _Overtaken where another collector is at work."""
    other, at = connection.execute(select(reading.c.collector, reading.c.collected_at)).one()
    if at is not None and other != name and abs(time.time() - at) < FRESH:
        raise _Overtaken


def _beat(connection: Connection, name: str) -> None:
    now = time.time()
    stale = or_(
        reading.c.collected_at.is_(None),
        ~reading.c.collected_at.between(now - FRESH, now + FRESH),
        reading.c.collector == name,
    )
    beaten: CursorResult[object] = connection.execute(
        update(reading).where(stale).values(collector=name, collected_at=now)
    )
    if beaten.rowcount != 1:
        raise _Overtaken


def _leave(connection: Connection, name: str) -> None:
    connection.execute(
        update(reading).where(reading.c.collector == name).values(collector="", collected_at=None)
    )


def _keep_house(connection: Connection, keep: float) -> None:
    """Drop the jobs that are older than what is kept, and all that is known of them."""
    now = time.time()
    kept_at = connection.scalar(select(reading.c.kept_at))
    if kept_at is not None and now - kept_at < _HOUSEKEEPING:
        return
    connection.execute(update(reading).values(kept_at=now))
    old = select(jobs.c.id).where(jobs.c.created_at < now - keep)
    for table in (outcomes, reports, results):
        connection.execute(delete(table).where(table.c.job_id.in_(old)))
    connection.execute(delete(jobs).where(jobs.c.created_at < now - keep))


def rebuild(engine: Engine) -> None:
    """Empty the history, so that it is made anew from the stream.

    Raises:
        HistoryError: the database cannot be used.
    """

    def work(connection: Connection) -> None:
        connection.execute(
            update(reading).values(next_offset=0, last="", collected_at=None, kept_at=None)
        )
        for table in CONTENT:
            connection.execute(delete(table))

    _transact(engine, work)
