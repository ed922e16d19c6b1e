"""Consumes the agent's queue: messages are read, stored in the ledger, and then acknowledged."""

import asyncio
import random
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import NamedTuple

from aio_pika.abc import AbstractConnection
from aiormq.abc import AbstractChannel

from agents.claims.claims import Claims
from agents.identity import Identity
from agents.inbox.dead_lettering import DeadLetterPublisher, RejectedMessage
from agents.inbox.messages import Order, UnreadableMessage, job_id_of, read_order
from agents.inbox.recovery import Recovery
from agents.inbox.trust import Trust
from agents.jobs.admission import Admission
from agents.jobs.cancellation import Cancellations
from agents.jobs.host import targets
from agents.jobs.pause import PauseState
from agents.outbox import Outbox
from agents.settings import AgentSettings
from agents.store.ledger import Ledger
from agents.store.transaction import DuplicateReason, JobRecord, Original, Transaction
from broker.amqp import topology
from broker.amqp.connection import CALL_LIMIT, Refused, Unreachable, blocked, map_errors
from broker.amqp.consumer import Delivery, consume
from broker.amqp.publisher import Publisher
from broker.amqp.timeouts import timeout
from broker.amqp.topology import AgentKind
from broker.log import get_logger
from schemas import Cancellation, Command, Context, InvalidMessage, Job, Pause, Report, State
from schemas.orders.signature import HEADER
from schemas.times import duration_text

