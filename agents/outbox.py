"""Sends the reports that the ledger holds, until the broker has confirmed each."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from itertools import groupby

from agents.identity import Identity
from agents.store.ledger import Ledger
from agents.store.transaction import Pending, Transaction
from broker.amqp import topology
from broker.amqp.batch_publish import Outgoing
from broker.amqp.publisher import Publisher
from broker.amqp.timeouts import timeout
from broker.stream import stream
from schemas import State

_BATCH = 500
_MESSAGE_BYTES = 512 * 1024
_GATHERING = 0.02  # seconds in which reports come together: all of a quick command, say
_DROPPING = 1.0  # seconds for which what was confirmed may be kept: more may have to be written
_ORDER = {state: place for place, state in enumerate(State)}


class Outbox:
    """Sends an agent's reports: those of one state together, a report a line."""

    def __init__(self, identity: Identity, ledger: Ledger) -> None:
        self._identity = identity
        self._ledger = ledger
        self._more = asyncio.Event()
        self._more.set()
        self._now = asyncio.Event()
        self._empty = asyncio.Event()
        self._expected = 0

    def wake(self, *, now: bool = False) -> None:
        """Tell that there are reports to send; `now`: more are not to be expected soon."""
        self._empty.clear()
        self._more.set()
        if now:
            self._now.set()

    def report_stored(self) -> None:
        """Send a report: with those that follow soon, if a command runs, else at once."""
        self.wake(now=not self._expected)

    @contextmanager
    def expecting_more(self) -> Iterator[None]:
        """Expect more reports soon: a command runs."""
        self._expected += 1
        try:
            yield
        finally:
            self._expected -= 1

    async def drained(self) -> None:
        """Wait until all is sent."""
        if not await self._ledger.commit(lambda tables: tables.pending(1)):
            return
        self.wake(now=True)
        await self._empty.wait()

    async def run(self, publisher: Publisher) -> None:
        """Send reports as they come, until the broker cannot be reached.

        Raises:
            BrokerError: what was not confirmed stays in the ledger, and will be sent again.
        """
        sent = 0
        self._more.set()  # what the last link did not take

        def exchange(tables: Transaction) -> list[Pending]:
            tables.confirmed(sent)
            return tables.pending(_BATCH)

        while True:
            await _set(self._more, _DROPPING if sent else None)
            await _set(self._now, _GATHERING)
            self._more.clear()
            self._now.clear()
            pending = await self._ledger.commit(exchange)
            if not pending:
                sent = 0
                if not self._more.is_set():
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


async def _set(event: asyncio.Event, limit: float | None) -> None:
    """Wait until it is set, or for so many seconds."""
    with suppress(TimeoutError):
        async with timeout(limit):
            await event.wait()


def _messages(pending: list[Pending]) -> Iterator[tuple[State, bytes]]:
    """Yield messages of reports of one state, in the order in which a job goes through them."""
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
