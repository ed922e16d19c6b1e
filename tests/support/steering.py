"""Publishes pauses and other orders, and reads check-ins."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from broker import DispatcherSettings
from broker.amqp import topology
from broker.amqp.connection import connect
from broker.amqp.publisher import Publisher
from broker.stream import stream
from broker.stream.entry import StreamEntry
from schemas import CheckIn, Pause
from tests.support.waiting import LIMIT
from tests.support.workstation import Workstation


async def publish(settings: DispatcherSettings, key: str, body: bytes, kind: str) -> None:
    """Publish to the agents."""
    async with connect(settings, "test") as connection:
        publisher = await Publisher.open(connection)
        await publisher.publish(topology.JOBS, key, body, kind=kind, unroutable_fails=True)


async def pause(
    settings: DispatcherSettings, ws: Workstation, *, paused: bool = True, **fields: object
) -> Pause:
    """Pause a workstation, or let it go on."""
    said = Pause(workstation=ws.name, paused=paused, **fields)  # type: ignore[arg-type]
    await publish(settings, topology.pause_key(ws.name), said.body(), "pause")
    return said


class CheckIns:
    """The check-ins of a workstation, as they come."""

    def __init__(self, entries: AsyncIterator[StreamEntry], ws: Workstation) -> None:
        self._entries = entries
        self._ws = ws

    async def next(self, agent: str = "service") -> CheckIn:
        """Wait for an agent's next check-in."""
        async with asyncio.timeout(LIMIT):
            async for entry in self._entries:
                for record in entry.records():
                    if (
                        isinstance(record, CheckIn)
                        and record.workstation == self._ws.name
                        and record.agent == agent
                    ):
                        return record
        raise AssertionError("the stream ended")


@asynccontextmanager
async def check_ins(settings: DispatcherSettings, ws: Workstation) -> AsyncIterator[CheckIns]:
    """Listen to a workstation's check-ins, from the first that there is."""
    async with (
        connect(settings, "test") as connection,
        stream.read_stream(connection, None) as entries,
    ):
        yield CheckIns(entries, ws)
