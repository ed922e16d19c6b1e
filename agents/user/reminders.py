"""When an offer is shown to the user again: a setting's interval, or when they asked for it.

Nothing of it is reported, and nothing outlives the agent: at its next start the user sees all.
"""

import asyncio
import time
from datetime import timedelta

from agents.changes import Changes
from agents.jobs.open_jobs import OpenJobs
from agents.store.transaction import JobRecord
from broker.log import get_logger
from schemas import Requirement, State
from schemas.times import NEVER

_log = get_logger()
_PAUSE = 0.2  # seconds in which changes are gathered
_LONGEST_SLEEP = 600.0


class Reminders:
    """Knows when each offer was shown last, and when it is shown again."""

    def __init__(self, interval: timedelta, entries: OpenJobs, changes: Changes) -> None:
        self._interval = interval.total_seconds() or NEVER
        self._entries = entries
        self._changes = changes
        self._shown: dict[str, float] = {}
        self._asked: dict[str, float] = {}

    def show(self, entry: JobRecord) -> None:
        """Note that an offer is shown now."""
        self._shown[entry.job.id] = time.time()
        self._asked.pop(entry.job.id, None)
        self._changes.notify()

    def ask(self, entry: JobRecord, at: float) -> None:
        """Show an offer again at a time, and not before."""
        self._asked[entry.job.id] = at
        self._changes.notify()

    def last(self, entry: JobRecord) -> float | None:
        """Return when an offer was shown last."""
        if (shown := self._shown.get(entry.job.id)) is not None:
            return shown
        # Before this start of the agent: the offer was the last change.
        return entry.changed_at if entry.state is State.OFFERED else entry.shown_at

    async def run(self) -> None:
        """Show offers again in time, until cancelled."""
        while True:
            number = self._changes.number
            self._forget()
            now = time.time()
            due = {entry.job.id: self._due(entry, now) for entry in self._entries.all()}
            for job_id, at in due.items():
                if at <= now and (entry := self._entries.get(job_id)):
                    _log.info("job.reminded", job=job_id, name=entry.job.title)
                    self.show(entry)
            rest = min(due.values(), default=NEVER) - now
            await self._changes.wait_beyond(number, min(max(rest, 0), _LONGEST_SLEEP))
            await asyncio.sleep(_PAUSE)

    def _due(self, entry: JobRecord, now: float) -> float:
        if entry.state is not State.OFFERED:
            return NEVER
        if (asked := self._asked.get(entry.job.id)) is not None:
            return asked
        if entry.job.requirement is Requirement.MANDATORY:
            return NEVER  # its countdown reminds
        # In the future: the clock was set back since.
        return min(self.last(entry) or now, now) + self._interval

    def _forget(self) -> None:
        for job_id in self._shown.keys() | self._asked.keys():
            entry = self._entries.get(job_id)
            if entry is None:
                self._shown.pop(job_id, None)
            if entry is None or entry.state is not State.OFFERED:
                self._asked.pop(job_id, None)
