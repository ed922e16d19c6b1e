"""Sets aside what an agent cannot read: never run, never lost, and in nobody's way."""

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
from broker.amqp.connection import translated
from broker.amqp.consumer import Delivery
from broker.amqp.publisher import Publisher
from broker.log import get_logger
from broker.stream import stream
from schemas import Context, State
from schemas.signature import HEADER, LONGEST_HEADER

_log = get_logger()
_AT_ONCE = 100
_BYTES_AT_ONCE = 8 * 1024 * 1024


@dataclass(frozen=True)
class RejectedMessage:
    """A message that cannot be read or trusted, why, and of which job it speaks, if it tells."""

    message: Delivery
    reason: str
    job_id: str | None


class DeadLetterPublisher:
    """Puts refused messages where administrators find them, and reports their jobs refused."""

    def __init__(self, identity: Identity, ledger: Ledger, claims: Claims, outbox: Outbox) -> None:
        self._identity = identity
        self._ledger = ledger
        self._claims = claims
        self._outbox = outbox
        self._waiting: asyncio.Queue[RejectedMessage] = asyncio.Queue()
        self.unburied = 0
        """How many refused messages are not acknowledged yet."""

    def add(self, refusal: RejectedMessage) -> None:
        """Have a message set aside, in time."""
        self.unburied += 1
        self._waiting.put_nowait(refusal)

    async def run(self, publisher: Publisher, channel: AbstractChannel) -> None:
        """Set aside what is refused, many at once, while good messages go on.

        They came by `channel`, where they are acknowledged in the end.
        """
        while True:
            refusals = [await self._waiting.get()]
            while (
                not self._waiting.empty()
                and len(refusals) < _AT_ONCE
                and sum(len(refusal.message.body) for refusal in refusals) < _BYTES_AT_ONCE
            ):
                refusals.append(self._waiting.get_nowait())
            async with asyncio.TaskGroup() as tasks:
                for refusal in refusals:
                    tasks.create_task(self._bury(refusal, publisher))

            def refuse(tables: Transaction, refusals: list[RejectedMessage] = refusals) -> None:
                for refusal in refusals:
                    self._refuse(tables, refusal)

            await self._ledger.commit(refuse)
            self._outbox.wake()
            with translated("acknowledging"):
                for refusal in refusals:
                    await channel.basic_ack(refusal.message.tag)
            self.unburied -= len(refusals)

    def _refuse(self, tables: Transaction, refusal: RejectedMessage) -> None:
        """Report a refused job, by one of the agents only where both received the message."""
        job_id = refusal.job_id
        if job_id is None or refusal.message.properties.message_type in ("cancellation", "pause"):
            return
        shared = not refusal.message.key.startswith(f"{Context.BACKGROUND}.")
        if tables.knows(job_id):
            state = State.CONFLICT
        elif shared and not self._refuses(job_id):
            return
        else:
            state = State.REFUSED
            tables.refused(job_id, time.time())
        report = self._identity.report(job_id, state, refusal.reason)
        if not state.final:
            # The same message delivered again makes the same report, which views count once.
            seed = b"\0".join([self._identity.name.encode(), refusal.message.body])
            report = report.model_copy(update={"id": hashlib.sha256(seed).hexdigest()[:32]})
        tables.report(report)

    def _refuses(self, job_id: str) -> bool:
        """Whether it is ours to refuse a job: now, or before a crash kept us from saying so."""
        if self._claims.decide(job_id, State.REFUSED):
            return True
        return self._claims.decision(job_id) == ClaimRecord(self._identity.name, State.REFUSED)

    async def _bury(self, refusal: RejectedMessage, publisher: Publisher) -> None:
        """Put a message where administrators find it, with the reason."""
        identity = self._identity
        message, properties = refusal.message, refusal.message.properties
        signatures = message.headers.get(HEADER)
        if isinstance(signatures, str) and len(signatures) > LONGEST_HEADER:
            signatures = None  # no signatures: they might be too long for a header with the rest
        _log.warning("message.refused", reason=refusal.reason, job=refusal.job_id)
        await stream.append(
            publisher,
            topology.report_key("dead", identity.workstation, identity.name),
            message.body,
            kind=properties.message_type or "",
            message_id=properties.message_id,
            headers={
                "reason": refusal.reason,
                "routing-key": message.key,
                "workstation": identity.workstation,
                "agent": identity.name,
                "job": refusal.job_id or "",
                "at": datetime.now(UTC).isoformat(timespec="microseconds"),
                **({HEADER: signatures} if isinstance(signatures, str) else {}),
            },
            content_type=properties.content_type or "application/octet-stream",
        )
