"""Publishes rejected messages to the dead-letter queue and reports their jobs as refused."""

import asyncio
import hashlib
import time
from dataclasses import dataclass
from datetime import UTC, datetime

from aiormq.abc import AbstractChannel

from agents.claims.claim_file import ClaimRecord
from agents.claims.claims import Claims
from agents.identity import Identity
from agents.outbox import Outbox
from agents.store.ledger import Ledger
from agents.store.transaction import Transaction
from broker.amqp import topology
from broker.amqp.connection import map_errors
from broker.amqp.consumer import Delivery
from broker.amqp.publisher import Publisher
from broker.log import get_logger
from broker.stream import stream
from schemas import Context, InvalidMessage, Job, State
from schemas.orders.signature import HEADER, LONGEST_HEADER

_log = get_logger()
_BATCH = 100
_BATCH_BYTES = 8 * 1024 * 1024


@dataclass(frozen=True)
class RejectedMessage:
    """A message that cannot be read or trusted, with the reason and the job id, if known."""

    delivery: Delivery
    reason: str
    job_id: str | None


class DeadLetterPublisher:
    """Publishes rejected messages in the background, while other messages are processed."""

    def __init__(self, identity: Identity, ledger: Ledger, claims: Claims, outbox: Outbox) -> None:
        self._identity = identity
        self._ledger = ledger
        self._claims = claims
        self._outbox = outbox
        self._queue: asyncio.Queue[RejectedMessage] = asyncio.Queue()
        self.pending = 0
        """Number of rejected messages that are not acknowledged."""

    def add(self, rejected: RejectedMessage) -> None:
        """Queue a rejected message."""
        self.pending += 1
        self._queue.put_nowait(rejected)

    async def run(self, publisher: Publisher, channel: AbstractChannel) -> None:
        """Publish, report and then acknowledge rejected messages in batches.

        `channel` is the channel that delivered them.
        """
        while True:
            batch = [await self._queue.get()]
            while (
                not self._queue.empty()
                and len(batch) < _BATCH
                and sum(len(rejected.delivery.body) for rejected in batch) < _BATCH_BYTES
            ):
                batch.append(self._queue.get_nowait())
            async with asyncio.TaskGroup() as tasks:
                for rejected in batch:
                    tasks.create_task(self._publish(rejected, publisher))

            def report(transaction: Transaction, batch: list[RejectedMessage] = batch) -> None:
                for rejected in batch:
                    self._report(transaction, rejected)

            await self._ledger.commit(report)
            self._outbox.wake()
            with map_errors("acknowledging"):
                for rejected in batch:
                    await channel.basic_ack(rejected.delivery.tag)
            self.pending -= len(batch)

    def _report(self, transaction: Transaction, rejected: RejectedMessage) -> None:
        """Report a refused job; if several agents received the message, only one reports it."""
        job_id = rejected.job_id
        if job_id is None or rejected.delivery.properties.message_type in ("cancellation", "pause"):
            return
        if self._identity.kind is topology.AgentKind.INTERACTIVE and _is_background(rejected):
            return  # the service agent has it, too, and only its report counts
        is_shared = not rejected.delivery.key.startswith(f"{Context.BACKGROUND}.")
        if transaction.knows(job_id):
            state = State.CONFLICT
        elif is_shared and not self._decide_refused(job_id):
            return
        else:
            state = State.REFUSED
            transaction.remember_refusal(job_id, time.time())
        report = self._identity.report(job_id, state, rejected.reason)
        if not state.final:
            # A redelivered message gives a report with the same id, which is counted once.
            seed = b"\0".join([self._identity.name.encode(), rejected.delivery.body])
            report = report.model_copy(update={"id": hashlib.sha256(seed).hexdigest()[:32]})
        transaction.add_report(report)

    def _decide_refused(self, job_id: str) -> bool:
        """Whether this agent decides that the job is refused, now or before a crash."""
        if self._claims.decide(job_id, State.REFUSED):
            return True
        return self._claims.decision(job_id) == ClaimRecord(self._identity.name, State.REFUSED)

    async def _publish(self, rejected: RejectedMessage, publisher: Publisher) -> None:
        """Publish a message with the reason to the dead-letter queue."""
        identity = self._identity
        delivery, properties = rejected.delivery, rejected.delivery.properties
        signatures = delivery.headers.get(HEADER)
        if isinstance(signatures, str) and len(signatures) > LONGEST_HEADER:
            signatures = None  # too long to fit into the headers
        _log.warning("message.refused", reason=rejected.reason, job=rejected.job_id)
        await stream.append(
            publisher,
            topology.report_key("dead", identity.workstation, identity.name),
            delivery.body,
            kind=properties.message_type or "",
            message_id=properties.message_id,
            headers={
                "reason": rejected.reason,
                "routing-key": delivery.key,
                "workstation": identity.workstation,
                "agent": identity.name,
                "job": rejected.job_id or "",
                "at": datetime.now(UTC).isoformat(timespec="microseconds"),
                **({HEADER: signatures} if isinstance(signatures, str) else {}),
            },
            content_type=properties.content_type or "application/octet-stream",
        )


def _is_background(rejected: RejectedMessage) -> bool:
    """Whether a message is a background job that came under a foreground key."""
    try:
        return Job.read(rejected.delivery.body, tolerant=True).context is Context.BACKGROUND
    except InvalidMessage:
        return False
