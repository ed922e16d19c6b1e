"""The pause state: a paused agent receives jobs and starts none."""

import asyncio

from agents.changes import Changes
from agents.jobs.open_jobs import OpenJobs
from broker.log import get_logger
from schemas import Pause

_log = get_logger()


class PauseState:
    """The last applied pause message."""

    def __init__(self, open_jobs: OpenJobs, changes: Changes) -> None:
        self._open_jobs = open_jobs
        self._changes = changes
        self.message: Pause | None = None
        self.changed = asyncio.Event()
        """Set when a check-in is due because the pause changed."""

    @property
    def paused(self) -> bool:
        """Whether the agent starts no jobs."""
        return self.message is not None and self.message.paused

    def restore(self, message: Pause | None) -> None:
        """Restore the pause from the ledger."""
        self.message = message

    def apply(self, message: Pause) -> None:
        """Pause, or resume and make all jobs due."""
        event = "agent.paused" if message.paused else "agent.resumed"
        _log.info(event, by=message.sender, reason=message.reason or None)
        former, self.message = self.message, message
        before = (former.paused, former.reason) if former else (False, "")
        if (message.paused, message.reason) != before:
            self.changed.set()
        self._changes.notify()
        if not message.paused:
            self._open_jobs.wake_all()