_Stored = JobRecord | Cancellation | Pause
_PREFETCH = 500
_BACKLOG_PAUSE = 1.0  # seconds without a delivery after which the backlog counts as received
_log = get_logger()
_MAX_REASON = 1000
_MAX_UNBOUND = 100  # targets of a job
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
        recovery: Recovery,
        trust: Trust | None,
        admission: Admission,
        cancellations: Cancellations,
        pause: PauseState,
        caught_up: asyncio.Event,
    ) -> None:
        """Create an inbox.

        `caught_up` is cleared until the messages that were queued before the connection are
        received. No job is started or offered meanwhile: overdue jobs must run in the order of
        their mandatory times, and a queued cancellation must prevent its job.
        """
        self._identity = identity
        self._retention = settings.keep.total_seconds()
        # An enrolled agent may not read the stream, so it cannot know what a lost ledger ran.
        self._reads_stream = not settings.enrolled
        self._ledger = ledger
        self._claims = claims
        self._recovery = recovery
        self._targets = targets(settings)
        self._binds = not settings.enrolled
        self._trust = trust
        self._outbox = outbox
        self._admission = admission
        self._cancellations = cancellations
        self._pause = pause
        self._dead_letters = DeadLetterPublisher(identity, ledger, claims, outbox)
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
        """Consume until `stopping` is set; call `consuming` when the consumer is registered.

        Raises:
            Unreachable: the consumer was lost.
        """
        deliveries: asyncio.Queue[Delivery | None] = asyncio.Queue()
        identity = self._identity
        name = topology.queue_name(identity.kind, identity.workstation, identity.user)
        with map_errors(f"consuming {name}"):
            async with timeout(CALL_LIMIT):
                counts = await topology.count(connection, name)
            if counts and counts.consumers:  # since the session has looked
                raise Unreachable(f"consuming {name}: it has another consumer")
            consumer = await consume(connection, name, deliveries, _PREFETCH, exclusive=True)
        self._made_at = (await self._ledger.commit(Transaction.metadata)).made_at
        consuming()
        self._dead_letters = DeadLetterPublisher(
            self._identity, self._ledger, self._claims, self._outbox
        )
        channels = _Channels(connection, publisher, consumer.underlay)

        async def stop() -> None:
            await stopping.wait()
            deliveries.put_nowait(None)

        try:
            self._set_backlog(counts.messages if counts else 0)
            async with asyncio.TaskGroup() as tasks:
                others = [tasks.create_task(self._dead_letters.run(publisher, consumer.underlay))]
                others.append(tasks.create_task(stop()))
                while True:
                    batch = [await self._next(deliveries)]
                    while not deliveries.empty():
                        batch.append(deliveries.get_nowait())
                    if stopping.is_set():
                        break
                    await self._process([delivery for delivery in batch if delivery], channels)
                    self._set_backlog(self._backlog - len(batch))
                    if None in batch:
                        raise Unreachable(f"consuming {name}: the consumer was lost")
                for task in others:
                    task.cancel()
        finally:
            self._set_backlog(0)
        if await blocked(connection):
            return  # the broker reads nothing now, and the call could not be cancelled
        await consumer.end(CALL_LIMIT)

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
        stale = await self._stale([order for _, order in read])
        orders = [order for _, order in read if not (isinstance(order, Job) and order.id in stale)]
        rejections += [
            RejectedMessage(delivery, stale[order.id], order.id)
            for delivery, order in read
            if isinstance(order, Job) and order.id in stale
        ]
        if orders:
            former = await self._former_records(orders, channels)
            originals = self._originals(read)
            future = self._ledger.commit(
                lambda transaction: self._store(transaction, orders, former, originals)
            )
            future.add_done_callback(self._accept_stored)
            # Stored jobs are accepted even if the connection is lost meanwhile.
            await asyncio.shield(future)
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
        await self._remove_bindings(orders, channels.connection)

    async def _remove_bindings(self, orders: list[Order], connection: AbstractConnection) -> None:
        """Remove the bindings that brought jobs for other targets, such as groups that it left.

        An agent with a new ledger does not know what it has bound. An enrolled agent may not
        unbind: `pcm doctor` finds its bindings.
        """
        jobs = [order for order in orders if isinstance(order, Job)]
        others = {
            target
            for job in jobs
            if self._targets.isdisjoint(job.targets)
            for target in job.targets[:_MAX_UNBOUND]
        }
        if not others or not self._binds:
            return
        identity = self._identity
        name = topology.queue_name(identity.kind, identity.workstation, identity.user)
        keys = topology.target_keys(identity.kind, others)
        try:
            with map_errors(f"removing bindings of {name}"):
                async with timeout(CALL_LIMIT), connection.channel() as channel:
                    queue = await channel.get_queue(name, ensure=False)
                    for key in keys:
                        await queue.unbind(topology.JOBS, key)
        except Refused as error:
            _log.warning("bindings.obsolete", reason=str(error))
            return
        _log.warning(
            "bindings.removed",
            targets=sorted(map(str, others)),
            reason="they brought jobs that are not for this workstation",
        )

    def _originals(self, read: list[tuple[Delivery, Order]]) -> dict[str, Original]:
        """Return the foreground jobs, which a service agent hands to users who log on later."""
        if self._identity.kind is not AgentKind.SERVICE:
            return {}
        found = {}
        for delivery, order in read:
            if isinstance(order, Job) and order.context is Context.FOREGROUND:
                header = delivery.headers.get(HEADER)
                signatures = header if isinstance(header, str) else None
                found[order.id] = Original(delivery.body, signatures)
        return found

    async def accept_handed_over(
        self, original: Original, objection: Callable[[Command], str]
    ) -> None:
        """Store a job that the service agent hands over; it is checked like one of the queue.

        `objection` returns why this agent cannot open a command's secrets, which were sealed for
        the agents that had checked in: such a job is left to those.
        """
        if self._trust is not None:
            self._trust.refresh()
        try:
            key = topology.routing_keys(Job.read(original.body, tolerant=True))[0]
            job = read_order(original.body, key, self._identity, self._trust, original.signatures)
        except (InvalidMessage, UnreadableMessage) as error:
            _log.warning("job.not_handed_over", reason=str(error)[:_MAX_REASON])
            return
        if not isinstance(job, Job) or await self._stale([job]):
            return
        if reason := objection(job.command):
            _log.info("job.not_handed_over", job=job.id, reason=reason)
            return

        def store(transaction: Transaction) -> list[_Stored]:
            return [] if transaction.knows(job.id) else self._store(transaction, [job], {}, {})

        future = self._ledger.commit(store)
        future.add_done_callback(self._accept_stored)
        await asyncio.shield(future)

    def _accept_stored(self, future: "asyncio.Future[list[_Stored]]") -> None:
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

    async def _former_records(
        self,
        orders: list[Order],
        channels: _Channels,
    ) -> dict[str, JobRecord]:
        """Return records from the stream of jobs older than the ledger.

        A lost ledger may have run them.
        """
        old = [
            order
            for order in orders
            if isinstance(order, Job) and order.created_at.timestamp() < self._made_at
        ]
        if not old:
            return {}
        unknown = await self._ledger.commit(
            lambda transaction: [job for job in old if not transaction.knows(job.id)]
        )
        if not unknown:
            return {}
        return await self._recovery.former_records(channels.connection, channels.publisher, unknown)

    async def _stale(self, orders: list[Order]) -> dict[str, str]:
        """Return the reasons for jobs that are too old to be trusted; known jobs are duplicates."""
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
            lambda transaction: [job_id for job_id in old if not transaction.knows(job_id)]
        )
        return {job_id: old[job_id] for job_id in unknown}

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
                reason = str(error)[:_MAX_REASON]
                rejections.append(RejectedMessage(delivery, reason, job_id))
        return orders, rejections

    def _store_control(
        self, transaction: Transaction, order: Cancellation | Pause, now: float
    ) -> bool:
        """Store a cancellation or pause; return whether it applies to this agent."""
        if isinstance(order, Pause):
            is_new = transaction.set_pause(order)
            if not is_new:
                _log.info("pause.outdated", by=order.sender, made_at=str(order.created_at))
            return is_new
        if not order.concerns(self._identity.workstation):
            return False
        # By a clock ahead of ours, its job may be as well.
        received_at = max(now, order.created_at.timestamp())
        transaction.remember_cancellation(order.job_id, order.reason, received_at)
        return True

    def _store(
        self,
        transaction: Transaction,
        orders: list[Order],
        former: dict[str, JobRecord],
        originals: dict[str, Original],
    ) -> list[_Stored]:
        now = time.time()
        stored: list[_Stored] = []
        report = self._identity.report
        for order in orders:
            if not isinstance(order, Job):
                if self._store_control(transaction, order, now):
                    stored.append(order)
                continue
            if (known := former.get(order.id)) and not transaction.knows(order.id):
                transaction.insert(known)
                if known.open:
                    stored.append(known)
                continue
            if self._refuses(transaction, order, now):
                continue
            result = transaction.accept(order, now, self._oldest_acceptable(order, now))
            if isinstance(result, JobRecord):
                transaction.add_report(report(order.id, State.RECEIVED))
                if original := originals.get(order.id):
                    transaction.keep_original(order.id, original)
                stored.append(result)
            elif duplicate := self._report_duplicate(order, result, now):
                transaction.add_report(duplicate)
        return stored

    def _report_duplicate(self, job: Job, result: DuplicateReason, now: float) -> Report | None:
        """Return the report of a job that is not stored; None if it is the same as a stored one."""
        if result is DuplicateReason.CONFLICT:
            reason = "another job with this id was received and refused"
            return self._identity.report(job.id, State.CONFLICT, reason)
        if result is DuplicateReason.TOO_OLD:
            reason = f"{self._too_old_reason(job, now)}: whether it ran here is not known"
            return self._identity.report(job.id, State.REFUSED, f"{reason}; send it as a new job")
        return None

    def _refuses(self, transaction: Transaction, job: Job, now: float) -> bool:
        """Refuse a new job that was made by an outdated list of a channel."""
        if transaction.knows(job.id) or not (reason := transaction.outdated_channel(job)):
            return False
        transaction.remember_refusal(job.id, now)
        transaction.add_report(self._identity.report(job.id, State.REFUSED, reason))
        return True

    def _oldest_acceptable(self, job: Job, now: float) -> float:
        """Return the creation time from which an unknown job cannot have run here.

        Foreground jobs may be older than the ledger, since the claims record their decisions.
        """
        oldest = now - self._retention
        is_unrecorded = not self._reads_stream and job.context is Context.BACKGROUND
        return max(oldest, self._made_at) if is_unrecorded else oldest

    def _too_old_reason(self, job: Job, now: float) -> str:
        if job.created_at.timestamp() >= now - self._retention:
            return "was created before this agent's ledger"
        return f"was created over {duration_text(timedelta(seconds=self._retention))} ago"
