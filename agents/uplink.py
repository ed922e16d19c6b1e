"""An agent's way to the broker: kept up, or made again, for as long as the agent runs."""

import asyncio
import random

import structlog
from aio_pika.abc import AbstractConnection

from agents.intake import Identity, Intake
from agents.ledger import Ledger
from agents.outbox import Outbox
from agents.settings import AgentSettings
from broker import topology
from broker.connection import (
    CALL_LIMIT,
    BrokerError,
    LoginRefused,
    Publisher,
    Unreachable,
    backoff,
    connect,
    translated,
    where,
)

_log = structlog.get_logger()
_LOGIN_PAUSE = (60.0, 300.0)
_STEADY = 30.0
_ONCE_CONNECTED = 2  # attempts that still count: a broker that lets us in only to fail is no good


class Uplink:
    """Connects, binds the agent's queue, and runs intake and outbox until the link is lost."""

    def __init__(
        self,
        settings: AgentSettings,
        identity: Identity,
        ledger: Ledger,
        intake: Intake,
        outbox: Outbox,
    ) -> None:
        self._settings = settings
        self._identity = identity
        self._ledger = ledger
        self._intake = intake
        self._outbox = outbox
        self._stopping = asyncio.Event()
        self._told = ""
        self._attempt = 0

    def stop_intake(self) -> None:
        """Take in nothing more; reports are still sent."""
        self._stopping.set()

    async def run(self) -> None:
        """Stay connected until cancelled, trying again for as long as it takes."""
        loop = asyncio.get_running_loop()
        while True:
            began = loop.time()
            try:
                await self._session()
            except* BrokerError as group:
                failure = _first(group)
                if loop.time() - began > _STEADY:
                    self._attempt = 0
                pause = backoff(self._attempt)
                if isinstance(failure, LoginRefused):
                    # Not sooner: repeated wrong logins lock accounts.
                    pause = random.uniform(*_LOGIN_PAUSE)  # noqa: S311 - no secret
                if str(failure) != self._told:
                    self._told = str(failure)
                    _log.warning("broker.lost", reason=str(failure), retry_in=round(pause, 1))
            await asyncio.sleep(pause)
            self._attempt += 1

    async def _session(self) -> None:
        name = f"pcm-agent {self._identity.workstation} {self._identity.name}"
        async with connect(self._settings, name) as connection:
            with translated("declaring the agent's queue"):
                async with asyncio.timeout(CALL_LIMIT):
                    await topology.ensure(connection)
                    await self._bind(connection)
            publisher = await Publisher.open(connection)

            def consuming() -> None:
                self._told = ""
                self._attempt = min(self._attempt, _ONCE_CONNECTED)
                _log.info("broker.connected", broker=where(connection))

            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(
                    self._intake.run(connection, publisher, self._stopping, consuming)
                )
                tasks.create_task(self._outbox.run(publisher))
                tasks.create_task(_watch(connection))

    async def _bind(self, connection: AbstractConnection) -> None:
        """Declare and bind the queue; what it was bound to and no longer should be, unbind."""
        settings = self._settings
        queue = topology.agent_queue(
            self._identity.kind,
            settings.workstation,
            self._identity.user,
            settings.groups,
            settings.queue_type,
            int(settings.queue_expires.total_seconds() * 1000),
        )
        wanted = {key for _, key in queue.bindings}
        former = await self._ledger.commit(lambda tables: tables.bindings())
        await self._ledger.commit(lambda tables: tables.bound(former | wanted))
        async with connection.channel() as channel:
            declared = await topology.declare_queue(channel, queue)
            for key in sorted(former - wanted):
                await declared.unbind(topology.JOBS, key)
        await self._ledger.commit(lambda tables: tables.bound(wanted))


async def _watch(connection: AbstractConnection) -> None:
    await connection.closed()
    raise Unreachable("the connection was lost")


def _first(group: BaseExceptionGroup[BrokerError]) -> BrokerError:
    found = group.exceptions[0]
    return found if isinstance(found, BrokerError) else _first(found)
