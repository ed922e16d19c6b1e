"""Waits while another consumer has the agent's queue.

A queue is one agent's. Its other consumer is either this agent's own, of a connection that was lost
without a close, which the broker drops after three heartbeats at most; or it is another machine's.
Two machines with one name must not share a queue: each job would run on one of them.
"""

import asyncio
import time
from collections.abc import Callable

from aio_pika.abc import AbstractConnection

from agents.identity import Identity
from agents.outbox import Outbox
from agents.session.heartbeat import Heartbeat
from broker.amqp import topology
from broker.amqp.connection import (
    CALL_LIMIT,
    Backoff,
    blocked,
    heartbeat_of,
    local_address_of,
    map_errors,
    raise_when_lost,
)
from broker.amqp.publisher import Publisher
from broker.amqp.timeouts import timeout
from broker.log import get_logger
from schemas.reports.check_in import Machine

_log = get_logger()
_MISSED_HEARTBEATS = 3  # after which RabbitMQ has dropped a silent connection
_MARGIN = 2.0
_NO_HEARTBEATS = 60.0
_STALE_POLL = 1.0
_POLL = 60.0


class Standby:
    """Sends reports, and waits until the queue has no consumer."""

    def __init__(
        self, identity: Identity, machine: Machine, outbox: Outbox, heartbeat: Heartbeat
    ) -> None:
        self._identity = identity
        self._machine = machine
        self._outbox = outbox
        self._heartbeat = heartbeat
        self._queue = topology.queue_name(identity.kind, identity.workstation, identity.user)
        self._is_logged = False

    def reset(self) -> None:
        """Log the next loss of the queue again: this agent has its queue."""
        self._is_logged = False

    async def is_taken(self, connection: AbstractConnection) -> bool:
        """Whether the queue has a consumer; False if that cannot be known."""
        with map_errors(f"checking {self._queue}"):
            async with timeout(CALL_LIMIT):
                counts = await topology.count(connection, self._queue)
        return counts is not None and counts.consumers > 0

    async def wait(
        self, connection: AbstractConnection, publisher: Publisher, taken: Callable[[], None]
    ) -> None:
        """Wait until the queue has no consumer; call `taken` if it is another machine's.

        Raises:
            Unreachable: the connection was lost.
        """
        async with asyncio.TaskGroup() as tasks:
            others = [tasks.create_task(self._outbox.run(publisher))]
            others.append(tasks.create_task(raise_when_lost(connection)))
            if not await self._wait(connection, _STALE_POLL, _stale_limit(connection)):
                self._log(connection)
                taken()
                others.append(tasks.create_task(self._heartbeat.run(connection, standby=True)))
                await self._wait(connection, _POLL, None)
            for task in others:
                task.cancel()

    async def _wait(
        self, connection: AbstractConnection, longest_pause: float, limit: float | None
    ) -> bool:
        """Wait until the queue has no consumer; return whether that was within the limit."""
        backoff = Backoff(longest_pause)
        end = None if limit is None else time.monotonic() + limit
        while await blocked(connection) or await self.is_taken(connection):
            if end is not None and time.monotonic() > end:
                return False
            await asyncio.sleep(backoff.failed())
        return True

    def _log(self, connection: AbstractConnection) -> None:
        if self._is_logged:
            return
        self._is_logged = True
        workstation = self._identity.workstation
        _log.warning(
            "queue.taken",
            queue=self._queue,
            reason=f"another machine named {workstation} has the queue, so this one receives"
            " nothing; give each its own PCM_WORKSTATION (pcm workstations shows both)",
            machine=self._machine.id,
            host=self._machine.host,
            address=local_address_of(connection),
        )


def _stale_limit(connection: AbstractConnection) -> float:
    """Return after how many seconds the broker has dropped a connection that was cut."""
    heartbeat = heartbeat_of(connection)
    return _MISSED_HEARTBEATS * heartbeat + _MARGIN if heartbeat else _NO_HEARTBEATS
