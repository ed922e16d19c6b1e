"""Takes in what the broker delivers: read, kept in the ledger, and only then acknowledged."""

import asyncio
import random
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import NamedTuple

from aio_pika.abc import AbstractConnection
from aiormq.abc import AbstractChannel
from aiormq.exceptions import ChannelAccessRefused

from agents.claims.claims import Claims
from agents.identity import Identity
from agents.inbox.dead_lettering import DeadLetterPublisher, RejectedMessage
from agents.inbox.messages import Order, UnreadableMessage, job_id_of, read_order
from agents.inbox.recovery import Recovery
from agents.inbox.trust import Trust
from agents.jobs.admission import Admission
from agents.jobs.cancellation import Cancellations
from agents.jobs.pause import PauseState
from agents.outbox import Outbox
from agents.settings import AgentSettings
from agents.store.ledger import Ledger
from agents.store.transaction import DuplicateReason, JobRecord, Transaction
from broker.amqp import topology
from broker.amqp.connection import CALL_LIMIT, Unreachable, blocked, translated
from broker.amqp.consumer import Delivery, consume
from broker.amqp.publisher import Publisher
from broker.amqp.timeouts import timeout
from broker.log import get_logger
from schemas import Cancellation, Context, Job, Pause, State
from schemas.signature import HEADER
from schemas.times import duration_text

_Taken = JobRecord | Cancellation | Pause
_PREFETCH = 500
_BACKLOG_PAUSE = 1.0  # seconds without a delivery after which no more of a backlog is expected
_log = get_logger()
_LONGEST_REASON = 1000
_SUSPECT = 2  # times that a message came back to us: an ordinary loss of the connection is one


def _returns(message: Delivery) -> int:
    """Return how often a quorum queue delivered a message before, and got it back."""
    count = message.headers.get("x-delivery-count", 0)
    return count if isinstance(count, int) else 0


class _Link(NamedTuple):
    """What takes in and acknowledges, of one connection."""

    connection: AbstractConnection
    publisher: Publisher
    channel: AbstractChannel


async def _count_waiting(connection: AbstractConnection, queue: str) -> int:
    """Return how many messages wait in a queue; 0 if the broker does not tell this login."""
    try:
        async with connection.channel() as channel:
            declared = await channel.declare_queue(queue, passive=True)
            return declared.declaration_result.message_count or 0
    except ChannelAccessRefused:
        return 0


