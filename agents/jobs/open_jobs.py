"""An agent's open jobs: kept in memory, stored in the ledger, returned when they are due.

A change is made in memory immediately and stored in the order of the changes. Callers await the
future where an action must follow only after the record is on the disk.
"""

import asyncio
import heapq
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from agents.changes import Changes
from agents.claims.claims import Claims
from agents.identity import Identity
from agents.jobs.clock import Clock, ClockChanges
from agents.outbox import Outbox
from agents.store.ledger import Ledger
from agents.store.transaction import JobRecord, Transaction
from broker.amqp.timeouts import timeout
from broker.log import get_logger
from schemas import Report, Result, State

if TYPE_CHECKING:
    from collections.abc import Callable

_log = get_logger()
_MAX_SLEEP = 10.0  # seconds; a change of the clock is noticed within this time


class OpenJobs:
    """An agent's open jobs by id."""

    def __init__(
        self,
        identity: Identity,
        ledger: Ledger,
        claims: Claims,
        outbox: Outbox,
        changes: Changes,
        clock: Clock,
    ) -> None:
        self._identity = identity
        self._ledger = ledger
        self._claims = claims
        self._changes = changes
        self._outbox = outbox
        self.on_ended: list[Callable[[JobRecord], None]] = []
        """Callbacks for each ended job."""
        self.on_closed: list[Callable[[JobRecord], None]] = []
        """Callbacks for each job that ended, or that another agent has."""
        self._open: dict[str, JobRecord] = {}
        self._busy: set[str] = set()
        self._due: list[tuple[float, str]] = []
        self._changed = asyncio.Event()
        self._clock = clock
        self.on_clock_changed: list[Callable[[ClockChanges], None]] = []
        """Callbacks for changes of the clock; then all jobs are due."""

    def get(self, job_id: str) -> JobRecord | None:
        """Return a job's current record; None if it is not open."""
        return self._open.get(job_id)

    def all(self) -> list[JobRecord]:
        """Return all open jobs."""
        return list(self._open.values())

    def add(self, record: JobRecord) -> None:
        """Add a job that is stored in the ledger."""
        self._open[record.job.id] = record
        self.wake(record.job.id)
        self._changes.notify()

    def wake(self, job_id: str, at: float = 0.0) -> None:
        """Make a job due at a time; by default now."""
        heapq.heappush(self._due, (at, job_id))
        self._changed.set()

    def wake_all(self) -> None:
        """Make all jobs due now."""
        self._due = [(0.0, job_id) for job_id in self._open]
        self._changed.set()

    def mark_busy(self, job_id: str) -> None:
        """Mark the job busy; the scheduler skips it until `release()`."""
        self._busy.add(job_id)

    def release(self, job_id: str) -> None:
        """Clear the busy mark; the job is due now if it is still open."""
        self._busy.discard(job_id)
        if job_id in self._open:
            self.wake(job_id)

    async def due(self) -> JobRecord:
        """Wait for the next due job."""
        while True:
            self.look_at_clock()
            now = time.time()
            while self._due and self._due[0][0] <= now:
                _, job_id = heapq.heappop(self._due)
                if job_id not in self._busy and (record := self._open.get(job_id)):
                    return record
            self._changed.clear()
            delay = min(self._due[0][0] - now, _MAX_SLEEP) if self._due else None
            try:
                async with timeout(delay):
                    await self._changed.wait()
            except TimeoutError:
                pass

    def look_at_clock(self) -> None:
        """Make all jobs due if the clock has changed, since their due times depend on it."""
        if clock_changes := self._clock.look():
            for callback in self.on_clock_changed:
                callback(clock_changes)
            self.wake_all()
            self._changes.notify()

    def change(
        self, record: JobRecord, report: Report | None = None, **changes: Any
    ) -> "asyncio.Future[None]":
        """Change a job in memory now, and store it with its report in the next transaction."""
        if report is not None:
            changes["state"] = report.state
        record = replace(record, **changes, changed_at=time.time())
        job_id = record.job.id
        if record.open:
            self._open[job_id] = record
            if job_id not in self._busy:
                self.wake(job_id)
        else:
            self._close(record)
        self._changes.notify()

        def write(transaction: Transaction) -> None:
            transaction.save(record)
            if report is not None:
                transaction.add_report(report)

        def written(future: "asyncio.Future[None]") -> None:
            if future.cancelled() or future.exception() is not None:
                return
            if report is not None:
                self._outbox.report_stored()
            if not record.open:
                self._claims.conclude(job_id)

        future = self._ledger.commit(write)
        future.add_done_callback(written)
        return future

    def _close(self, record: JobRecord) -> None:
        self._open.pop(record.job.id, None)
        for callback in self.on_closed:
            callback(record)

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
        for callback in self.on_ended:
            callback(record)
        self.change(record, final)
