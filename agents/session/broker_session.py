"""An agent's way to the broker: kept up, or made again, for as long as the agent runs."""

import asyncio
import random
import time
from dataclasses import dataclass, replace
from typing import Literal

from aio_pika.abc import AbstractConnection
from aio_pika.exceptions import ChannelNotFoundEntity, ChannelPreconditionFailed

from agents import facts
from agents.changes import Changes
from agents.identity import Identity
from agents.inbox.consumer import Inbox
from agents.inbox.recovery import Recovery
from agents.outbox import Outbox
from agents.session.heartbeat import Heartbeat
from agents.settings import AgentSettings
from agents.store.ledger import Ledger
from broker.amqp import topology
from broker.amqp.connection import (
    CALL_LIMIT,
    Backoff,
    BrokerError,
    LoginRefused,
    Refused,
    Unreachable,
    address_of,
    blocked,
    connect,
    translated,
)
from broker.amqp.publisher import Publisher
from broker.amqp.timeouts import timeout
from broker.log import get_logger

_log = get_logger()
_LOGIN_SPREAD = 5
_STEADY = 30.0
_ONCE_CONNECTED = 2  # attempts that still count: a broker that lets us in only to fail is no good


LinkState = Literal["connected", "away", "refused"]


@dataclass(frozen=True)
class ConnectionState:
    """How an agent stands with its broker, and since when; refused: its login is."""

    state: LinkState
    since: float


