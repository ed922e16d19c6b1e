"""Whether the agent is paused: it takes jobs in, and starts none."""

import asyncio

from agents.changes import Changes
from agents.jobs.open_jobs import OpenJobs
from broker.log import get_logger
from schemas import Pause

_log = get_logger()


class PauseState:
    """The last pause message that this agent took in."""

    def __init__(self, open_jobs: OpenJobs, changes: Changes) -> None:
        self._open_jobs = open_jobs
        self._changes = changes
        self.message: Pause | None = None
        self.changed = asyncio.Event()
        """Set when a check-in is due, since the pause is another one."""

    @property
    def paused(self) -> bool:
        """Whether the agent starts nothing."""
        return self.message is not None and self.message.paused

    def restore(self, message: Pause | None) -> None:
        """Restore the pause that the ledger holds."""
        self.message = message

    def apply(self, message: Pause) -> None:
        """Start nothing more, or go on with what became due meanwhile."""
        event = "agent.paused" if message.paused else "agent.resumed"
        _log.info(event, by=message.sender, reason=message.reason or None)
        former, self.message = self.message, message
        before = (former.paused, former.reason) if former else (False, "")
        if (message.paused, message.reason) != before:
            self.changed.set()
        self._changes.tell()
        if not message.paused:
            self._open_jobs.wake_all()
