"""Keeps the history up to date: once for a question, or for ever as a service."""

import asyncio
import os
import random
import socket
import time
from collections.abc import Callable
from contextlib import suppress
from typing import TypeVar

from aio_pika.abc import AbstractConnection
from sqlalchemy import Connection, CursorResult, Engine, delete, or_, select, update

from broker.amqp import topology
from broker.amqp.connection import CALL_LIMIT, Backoff, BrokerError, connect, translated, address_of
from broker.amqp.publisher import Publisher
from broker.amqp.timeouts import timeout
from broker.history.position import BEAT, FRESH, Position, is_collected, place_in, transact
from broker.history.projection import rejected as forgeries
from broker.history.reader import Overtaken, Reader
from broker.history.schema import (
    HistoryError,
    UnusableHistory,
    jobs,
    outcomes,
    prepare,
    reading,
    reports,
    results,
)
from broker.history.source import check_source, note_source, source_of
from broker.log import get_logger
from broker.settings import HistorySettings
from broker.stream import stream

_HOUSEKEEPING = 3600.0
_log = get_logger()
_T = TypeVar("_T")


async def catch_up(settings: HistorySettings, engine: Engine) -> None:
    """Read into the history all that is in the stream now.

    Raises:
        BrokerError: the broker cannot be reached, or does not let us.
        HistoryError: the database cannot be used, or was read of another broker.
    """
    await Collector(settings, engine).catch_up()


async def refresh(settings: HistorySettings, engine: Engine) -> None:
    """Make sure that a history is of this broker; read what no collector reads.

    Raises:
        BrokerError: the broker cannot be reached, or does not let us.
        HistoryError: the database cannot be used, or was read of another broker.
    """
    await Collector(settings, engine).catch_up(unless_collected=True)


async def first_offset(settings: HistorySettings) -> int:
    """Return the first offset that the stream still has.

    Raises:
        BrokerError: the broker cannot be reached, or does not let us.
    """
    async with connect(settings, "pcm history") as connection:
        await stream.mark(await Publisher.open(connection))
        with translated(f"reading {topology.REPORTS}"):
            async with stream.read(connection, None, 1) as entries, timeout(CALL_LIMIT):
                return (await anext(entries)).offset


class Collector:
    """Reads the stream into a history."""

    def __init__(self, settings: HistorySettings, engine: Engine) -> None:
        self._settings = settings
        self._engine = engine
        self._name = f"{socket.gethostname()}:{os.getpid()}:{random.getrandbits(32):08x}"
        self._told = ""
        self._last = ""

    async def catch_up(self, *, unless_collected: bool = False) -> None:
        """Read what is there, and return; see the functions `catch_up` and `refresh`."""
        async with connect(self._settings, "pcm history") as connection:
            await self._database(check_source, source_of(connection))
            if unless_collected and await asyncio.to_thread(is_collected, self._engine):
                return
            publisher = await self._publisher(connection)
            while True:
                with suppress(Overtaken):
                    await Reader(self._engine, publisher).run()
                    break
        await self._database(_keep_house, self._settings.history_keep.total_seconds())

    async def run(self) -> None:
        """Keep the history up to date until cancelled, whatever of broker and database is away.

        Raises:
            UnusableHistory: the database is none that this program can use.
        """
        backoff = Backoff()
        while True:
            began = time.monotonic()
            try:
                await asyncio.to_thread(prepare, self._engine)
                await self._database(_stand_by_unless_ours, self._name)
                await self._session()
            except Overtaken:
                self._tell("collector.stands_by", "another one collects")
                backoff.reset()
                await asyncio.sleep(BEAT)
                continue
            except UnusableHistory:
                raise
            except (BrokerError, HistoryError) as failure:
                self._tell("collector.waits", str(failure))
            if time.monotonic() - began > FRESH:
                backoff.reset()
            await asyncio.sleep(backoff.failed())

    async def leave(self) -> None:
        """Let others collect at once, when this one stops."""
        with suppress(HistoryError):
            await self._database(_leave, self._name)

    async def _session(self) -> None:
        name = f"pcm collect {self._name}"
        async with connect(self._settings, name, self._last) as connection:
            self._last = address_of(connection)
            publisher = await self._publisher(connection)
            housekeeping = asyncio.create_task(self._keep_house())
            try:
                await Reader(self._engine, publisher, self._beat).run()
            finally:
                housekeeping.cancel()

    async def _publisher(self, connection: AbstractConnection) -> Publisher:
        """Return a publisher to a broker that has the stream, and is the history's."""
        await self._database(note_source, source_of(connection))
        await topology.ensure(connection)
        return await Publisher.open(connection)

    async def _beat(self, place: Position) -> None:
        await self._database(_beat, self._name, place)
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
        return await asyncio.to_thread(transact, self._engine, work, *values)


def _stand_by_unless_ours(connection: Connection, name: str) -> None:
    """Raise Overtaken where another collector is at work."""
    other, at = connection.execute(select(reading.c.collector, reading.c.collected_at)).one()
    if at is not None and other != name and abs(time.time() - at) < FRESH:
        raise Overtaken


def _beat(connection: Connection, name: str, place: Position) -> None:
    """Tell that a collector is at work, and has read as far as a place.

    Raises:
        Overtaken: another one is; or the database is not as we left it.
    """
    if place_in(connection) != place:
        raise Overtaken
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
        raise Overtaken


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
    forgeries.forget(connection)