class BrokerSession:
    """Connects, binds the agent's queue, and runs all that uses the link until it is lost."""

    def __init__(
        self,
        settings: AgentSettings,
        identity: Identity,
        ledger: Ledger,
        changes: Changes,
        intake: Inbox,
        outbox: Outbox,
        heartbeat: Heartbeat,
        recovery: Recovery,
    ) -> None:
        self._settings = settings
        self._identity = identity
        self._ledger = ledger
        self._changes = changes
        self._intake = intake
        self._outbox = outbox
        self._heartbeat = heartbeat
        self._recovery = recovery
        self._stopping = asyncio.Event()
        self._told: set[str] = set()
        self._backoff = Backoff()
        self._last = ""
        self.state = ConnectionState("away", time.time())
        """Whether it is connected, and since when."""

    def stop_intake(self) -> None:
        """Take in nothing more; reports are still sent."""
        self._stopping.set()

    def _stands(self, state: LinkState) -> None:
        if state != self.state.state:
            self.state = ConnectionState(state, time.time())
            self._changes.tell()

    async def run(self) -> None:
        """Stay connected until cancelled, trying again for as long as it takes."""
        loop = asyncio.get_running_loop()
        while True:
            began = loop.time()
            try:
                await self._session()
            except* BrokerError as group:
                failure = _first(group)
                self._stands("refused" if isinstance(failure, LoginRefused) else "away")
                if loop.time() - began > _STEADY:
                    self._backoff.reset()
                pause = self._backoff.failed()
                if isinstance(failure, LoginRefused):
                    # Not sooner: repeated wrong logins lock accounts.
                    longest = self._settings.login_pause * _LOGIN_SPREAD
                    pause = random.uniform(  # noqa: S311 - no secret
                        self._settings.login_pause.total_seconds(), longest.total_seconds()
                    )
                reason = f"{failure}{self._remedy(failure)}"
                if reason not in self._told:  # once in an outage
                    self._told.add(reason)
                    _log.warning("broker.lost", reason=reason, retry_in=round(pause, 1))
            await asyncio.sleep(pause)

    def _remedy(self, failure: BrokerError) -> str:
        """Return what ends a failure that is no outage; an enrolled agent cannot help itself."""
        missing = isinstance(failure.__cause__, ChannelNotFoundEntity) and "no queue" in str(
            failure
        )
        if not self._settings.enrolled or not (
            missing or isinstance(failure, LoginRefused | Refused)
        ):
            return ""
        user = f" --user {self._identity.user}" if self._identity.user else ""
        return f"; is it enrolled? pcm enrol {self._identity.workstation}{user}"

    async def _session(self) -> None:
        name = f"pcm-agent {self._identity.workstation} {self._identity.name}"
        async with connect(self._settings, name, self._last) as connection:
            self._last = address_of(connection)
            if not self._settings.enrolled:
                await topology.ensure(connection)
                with translated("declaring the agent's queue"):
                    async with timeout(CALL_LIMIT):
                        await self._bind(connection)
            publisher = await Publisher.open(
                connection, waits=True, declares=not self._settings.enrolled
            )
            begun = asyncio.Event()

            def consuming() -> None:
                self._told.clear()
                self._stands("connected")
                self._backoff.reset(_ONCE_CONNECTED)
                _log.info("broker.connected", broker=address_of(connection))
                begun.set()

            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(_watch(connection))
                await self._recovery.make_good(connection, publisher)
                tasks.create_task(
                    self._intake.run(connection, publisher, self._stopping, consuming)
                )
                tasks.create_task(self._watch_consumer(connection))
                # Not sooner: a broker that is low hears nothing more from whoever published.
                await begun.wait()
                tasks.create_task(self._outbox.run(publisher))
                tasks.create_task(self._heartbeat.run(connection))

    def _queue(self) -> topology.Queue:
        settings = self._settings
        return topology.agent_queue(
            self._identity.kind,
            settings.workstation,
            self._identity.user,
            facts.groups(settings),
            settings.queue_type,
            int(settings.queue_expires.total_seconds() * 1000),
        )

    async def _bind(self, connection: AbstractConnection) -> None:
        """Declare and bind the queue; what it was bound to and no longer should be, unbind."""
        queue = self._queue()
        wanted = {key for _, key in queue.bindings}
        former = await self._ledger.commit(lambda tables: tables.bindings())
        await self._ledger.commit(lambda tables: tables.bound(former | wanted))
        try:
            async with connection.channel() as channel:
                await topology.declare_queue(channel, queue)
        except ChannelPreconditionFailed as error:
            # Jobs may be in it: it is not for us to delete. `pcm.…` is used as it was made.
            _log.warning("queue.differs", queue=queue.name, reason=str(error.args[-1]))
            async with connection.channel() as channel:
                await topology.declare_queue(channel, queue, passive=True)
        async with connection.channel() as channel:
            declared = await channel.declare_queue(queue.name, passive=True)
            for key in sorted(former - wanted):
                await declared.unbind(topology.JOBS, key)
        await self._ledger.commit(lambda tables: tables.bound(wanted))

    async def _watch_consumer(self, connection: AbstractConnection) -> None:
        """Ask the broker now and then whether it has our consumer: a connection alone is none.

        The queue is bound again: with an exchange that was deleted its bindings went, whoever
        made it again. Those of an enrolled agent are not for it to bind.

        Raises:
            Unreachable: it has none.
        """
        queue = self._queue()
        if self._settings.enrolled:
            queue = replace(queue, bindings=())
        interval = self._settings.watch_interval.total_seconds()
        while True:
            await asyncio.sleep(interval * random.uniform(0.75, 1.25))  # noqa: S311 - no secret
            if self._stopping.is_set() or await blocked(connection):
                continue
            try:
                with translated("looking for the consumer"):
                    async with timeout(CALL_LIMIT), connection.channel() as channel:
                        found = await topology.declare_queue(channel, queue, passive=True)
            except Unreachable as error:
                if isinstance(error.__cause__, TimeoutError) and await blocked(connection):
                    continue  # since we asked
                raise
            except Refused as error:
                if not self._settings.enrolled:
                    raise
                # It may read, and a broker may ask for more: then only the consumer's end shows.
                _log.info("consumer.unwatched", reason=str(error))
                return
            if not found.declaration_result.consumer_count and not self._stopping.is_set():
                raise Unreachable(f"consuming {queue.name}: the broker has no consumer of it")


async def _watch(connection: AbstractConnection) -> None:
    await connection.closed()
    raise Unreachable("the connection was lost")


def _first(group: BaseExceptionGroup[BrokerError]) -> BrokerError:
    found = group.exceptions[0]
    return found if isinstance(found, BrokerError) else _first(found)
