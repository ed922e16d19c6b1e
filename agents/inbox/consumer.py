"""Consumes the agent's queue: messages are read, stored in the ledger, and then acknowledged."""

import asyncio
import random
from collections.abc import Callable
from typing import NamedTuple

from aio_pika.abc import AbstractConnection
from aiormq.abc import AbstractChannel

from agents.claims.claims import Claims
from agents.identity import Identity
from agents.inbox.bindings import remove_foreign_bindings
from agents.inbox.dead_lettering import DeadLetterPublisher, RejectedMessage
from agents.inbox.messages import MAX_REASON, Order, UnreadableMessage, job_id_of, read_order
from agents.inbox.order_store import OrderStore
from agents.inbox.trust import Trust
from agents.jobs.host import targets
from agents.outbox import Outbox
from agents.settings import AgentSettings
from agents.store.ledger import Ledger
from broker.amqp import topology
from broker.amqp.connection import CALL_LIMIT, Unreachable, blocked, map_errors
from broker.amqp.consumer import Consumer, Delivery, consume
from broker.amqp.publisher import Publisher
from broker.amqp.timeouts import timeout
from broker.log import get_logger
from schemas import Job
from schemas.orders.signature import HEADER

_PREFETCH = 500
_BACKLOG_PAUSE = 1.0  # seconds without a delivery after which the backlog counts as received
_log = get_logger()
_SUSPECT_COUNT = 2  # redeliveries; an ordinary connection loss causes one


def _delivery_count(delivery: Delivery) -> int:
    """Return how often a quorum queue delivered a message before without an acknowledgement."""
    count = delivery.headers.get("x-delivery-count", 0)
    return count if isinstance(count, int) else 0


class _Channels(NamedTuple):
    """A connection with its publisher and the channel that consumes."""

    connection: AbstractConnection
    publisher: Publisher
    channel: AbstractChannel


