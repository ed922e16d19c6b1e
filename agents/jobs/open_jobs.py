"""The jobs that an agent has open: in memory, mirrored in its ledger, each looked at in time.

A change is made in memory at once and written in the order of the changes; what must not happen
twice waits until its record is on the disk.
"""

import asyncio
import heapq
import math
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from agents.changes import Changes
from agents.claims.claims import Claims
from agents.identity import Identity
from agents.outbox import Outbox
from agents.store.ledger import Ledger
from agents.store.transaction import JobRecord, Transaction
from broker.amqp.timeouts import timeout
from broker.log import get_logger
from schemas import Report, Result, State

if TYPE_CHECKING:
    from collections.abc import Callable

_log = get_logger()
_LONGEST_SLEEP = 10.0  # seconds; a clock that was set is noticed at the latest after these
_CLOCK_STEP = 1.0


class OpenJobs:
    """The open entries of an agent, by job id."""

    def __init__(
        self,
        identity: Identity,
        ledger: Ledger,
        claims: Claims,
        outbox: Outbox,
        changes: Changes,
    ) -> None:
        self._identity = identity
        self._ledger = ledger
        self._claims = claims
        self._changes = changes
        self._outbox = outbox
        self.on_ended: list[Callable[[JobRecord], None]] = []
        """What is called with each job that ended."""
        self._open: dict[str, JobRecord] = {}
        self._busy: set[str] = set()
        self._due: list[tuple[float, str]] = []
        self._changed = asyncio.Event()
        self._clock = -math.inf  # the wall clock by the monotonic one

    def get(self, job_id: str) -> JobRecord | None:
        """Return an entry as it is now; None if it is not open."""
        return self._open.get(job_id)

    def all(self) -> list[JobRecord]:
        """Return all that are open."""
        return list(self._open.values())

    def add(self, entry: JobRecord) -> None:
        """Take in an entry that is in the ledger."""
        self._open[entry.job.id] = entry
        self.wake(entry.job.id)
        self._changes.tell()

    def wake(self, job_id: str, at: float = 0.0) -> None:
        """Have an entry looked at, at a time."""
        heapq.heappush(self._due, (at, job_id))
        self._changed.set()

    def wake_all(self) -> None:
        """Have all looked at anew, now."""
        self._due = [(0.0, job_id) for job_id in self._open]
        self._changed.set()

    def mark_busy(self, job_id: str) -> None:
        """Mark the job busy; the scheduler skips it until `release()`."""
        self._busy.add(job_id)

    def release(self, job_id: str) -> None:
        """Let the scheduler look at the job again, if it is still open."""
        self._busy.discard(job_id)
        if job_id in self._open:
            self.wake(job_id)

    async def due(self) -> JobRecord:
        """Wait for the next entry that is to be looked at."""
        while True:
            now = time.time()
            self._watch_clock(now - time.monotonic())
            while self._due and self._due[0][0] <= now:
                _, job_id = heapq.heappop(self._due)
                if job_id not in self._busy and (entry := self._open.get(job_id)):
                    return entry
            self._changed.clear()
            sleep = min(self._due[0][0] - now, _LONGEST_SLEEP) if self._due else None
            try:
                async with timeout(sleep):
                    await self._changed.wait()
            except TimeoutError:
                pass

    def _watch_clock(self, clock: float) -> None:
        """Have all looked at anew where the clock was set back: their times were told by it."""
        if clock < self._clock - _CLOCK_STEP:
            _log.warning("clock.set_back", seconds=round(self._clock - clock))
            self.wake_all()
            self._clock = clock
        self._clock = max(self._clock, clock)

    def change(
        self, entry: JobRecord, report: Report | None = None, **changes: Any
    ) -> "asyncio.Future[None]":
        """Change an entry in memory now and in the ledger next, together with its report."""
        if report is not None:
            changes["state"] = report.state
        entry = replace(entry, **changes, changed_at=time.time())
        job_id = entry.job.id
        if entry.open:
            self._open[job_id] = entry
            if job_id not in self._busy:
                self.wake(job_id)
        else:
            self._open.pop(job_id, None)
        self._changes.tell()

        def write(tables: Transaction) -> None:
            tables.save(entry)
            if report is not None:
                tables.report(report)

        def written(future: "asyncio.Future[None]") -> None:
            if future.cancelled() or future.exception() is not None:
                return
            if report is not None:
                self._outbox.report_stored()
            if not entry.open:
                self._claims.conclude(job_id)

        future = self._ledger.commit(write)
        future.add_done_callback(written)
        return future

    def end(
        self, record: JobRecord, state: State, reason: str = "", result: Result | None = None
    ) -> None:
        """End a job with its final report."""
        _log.info(
            "job.ended",
            job=record.job.id,
            state=str(state),
            exit_code=result.exit_code if result else None,
            reason=reason or None,
        )
        final = self._identity.report(record.job.id, state, reason, result=result)
        record = replace(record, state=state, open=False, final=final)
        for call in self.on_ended:
            call(record)
        self.change(record, final)
