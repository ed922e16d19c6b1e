"""Sends the reports that the ledger holds, until the broker has confirmed each."""

import asyncio
from collections.abc import Iterator
from itertools import groupby

from agents.identity import Identity
from agents.ledger import Ledger
from agents.tables import Pending, Tables
from broker import stream, topology
from broker.pipeline import Outgoing
from broker.publisher import Publisher
from schemas import State

_BATCH = 500
_MESSAGE_BYTES = 512 * 1024
_GATHERING = 0.02  # seconds in which reports come together: all of a quick command, say
_ORDER = {state: place for place, state in enumerate(State)}


class Outbox:
    """Sends an agent's reports: those of one state together, a report a line."""

    def __init__(self, identity: Identity, ledger: Ledger) -> None:
        self._identity = identity
        self._ledger = ledger
        self._more = asyncio.Event()
        self._more.set()
        self._empty = asyncio.Event()

    def wake(self) -> None:
        """Tell that there are reports to send."""
        self._empty.clear()
        self._more.set()

    async def drained(self) -> None:
        """Wait until all is sent."""
        if not await self._ledger.commit(lambda tables: tables.pending(1)):
            return
        await self._empty.wait()

    async def run(self, publisher: Publisher) -> None:
        """Send reports as they come, until the broker cannot be reached.

        Raises:
            BrokerError: what was not confirmed stays in the ledger, and will be sent again.
        """
        sent = 0
        self._more.set()  # what the last link did not take

        def exchange(tables: Tables) -> list[Pending]:
            tables.confirmed(sent)
            return tables.pending(_BATCH)

        while True:
            await self._more.wait()
            await asyncio.sleep(_GATHERING)
            self._more.clear()
            pending = await self._ledger.commit(exchange)
            if not pending:
                if not self._more.is_set():
                    self._empty.set()
                continue
            await stream.append_all(
                publisher,
                [self._outgoing(publisher, *message) for message in _messages(pending)],
            )
            sent = pending[-1].sequence
            self._more.set()  # for what was confirmed to be dropped

    def _outgoing(self, publisher: Publisher, state: State, body: bytes) -> Outgoing:
        return publisher.outgoing(
            topology.REPORTS,
            topology.report_key(state, self._identity.workstation, self._identity.name),
            body,
            kind="report",
            unroutable_fails=True,
            content_type="application/x-ndjson",
        )


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
