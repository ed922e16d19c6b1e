"""Stores received orders in the ledger, and passes them to the components that carry them out."""

import asyncio
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta

from aio_pika.abc import AbstractConnection

from agents.identity import Identity
from agents.inbox.messages import MAX_REASON, Order, UnreadableMessage, read_order
from agents.inbox.recovery import Recovery
from agents.inbox.trust import Trust
from agents.jobs.admission import Admission
from agents.jobs.cancellation import Cancellations
from agents.jobs.pause import PauseState
from agents.outbox import Outbox
from agents.settings import AgentSettings
from agents.store.ledger import Ledger
from agents.store.transaction import DuplicateReason, JobRecord, Original, Transaction
from broker.amqp import topology
from broker.amqp.consumer import Delivery
from broker.amqp.publisher import Publisher
from broker.amqp.topology import AgentKind
from broker.log import get_logger
from schemas import Cancellation, Command, Context, InvalidMessage, Job, Pause, State
from schemas.orders.signature import HEADER
from schemas.times import duration_text

_Stored = JobRecord | Cancellation | Pause
_log = get_logger()


class OrderStore:
    """Stores jobs, cancellations and pauses from the queue or from another agent."""

    def __init__(
        self,
        identity: Identity,
        settings: AgentSettings,
        ledger: Ledger,
        outbox: Outbox,
        recovery: Recovery,
        trust: Trust | None,
        admission: Admission,
        cancellations: Cancellations,
        pause: PauseState,
    ) -> None:
        self._identity = identity
        self._retention = settings.keep.total_seconds()
        # An enrolled agent may not read the stream, so it cannot know what a lost ledger ran.
        self._reads_stream = not settings.enrolled
        self._ledger = ledger
        self._recovery = recovery
        self._trust = trust
        self._outbox = outbox
        self._admission = admission
        self._cancellations = cancellations
        self._pause = pause
        self._made_at = 0.0

    async def load(self) -> None:
        """Read when the ledger was created: it cannot know whether older jobs ran."""
        self._made_at = (await self._ledger.commit(Transaction.metadata)).made_at

    async def store(
        self,
        read: Sequence[tuple[Delivery, Order]],
        connection: AbstractConnection,
        publisher: Publisher,
    ) -> None:
        """Store orders in one transaction; then jobs are open, and other orders are carried out.

        Raises:
            BrokerError: the stream cannot be asked for jobs that are older than the ledger.
        """
        orders = [order for _, order in read]
        former = await self._former_records(orders, connection, publisher)
        originals = self._originals(read)
        await self._commit(lambda transaction: self._store(transaction, orders, former, originals))

    async def _commit(self, store: Callable[[Transaction], list[_Stored]]) -> None:
        future = self._ledger.commit(store)
        future.add_done_callback(self._accept_stored)
        # Stored jobs are accepted even if the connection is lost meanwhile.
        await asyncio.shield(future)

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
            _log.warning("job.not_handed_over", reason=str(error)[:MAX_REASON])
            return
        if not isinstance(job, Job) or await self.stale([job]):
            return
        if reason := objection(job.command):
            _log.info("job.not_handed_over", job=job.id, reason=reason)
            return

        def store(transaction: Transaction) -> list[_Stored]:
            return [] if transaction.knows(job.id) else self._store(transaction, [job], {}, {})

        await self._commit(store)

    async def stale(self, orders: list[Order]) -> dict[str, str]:
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

    def _originals(self, read: Sequence[tuple[Delivery, Order]]) -> dict[str, Original]:
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

    async def _former_records(
        self,
        orders: list[Order],
        connection: AbstractConnection,
        publisher: Publisher,
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
        return await self._recovery.former_records(connection, publisher, unknown)

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
            result = transaction.accept(order, now, self._oldest_acceptable(order, now))
            if isinstance(result, JobRecord):
                transaction.add_report(report(order.id, State.RECEIVED))
                if original := originals.get(order.id):
                    transaction.keep_original(order.id, original)
                stored.append(result)
            elif result is DuplicateReason.CONFLICT:
                reason = "another job with this id was received and refused"
                transaction.add_report(report(order.id, State.CONFLICT, reason))
            elif result is DuplicateReason.TOO_OLD:
                reason = f"{self._too_old_reason(order, now)}: whether it ran here is not known"
                reason = f"{reason}; send it as a new job"
                transaction.add_report(report(order.id, State.REFUSED, reason))
        return stored

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
