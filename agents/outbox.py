"""Sends the stored reports of the ledger until the broker has confirmed each."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from itertools import groupby

from agents.identity import Identity
from agents.store.ledger import Ledger
from agents.store.transaction import PendingReport, Transaction
from broker.amqp import topology
from broker.amqp.batch_publish import Outgoing
from broker.amqp.publisher import Publisher
from broker.amqp.timeouts import timeout
from broker.stream import stream
from schemas import State

_BATCH = 500
_MESSAGE_BYTES = 512 * 1024
_GATHER_TIME = 0.02  # seconds; joins the reports of a quick command in one publish
_DELETE_DELAY = 1.0  # seconds; confirmed reports are deleted with the next transaction, if any
_ORDER = {state: index for index, state in enumerate(State)}


class Outbox:
    """Sends an agent's reports: one message per state, with a report per line."""

    def __init__(self, identity: Identity, ledger: Ledger) -> None:
        self._identity = identity
        self._ledger = ledger
        self._has_reports = asyncio.Event()
        self._has_reports.set()
        self._flush = asyncio.Event()
        self._empty = asyncio.Event()
        self._running = 0

    def wake(self, *, now: bool = False) -> None:
        """Send stored reports; `now`: do not wait for more."""
        self._empty.clear()
        self._has_reports.set()
        if now:
            self._flush.set()

    def report_stored(self) -> None:
        """Send a stored report: immediately, or with the next ones while a command runs."""
        self.wake(now=not self._running)

    @contextmanager
    def expecting_more(self) -> Iterator[None]:
        """Expect more reports soon, since a command runs."""
        self._running += 1
        try:
            yield
        finally:
            self._running -= 1

    async def drain(self) -> None:
        """Wait until all reports are sent."""
        if not await self._ledger.commit(lambda transaction: transaction.pending_reports(1)):
            return
        self.wake(now=True)
        await self._empty.wait()

    async def run(self, publisher: Publisher) -> None:
        """Send reports until cancelled.

        Raises:
            BrokerError: publishing failed; unconfirmed reports stay in the ledger.
        """
        sent = 0
        self._has_reports.set()  # unconfirmed reports of the last connection

        def next_batch(transaction: Transaction) -> list[PendingReport]:
            transaction.delete_confirmed(sent)
            return transaction.pending_reports(_BATCH)

        while True:
            await _wait_for(self._has_reports, _DELETE_DELAY if sent else None)
            await _wait_for(self._flush, _GATHER_TIME)
            self._has_reports.clear()
            self._flush.clear()
            pending = await self._ledger.commit(next_batch)
            if not pending:
                sent = 0
                if not self._has_reports.is_set():
                    self._empty.set()
                continue
            await stream.append_all(
                publisher,
                [self._outgoing(publisher, *message) for message in _messages(pending)],
            )
            sent = pending[-1].sequence
            if len(pending) == _BATCH:
                self.wake(now=True)

    def _outgoing(self, publisher: Publisher, state: State, body: bytes) -> Outgoing:
        return publisher.outgoing(
            topology.REPORTS,
            topology.report_key(state, self._identity.workstation, self._identity.name),
            body,
            kind="report",
            unroutable_fails=True,
            content_type="application/x-ndjson",
        )


async def _wait_for(event: asyncio.Event, limit: float | None) -> None:
    """Wait until the event is set, for at most `limit` seconds."""
    with suppress(TimeoutError):
        async with timeout(limit):
            await event.wait()


def _messages(pending: list[PendingReport]) -> Iterator[tuple[State, bytes]]:
    """Yield message bodies of reports of one state, in the order of a job's states."""
    pending = sorted(pending, key=lambda report: (_ORDER[report.state], report.sequence))
    for state, reports in groupby(pending, key=lambda report: report.state):
        lines: list[bytes] = []
        size = 0
        for report in reports:
            if lines and size + len(report.body) > _MESSAGE_BYTES:
                yield state, b"\n".join(lines)
                lines, size = [], 0
            lines.append(report.body)
            size += len(report.body) + 1
        yield state, b"\n".join(lines)
