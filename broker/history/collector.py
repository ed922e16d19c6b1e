"""Update the history: once before a query, or permanently as a service."""

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
from broker.amqp.connection import CALL_LIMIT, Backoff, BrokerError, address_of, connect, map_errors
from broker.amqp.publisher import Publisher
from broker.amqp.timeouts import timeout
from broker.history.engine import HistoryError, UnusableHistory, prepare
from broker.history.position import (
    LEASE,
    LEASE_RENEWAL,
    Position,
    is_collected,
    read_position,
    transact,
)
from broker.history.projection import rejected
from broker.history.reader import Overtaken, Reader
from broker.history.schema import early, jobs, outcomes, reading, reports, results
from broker.history.source import check_source, record_source, source_of
from broker.log import get_logger
from broker.settings import HistorySettings
from broker.stream import stream

_HOUSEKEEPING_INTERVAL = 3600.0
_log = get_logger()
_T = TypeVar("_T")


async def catch_up(settings: HistorySettings, engine: Engine) -> None:
    """Read all entries of the stream into the history.

    Raises:
        BrokerError: the broker is unreachable, or refuses.
        HistoryError: the database cannot be used, or was read from another broker.
    """
    await Collector(settings, engine).catch_up()


async def refresh(settings: HistorySettings, engine: Engine) -> None:
    """Check that the history is of this broker; without a collector, catch up.

    Raises:
        BrokerError: the broker is unreachable, or refuses.
        HistoryError: the database cannot be used, or was read from another broker.
    """
    await Collector(settings, engine).catch_up(unless_collected=True)


async def first_offset(settings: HistorySettings) -> int:
    """Return the first offset in the stream.

    Raises:
        BrokerError: the broker is unreachable, or refuses.
    """
    async with connect(settings, "pcm history") as connection:
        await stream.append_end_marker(await Publisher.open(connection))
        with map_errors(f"reading {topology.REPORTS}"):
            async with stream.read_stream(connection, None, 1) as entries, timeout(CALL_LIMIT):
                return (await anext(entries)).offset


class Collector:
    """Read the stream into a history."""

    def __init__(self, settings: HistorySettings, engine: Engine) -> None:
        self._settings = settings
        self._engine = engine
        self._name = f"{socket.gethostname()}:{os.getpid()}:{random.getrandbits(32):08x}"
        self._last_event = ""
        self._last_address = ""

    async def catch_up(self, *, unless_collected: bool = False) -> None:
        """Read to the end of the stream; see the functions `catch_up` and `refresh`."""
        async with connect(self._settings, "pcm history") as connection:
            await self._database(check_source, source_of(connection))
            if unless_collected and await asyncio.to_thread(is_collected, self._engine):
                return
            publisher = await self._publisher(connection)
            while True:
                with suppress(Overtaken):
                    await Reader(self._engine, publisher).run()
                    break
        await self._database(_delete_expired, self._settings.history_keep.total_seconds())

    async def run(self) -> None:
        """Keep the history up to date until cancelled; retry if broker or database fails.

        Raises:
            UnusableHistory: this program cannot use the database.
        """
        backoff = Backoff()
        while True:
            started = time.monotonic()
            try:
                await asyncio.to_thread(prepare, self._engine)
                await self._database(_check_lease, self._name)
                await self._session()
            except Overtaken:
                self._log_change("collector.standby", "another collector is active")
                backoff.reset()
                await asyncio.sleep(LEASE_RENEWAL)
                continue
            except UnusableHistory:
                raise
            except (BrokerError, HistoryError) as failure:
                self._log_change("collector.retrying", str(failure))
            if time.monotonic() - started > LEASE:
                backoff.reset()
            await asyncio.sleep(backoff.failed())

    async def release_lease(self) -> None:
        """Release the lease when this collector stops, so that another takes over immediately."""
        with suppress(HistoryError):
            await self._database(_release_lease, self._name)

    async def _session(self) -> None:
        name = f"pcm collect {self._name}"
        async with connect(self._settings, name, self._last_address) as connection:
            self._last_address = address_of(connection)
            publisher = await self._publisher(connection)
            housekeeping = asyncio.create_task(self._delete_expired())
            try:
                await Reader(self._engine, publisher, self._renew_lease).run()
            finally:
                housekeeping.cancel()

    async def _publisher(self, connection: AbstractConnection) -> Publisher:
        """Check the source, declare the topology, and return a publisher."""
        await self._database(record_source, source_of(connection))
        await topology.ensure(connection)
        return await Publisher.open(connection)

    async def _renew_lease(self, position: Position) -> None:
        await self._database(_renew_lease, self._name, position)
        if self._last_event != "collector.up_to_date":
            self._log_change("collector.up_to_date", "")

    async def _delete_expired(self) -> None:
        retention = self._settings.history_keep.total_seconds()
        while True:
            with suppress(HistoryError):  # the session fails, too, and logs it
                await self._database(_delete_expired, retention)
            await asyncio.sleep(_HOUSEKEEPING_INTERVAL)

    def _log_change(self, event: str, reason: str) -> None:
        """Log an event, unless it was the last one, for the same reason."""
        if self._last_event != event + reason:
            self._last_event = event + reason
            _log.info(event, **({"reason": reason} if reason else {}))

    async def _database(self, work: Callable[..., _T], *values: object) -> _T:
        return await asyncio.to_thread(transact, self._engine, work, *values)


def _check_lease(connection: Connection, name: str) -> None:
    """Raise Overtaken if another collector has a valid lease."""
    other, at = connection.execute(select(reading.c.collector, reading.c.collected_at)).one()
    if at is not None and other != name and abs(time.time() - at) < LEASE:
        raise Overtaken


def _renew_lease(connection: Connection, name: str, position: Position) -> None:
    """Renew or take the lease of a collector that has read up to a position.

    Raises:
        Overtaken: another collector has the lease, or has moved the position.
    """
    if read_position(connection) != position:
        raise Overtaken
    now = time.time()
    available = or_(
        reading.c.collected_at.is_(None),
        ~reading.c.collected_at.between(now - LEASE, now + LEASE),
        reading.c.collector == name,
    )
    renewed: CursorResult[object] = connection.execute(
        update(reading).where(available).values(collector=name, collected_at=now)
    )
    if renewed.rowcount != 1:
        raise Overtaken


def _release_lease(connection: Connection, name: str) -> None:
    connection.execute(
        update(reading).where(reading.c.collector == name).values(collector="", collected_at=None)
    )


def _delete_expired(connection: Connection, retention: float) -> None:
    """Delete jobs that are older than the retention, with their reports and results."""
    now = time.time()
    cleaned_at = connection.scalar(select(reading.c.cleaned_at))
    if cleaned_at is not None and now - cleaned_at < _HOUSEKEEPING_INTERVAL:
        return
    connection.execute(update(reading).values(cleaned_at=now))
    expired = select(jobs.c.id).where(jobs.c.created_at < now - retention)
    for table in (outcomes, reports, results, early):
        connection.execute(delete(table).where(table.c.job_id.in_(expired)))
    connection.execute(delete(jobs).where(jobs.c.created_at < now - retention))
    rejected.delete_old(connection)
