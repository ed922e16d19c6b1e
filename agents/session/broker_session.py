"""Keeps an agent connected to the broker, and reconnects after failures."""

import asyncio
import random
import shlex
import time
from dataclasses import dataclass, replace
from datetime import UTC, datetime
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
from agents.session.standby import Standby
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
    map_errors,
    raise_when_lost,
)
from broker.amqp.publisher import Publisher
from broker.amqp.timeouts import timeout
from broker.log import get_logger

_log = get_logger()
_LOGIN_SPREAD = 5
_STABLE_AFTER = 30.0  # seconds
_FAILURES_AFTER_CONNECT = 2  # the back-off is not fully reset: the session may fail again


ConnectionStatus = Literal["connected", "unreachable", "refused", "taken"]


@dataclass(frozen=True)
class ConnectionState:
    """The state of the connection to the broker, and its begin.

    `refused`: the login failed; `taken`: another machine has the agent's queue.
    """

    state: ConnectionStatus
    since: float


class BrokerSession:
    """Connects, binds the agent's queue, and runs the tasks that use the connection."""

    def __init__(
        self,
        settings: AgentSettings,
        identity: Identity,
        ledger: Ledger,
        changes: Changes,
        inbox: Inbox,
        outbox: Outbox,
        heartbeat: Heartbeat,
        recovery: Recovery,
        standby: Standby,
    ) -> None:
        self._settings = settings
        self._identity = identity
        self._ledger = ledger
        self._changes = changes
        self._inbox = inbox
        self._outbox = outbox
        self._heartbeat = heartbeat
        self._recovery = recovery
        self._standby = standby
        self._stopping = asyncio.Event()
        self._logged: set[str] = set()
        self._backoff = Backoff()
        self._last_broker = ""
        self.state = ConnectionState("unreachable", time.time())
        """The current state of the connection."""

    def stop_intake(self) -> None:
        """Stop consuming; reports are still sent."""
        self._stopping.set()

    def _set_status(self, state: ConnectionStatus) -> None:
        if state != self.state.state:
            self.state = ConnectionState(state, time.time())
            self._changes.notify()

    async def run(self) -> None:
        """Stay connected until cancelled; reconnect with back-off."""
        loop = asyncio.get_running_loop()
        while True:
            began, pause = loop.time(), 0.0
            try:
                await self._run_session()
            except* BrokerError as group:
                error = _first_error(group)
                self._set_status("refused" if isinstance(error, LoginRefused) else "unreachable")
                if loop.time() - began > _STABLE_AFTER:
                    self._backoff.reset()
                pause = self._backoff.failed()
                if isinstance(error, LoginRefused):
                    # Longer than the back-off: repeated wrong logins lock accounts.
                    longest = self._settings.login_pause * _LOGIN_SPREAD
                    pause = random.uniform(  # noqa: S311 - no secret
                        self._settings.login_pause.total_seconds(), longest.total_seconds()
                    )
                reason = f"{error}{self._remedy(error)}"
                if reason not in self._logged:  # once per outage
                    self._logged.add(reason)
                    _log.warning("broker.lost", reason=reason, retry_in=round(pause, 1))
            await asyncio.sleep(pause)

    def _remedy(self, error: BrokerError) -> str:
        """Return the remedy of an enrolled agent's missing queue or permission, else nothing."""
        missing = isinstance(error.__cause__, ChannelNotFoundEntity) and "no queue" in str(error)
        if not self._settings.enrolled or not (
            missing or isinstance(error, LoginRefused | Refused)
        ):
            return ""
        user = f" --user {shlex.quote(self._identity.user)}" if self._identity.user else ""
        return f"; is it enrolled? pcm enrol {self._identity.workstation}{user}"

    async def _run_session(self) -> None:
        name = f"pcm-agent {self._identity.workstation} {self._identity.name}"
        async with connect(self._settings, name, self._last_broker) as connection:
            self._last_broker = address_of(connection)
            if not self._settings.enrolled:
                await topology.ensure(connection)
            publisher = await Publisher.open(
                connection, waits=True, declares=not self._settings.enrolled
            )
            if await self._standby.is_taken(connection):
                await self._standby.wait(connection, publisher, lambda: self._set_status("taken"))
                return
            if not self._settings.enrolled:
                with map_errors("declaring the agent's queue"):
                    async with timeout(CALL_LIMIT):
                        await self._bind(connection)
            is_consuming = asyncio.Event()

            def consuming() -> None:
                self._logged.clear()
                self._standby.reset()
                self._set_status("connected")
                self._backoff.reset(_FAILURES_AFTER_CONNECT)
                _log.info("broker.connected", broker=address_of(connection))
                is_consuming.set()

            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(raise_when_lost(connection))
                await self._recovery.recover(connection, publisher)
                tasks.create_task(self._inbox.run(connection, publisher, self._stopping, consuming))
                tasks.create_task(self._watch_consumer(connection))
                # First consume: a broker with an alarm stops reading from publishing connections.
                await is_consuming.wait()
                tasks.create_task(self._outbox.run(publisher))
                tasks.create_task(self._heartbeat.run(connection))

    def _queue(self) -> topology.Queue:
        settings = self._settings
        return topology.agent_queue(
            self._identity.kind,
            settings.workstation,
            self._identity.user,
            facts.groups_with_facts(settings),
            settings.queue_type,
            int(settings.queue_expires.total_seconds() * 1000),
        )

    async def _bind(self, connection: AbstractConnection) -> None:
        """Declare and bind the queue, and remove its obsolete bindings."""
        queue = self._queue()
        wanted = {key for _, key in queue.bindings}
        former = await self._ledger.commit(lambda transaction: transaction.bindings())
        await self._ledger.commit(lambda transaction: transaction.set_bindings(former | wanted))
        await self._note_if_missing(connection, queue.name)
        try:
            async with connection.channel() as channel:
                await topology.declare_queue(channel, queue)
        except ChannelPreconditionFailed as error:
            # The queue may hold jobs, so it is not deleted but used as it was declared.
            _log.warning("queue.differs", queue=queue.name, reason=str(error.args[-1]))
            async with connection.channel() as channel:
                await topology.declare_queue(channel, queue, passive=True)
        async with connection.channel() as channel:
            declared = await channel.declare_queue(queue.name, passive=True)
            for key in sorted(former - wanted):
                await declared.unbind(topology.JOBS, key)
        await self._ledger.commit(lambda transaction: transaction.set_bindings(wanted))

    async def _note_if_missing(self, connection: AbstractConnection, name: str) -> None:
        """Record when the queue is recreated: jobs in the former one are lost."""
        try:
            async with connection.channel() as channel:
                await channel.declare_queue(name, passive=True)
        except ChannelNotFoundEntity as error:
            if "no queue" not in str(error):
                raise  # it exists, and its node is down
            self._heartbeat.queue_new_at = datetime.now(UTC)
            _log.info("queue.new", queue=name)

    async def _watch_consumer(self, connection: AbstractConnection) -> None:
        """Check periodically that the queue has a consumer; the connection alone proves nothing.

        Each check binds the queue again, since its bindings are lost when an exchange is deleted
        and declared again. An enrolled agent may not bind.

        Raises:
            Unreachable: the queue has no consumer.
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
                with map_errors("checking the consumer"):
                    async with timeout(CALL_LIMIT), connection.channel() as channel:
                        declared = await topology.declare_queue(channel, queue, passive=True)
            except Unreachable as error:
                if isinstance(error.__cause__, TimeoutError) and await blocked(connection):
                    continue  # blocked since the call
                raise
            except Refused as error:
                if not self._settings.enrolled:
                    raise
                # Some brokers do not allow this with read permission only.
                _log.info("consumer.unwatched", reason=str(error))
                return
            if not declared.declaration_result.consumer_count and not self._stopping.is_set():
                raise Unreachable(f"consuming {queue.name}: the broker has no consumer for it")


def _first_error(group: BaseExceptionGroup[BrokerError]) -> BrokerError:
    error = group.exceptions[0]
    return error if isinstance(error, BrokerError) else _first_error(error)