class Inbox:
    """Moves an agent's queue into its ledger, many messages in one transaction."""

    def __init__(
        self,
        identity: Identity,
        settings: AgentSettings,
        ledger: Ledger,
        claims: Claims,
        outbox: Outbox,
        recovery: Recovery,
        trust: Trust | None,
        admission: Admission,
        cancellations: Cancellations,
        pause: PauseState,
        caught_up: asyncio.Event,
    ) -> None:
        """Prepare.

        `caught_up` is cleared while messages are still to come that waited when the agent
        connected. Until then no job is started or offered: overdue ones run in the order of their
        mandatory times, and not at all if their cancellations wait, too.
        """
        self._identity = identity
        self._keep = settings.keep.total_seconds()
        # Whoever may not read the stream cannot know what a former ledger ran.
        self._asks = not settings.enrolled
        self._ledger = ledger
        self._claims = claims
        self._recovery = recovery
        self._trust = trust
        self._outbox = outbox
        self._admission = admission
        self._cancellations = cancellations
        self._pause = pause
        self._burial = DeadLetterPublisher(identity, ledger, claims, outbox)
        self._made_at = 0.0
        self._backlog = 0
        self._caught_up = caught_up

    async def run(
        self,
        connection: AbstractConnection,
        publisher: Publisher,
        stopping: asyncio.Event,
        consuming: Callable[[], None],
    ) -> None:
        """Consume until told to stop; call `consuming` once the broker delivers.

        Raises:
            Unreachable: the consumer was lost.
        """
        arrived: asyncio.Queue[Delivery | None] = asyncio.Queue()
        identity = self._identity
        name = topology.queue_name(identity.kind, identity.workstation, identity.user)
        with translated(f"consuming {name}"):
            async with timeout(CALL_LIMIT):
                waiting = await _count_waiting(connection, name)
            consumer = await consume(connection, name, arrived, _PREFETCH)
        self._made_at = (await self._ledger.commit(Transaction.life)).made_at
        consuming()
        self._burial = DeadLetterPublisher(self._identity, self._ledger, self._claims, self._outbox)
        link = _Link(connection, publisher, consumer.underlay)

        async def stop() -> None:
            await stopping.wait()
            arrived.put_nowait(None)

        try:
            self._expect(waiting)
            async with asyncio.TaskGroup() as tasks:
                others = [tasks.create_task(self._burial.run(publisher, consumer.underlay))]
                others.append(tasks.create_task(stop()))
                while True:
                    batch = [await self._next(arrived)]
                    while not arrived.empty():
                        batch.append(arrived.get_nowait())
                    if stopping.is_set():
                        break
                    await self._take([message for message in batch if message], link)
                    self._expect(self._backlog - len(batch))
                    if None in batch:
                        raise Unreachable(f"consuming {name}: the consumer was lost")
                for task in others:
                    task.cancel()
        finally:
            self._expect(0)
        if await blocked(connection):
            return  # it would not hear us, and what waits for it cannot be cancelled
        await consumer.end(CALL_LIMIT)

    def _expect(self, backlog: int) -> None:
        """Note how many messages are still to come that waited when the agent connected."""
        self._backlog = backlog
        if backlog > 0:
            self._caught_up.clear()
        else:
            self._caught_up.set()

    async def _next(self, arrived: asyncio.Queue[Delivery | None]) -> Delivery | None:
        """Wait for the next delivery; the broker may have dropped for its age what we expect."""
        if self._backlog > 0:
            try:
                async with timeout(_BACKLOG_PAUSE):
                    return await arrived.get()
            except TimeoutError:
                self._expect(0)
        return await arrived.get()

    async def _take(self, messages: list[Delivery], link: _Link) -> None:
        """Take in a batch; alone, and in any order, what came back to us again and again.

        One of those may be what ended this agent each time: it must not take others along.
        """
        fresh = [message for message in messages if _returns(message) < _SUSPECT]
        suspects = [message for message in messages if _returns(message) >= _SUSPECT]
        random.shuffle(suspects)
        for batch in (fresh, *([message] for message in suspects)):
            if batch:
                await self._take_together(batch, link, alone=not suspects)

    async def _take_together(self, messages: list[Delivery], link: _Link, *, alone: bool) -> None:
        """Take in some messages at once; `alone`: no others that were delivered wait."""
        read, refusals = self._read(messages)
        stale = await self._stale([order for _, order in read])
        orders = [order for _, order in read if not (isinstance(order, Job) and order.id in stale)]
        refusals += [
            RejectedMessage(message, stale[order.id], order.id)
            for message, order in read
            if isinstance(order, Job) and order.id in stale
        ]
        if orders:
            ended = await self._ended_here(orders, link)
            future = self._ledger.commit(lambda tables: self._enter(tables, orders, ended))
            future.add_done_callback(self._entered)
            # Should the connection be lost meanwhile: what is in the ledger is in the agent.
            await asyncio.shield(future)
        for refusal in refusals:
            self._burial.add(refusal)
        refused = {refusal.message.tag for refusal in refusals}
        with translated("acknowledging"):
            if alone and not self._burial.unburied:
                # And all that came before it.
                await link.channel.basic_ack(messages[-1].tag, multiple=True)
            else:
                for message in messages:
                    if message.tag not in refused:
                        await link.channel.basic_ack(message.tag)

    def _entered(self, future: "asyncio.Future[list[_Taken]]") -> None:
        if future.cancelled() or future.exception() is not None:
            return
        self._outbox.wake()
        for order in future.result():
            if isinstance(order, JobRecord):
                self._admission.accept(order)
            elif isinstance(order, Pause):
                self._pause.apply(order)
            else:
                self._cancellations.cancel(order)

    async def _ended_here(
        self,
        orders: list[Order],
        link: _Link,
    ) -> dict[str, JobRecord]:
        """Return what is known of jobs older than the ledger: a lost one may have run them."""
        old = [
            order
            for order in orders
            if isinstance(order, Job) and order.created_at.timestamp() < self._made_at
        ]
        if not old:
            return {}
        unknown = await self._ledger.commit(
            lambda tables: [job for job in old if not tables.knows(job.id)]
        )
        if not unknown:
            return {}
        return await self._recovery.ended_here(link.connection, link.publisher, unknown)

    async def _stale(self, orders: list[Order]) -> dict[str, str]:
        """Return the jobs that are too old to be trusted, and why; known ones are the same job."""
        if self._trust is None:
            return {}
        now = datetime.now(UTC)
        old = {
            order.id: reason
            for order in orders
            if isinstance(order, Job) and (reason := self._trust.stale(order, now))
        }
        if not old:
            return {}
        unknown = await self._ledger.commit(
            lambda tables: [job_id for job_id in old if not tables.knows(job_id)]
        )
        return {job_id: old[job_id] for job_id in unknown}

    def _read(
        self, messages: list[Delivery]
    ) -> tuple[list[tuple[Delivery, Order]], list[RejectedMessage]]:
        orders: list[tuple[Delivery, Order]] = []
        refusals: list[RejectedMessage] = []
        if self._trust is not None:
            self._trust.refresh()
        for message in messages:
            if message.properties.message_type == "probe":
                continue
            try:
                signatures = message.headers.get(HEADER)
                order = read_order(
                    message.body, message.key, self._identity, self._trust, signatures
                )
                orders.append((message, order))
            except UnreadableMessage as poison:
                job_id = job_id_of(message.body, message.properties.message_id)
                reason = str(poison)[:_LONGEST_REASON]
                refusals.append(RejectedMessage(message, reason, job_id))
        return orders, refusals

    def _heeds(self, tables: Transaction, order: Cancellation | Pause, now: float) -> bool:
        """Keep what is said here; return whether anything follows from it."""
        if isinstance(order, Pause):
            heeded = tables.pause(order)
            if not heeded:
                _log.info("pause.outdated", by=order.sender, made_at=str(order.created_at))
            return heeded
        if not order.concerns(self._identity.workstation):
            return False
        tables.remember_cancellation(order.job_id, order.reason, now)
        return True

    def _enter(
        self, tables: Transaction, orders: list[Order], ended: dict[str, JobRecord]
    ) -> list[_Taken]:
        now = time.time()
        taken: list[_Taken] = []
        report = self._identity.report
        for order in orders:
            if not isinstance(order, Job):
                if self._heeds(tables, order, now):
                    taken.append(order)
                continue
            if (former := ended.get(order.id)) and not tables.knows(order.id):
                tables.insert(former)
                if former.open:
                    taken.append(former)
                continue
            entry = tables.accept(order, now, self._oldest(order, now))
            if isinstance(entry, JobRecord):
                tables.report(report(order.id, State.RECEIVED))
                taken.append(entry)
            elif entry is DuplicateReason.OTHER:
                other = "another job with this id came and was refused"
                tables.report(report(order.id, State.CONFLICT, other))
            elif entry is DuplicateReason.FORGOTTEN:
                old = f"{self._why_forgotten(order, now)}: whether it ran here is not known"
                tables.report(report(order.id, State.REFUSED, f"{old}; send it as a new job"))
        return taken

    def _oldest(self, job: Job, now: float) -> float:
        """Return since when a job must have been made, that its being unknown says anything.

        Of users' jobs the claims tell what was decided.
        """
        oldest = now - self._keep
        blind = not self._asks and job.context is Context.BACKGROUND
        return max(oldest, self._made_at) if blind else oldest

    def _why_forgotten(self, job: Job, now: float) -> str:
        if job.created_at.timestamp() >= now - self._keep:
            return "was made before this agent's ledger was begun"
        return f"was made over {duration_text(timedelta(seconds=self._keep))} ago"
