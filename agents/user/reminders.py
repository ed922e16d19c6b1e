"""Show offers again: after the interval of the settings, or when the user asked for it.

Reminders are neither reported nor stored: after its next start the agent shows all offers.
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
_PAUSE = 0.2  # seconds for which changes are collected
_LONGEST_SLEEP = 600.0


class Reminders:
    """Keeps when each offer was shown last, and when it is shown again."""

    def __init__(self, interval: timedelta, open_jobs: OpenJobs, changes: Changes) -> None:
        self._interval = interval.total_seconds() or NEVER
        self._open_jobs = open_jobs
        self._changes = changes
        self._shown_at: dict[str, float] = {}
        self._remind_at: dict[str, float] = {}

    def show(self, entry: JobRecord) -> None:
        """Record that an offer is shown now."""
        self._shown_at[entry.job.id] = time.time()
        self._remind_at.pop(entry.job.id, None)
        self._changes.notify()

    def ask(self, entry: JobRecord, at: float) -> None:
        """Schedule the next reminder of an offer; it replaces the interval."""
        self._remind_at[entry.job.id] = at
        self._changes.notify()

    def last_shown_at(self, entry: JobRecord) -> float | None:
        """Return when an offer was shown last."""
        if (shown_at := self._shown_at.get(entry.job.id)) is not None:
            return shown_at
        # An earlier run of the agent showed it: the offer was the last change.
        return entry.changed_at if entry.state is State.OFFERED else entry.shown_at

    async def run(self) -> None:
        """Show offers again when they are due, until cancelled."""
        while True:
            number = self._changes.number
            self._forget()
            now = time.time()
            due = {entry.job.id: self._due(entry, now) for entry in self._open_jobs.all()}
            for job_id, at in due.items():
                if at <= now and (entry := self._open_jobs.get(job_id)):
                    _log.info("job.reminded", job=job_id, name=entry.job.title)
                    self.show(entry)
            delay = min(due.values(), default=NEVER) - now
            await self._changes.wait_beyond(number, min(max(delay, 0), _LONGEST_SLEEP))
            await asyncio.sleep(_PAUSE)

    def _due(self, entry: JobRecord, now: float) -> float:
        if entry.state is not State.OFFERED:
            return NEVER
        if (remind_at := self._remind_at.get(entry.job.id)) is not None:
            return remind_at
        if entry.job.requirement is Requirement.MANDATORY:
            return NEVER  # its countdown is the reminder
        # It is in the future if the clock was set back since.
        return min(self.last_shown_at(entry) or now, now) + self._interval

    def _forget(self) -> None:
        for job_id in self._shown_at.keys() | self._remind_at.keys():
            entry = self._open_jobs.get(job_id)
            if entry is None:
                self._shown_at.pop(job_id, None)
            if entry is None or entry.state is not State.OFFERED:
                self._remind_at.pop(job_id, None)