class Inbox:
    """Stores the messages of an agent's queue in its ledger, many in one transaction."""

    def __init__(
        self,
        identity: Identity,
        settings: AgentSettings,
        ledger: Ledger,
        claims: Claims,
        outbox: Outbox,
        trust: Trust | None,
        orders: OrderStore,
        caught_up: asyncio.Event,
    ) -> None:
        """Create an inbox.

        `caught_up` is cleared until the messages that were queued before the connection are
        received. No job is started or offered meanwhile: overdue jobs must run in the order of
        their mandatory times, and a queued cancellation must prevent its job.
        """
        self._identity = identity
        self._queue = topology.queue_name(identity.kind, identity.workstation, identity.user)
        self._ledger = ledger
        self._claims = claims
        self._targets = targets(settings)
        self._binds = not settings.enrolled
        self._trust = trust
        self._outbox = outbox
        self._orders = orders
        self._dead_letters = DeadLetterPublisher(identity, ledger, claims, outbox)
        self._backlog = 0
        self._caught_up = caught_up

    async def run(
        self,
        connection: AbstractConnection,
        publisher: Publisher,
        stopping: asyncio.Event,
        consuming: Callable[[], None],
    ) -> None:
        """Consume until `stopping` is set; call `consuming` when the consumer is registered.

        Raises:
            Unreachable: the consumer was lost.
        """
        deliveries: asyncio.Queue[Delivery | None] = asyncio.Queue()
        consumer, backlog = await self._consume(connection, deliveries)
        await self._orders.load()
        consuming()
        self._dead_letters = DeadLetterPublisher(
            self._identity, self._ledger, self._claims, self._outbox
        )
        channels = _Channels(connection, publisher, consumer.underlay)

        async def stop() -> None:
            await stopping.wait()
            deliveries.put_nowait(None)

        try:
            self._set_backlog(backlog)
            async with asyncio.TaskGroup() as tasks:
                others = [tasks.create_task(self._dead_letters.run(publisher, consumer.underlay))]
                others.append(tasks.create_task(stop()))
                await self._process_deliveries(deliveries, channels, stopping)
                for task in others:
                    task.cancel()
        finally:
            self._set_backlog(0)
        if await blocked(connection):
            return  # the broker reads nothing now, and the call could not be cancelled
        await consumer.end(CALL_LIMIT)

    async def _consume(
        self, connection: AbstractConnection, deliveries: asyncio.Queue[Delivery | None]
    ) -> tuple[Consumer, int]:
        """Register the consumer; return it, and the number of queued messages."""
        with map_errors(f"consuming {self._queue}"):
            async with timeout(CALL_LIMIT):
                counts = await topology.count(connection, self._queue)
            if counts and counts.consumers:  # since the session has looked
                raise Unreachable(f"consuming {self._queue}: it has another consumer")
            consumer = await consume(connection, self._queue, deliveries, _PREFETCH, exclusive=True)
        return consumer, counts.messages if counts else 0

    async def _process_deliveries(
        self,
        deliveries: asyncio.Queue[Delivery | None],
        channels: _Channels,
        stopping: asyncio.Event,
    ) -> None:
        """Process deliveries in batches until `stopping` is set."""
        while True:
            batch = [await self._next(deliveries)]
            while not deliveries.empty():
                batch.append(deliveries.get_nowait())
            if stopping.is_set():
                return
            await self._process([delivery for delivery in batch if delivery], channels)
            self._set_backlog(self._backlog - len(batch))
            if None in batch:
                raise Unreachable(f"consuming {self._queue}: the consumer was lost")

    def _set_backlog(self, backlog: int) -> None:
        """Set the number of outstanding messages that were queued before the connection."""
        self._backlog = backlog
        if backlog > 0:
            self._caught_up.clear()
        else:
            self._caught_up.set()

    async def _next(self, deliveries: asyncio.Queue[Delivery | None]) -> Delivery | None:
        """Wait for the next delivery; end the backlog if its rest may have expired."""
        if self._backlog > 0:
            try:
                async with timeout(_BACKLOG_PAUSE):
                    return await deliveries.get()
            except TimeoutError:
                self._set_backlog(0)
        return await deliveries.get()

    async def _process(self, deliveries: list[Delivery], channels: _Channels) -> None:
        """Process a batch; process messages that were redelivered often singly, in random order.

        Such a message may have ended this agent each time; it must not affect the others.
        """
        fresh: list[Delivery] = []
        suspects: list[Delivery] = []
        for delivery in deliveries:
            is_suspect = _delivery_count(delivery) >= _SUSPECT_COUNT
            (suspects if is_suspect else fresh).append(delivery)
        random.shuffle(suspects)
        for batch in (fresh, *([suspect] for suspect in suspects)):
            if batch:
                await self._process_batch(batch, channels, is_all=not suspects)

    async def _process_batch(
        self, deliveries: list[Delivery], channels: _Channels, *, is_all: bool
    ) -> None:
        """Process a batch; `is_all`: no other delivery is unprocessed."""
        read, rejections = self._read(deliveries)
        stale = await self._orders.stale([order for _, order in read])
        accepted = [one for one in read if not (isinstance(one[1], Job) and one[1].id in stale)]
        rejections += [
            RejectedMessage(delivery, stale[order.id], order.id)
            for delivery, order in read
            if isinstance(order, Job) and order.id in stale
        ]
        if accepted:
            await self._orders.store(accepted, channels.connection, channels.publisher)
        for rejected in rejections:
            self._dead_letters.add(rejected)
        rejected_tags = {rejected.delivery.tag for rejected in rejections}
        with map_errors("acknowledging"):
            if is_all and not self._dead_letters.pending:
                await channels.channel.basic_ack(deliveries[-1].tag, multiple=True)
            else:
                for delivery in deliveries:
                    if delivery.tag not in rejected_tags:
                        await channels.channel.basic_ack(delivery.tag)
        if self._binds:
            jobs = [order for _, order in accepted if isinstance(order, Job)]
            await remove_foreign_bindings(jobs, self._targets, self._identity, channels.connection)

    def _read(
        self, deliveries: list[Delivery]
    ) -> tuple[list[tuple[Delivery, Order]], list[RejectedMessage]]:
        orders: list[tuple[Delivery, Order]] = []
        rejections: list[RejectedMessage] = []
        if self._trust is not None:
            self._trust.refresh()
        for delivery in deliveries:
            if delivery.properties.message_type == "probe":
                continue
            try:
                signatures = delivery.headers.get(HEADER)
                order = read_order(
                    delivery.body, delivery.key, self._identity, self._trust, signatures
                )
                orders.append((delivery, order))
            except UnreadableMessage as error:
                job_id = job_id_of(delivery.body, delivery.properties.message_id)
                reason = str(error)[:MAX_REASON]
                rejections.append(RejectedMessage(delivery, reason, job_id))
        return orders, rejections
