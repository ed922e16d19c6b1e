"""How long the service agent waits for users' agents that have taken a job: not for ever.

Whoever holds a claim may be counting down, or running the command. A user may also hold one, or
write that they run the job, and do nothing; and an agent may be frozen. Each wait has its limit,
counted from when this agent first saw it.
"""

import time

from agents.claims.claim_file import ClaimRecord
from agents.claims.claims import Claims
from agents.jobs.executor import MOST_STARTS
from agents.settings import AgentSettings
from agents.store.transaction import JobRecord
from schemas import State

_LOOK = 60.0
_MARGIN = 60.0  # what processes that do not end, and a busy machine, may take on top


class Takeover:
    """The waits of a service agent for other agents' claims."""

    def __init__(self, settings: AgentSettings, claims: Claims) -> None:
        self._settings = settings
        self._claims = claims
        self._undecided: dict[str, float] = {}  # since when, by the monotonic clock
        self._running: dict[str, float] = {}
        self._orphaned: dict[str, float] = {}

    @property
    def pause(self) -> float:
        """After how many seconds to look again at what another agent runs."""
        return min(_LOOK, self._missing / 2 + 1)

    @property
    def _missing(self) -> float:
        return self._settings.missing_after.total_seconds()

    def overrule(self, job_id: str, state: State) -> bool:
        """Decide a job whose claim is held, but undecided, for longer than a user has to choose.

        Returns:
            Whether it is decided; False while it is waited for.
        """
        if self._claims.decision(job_id) is not None:
            return False
        limit = self._settings.countdown.total_seconds() + self._missing
        overdue = _since(self._undecided, job_id) >= limit
        return overdue and self._claims.overrule(job_id, None, state)

    def conclude(self, entry: JobRecord, decision: ClaimRecord) -> str:
        """Conclude a job that another agent started, if that agent is gone, or over its time.

        Returns:
            Why this agent speaks for it; nothing while it is waited for.
        """
        job_id, command = entry.job.id, entry.job.command
        held = _since(self._running, job_id)
        if not self._claims.orphaned(job_id):
            self._orphaned.pop(job_id, None)
            each = command.timeout + self._settings.stop_grace
            starts = MOST_STARTS if command.rerun_interrupted else 1
            limit = starts * each.total_seconds() + self._missing + _MARGIN
            if held >= limit and self._claims.overrule(job_id, decision, State.INTERRUPTED):
                return f"{decision.agent} has held it for longer than its command may run"
        # Until the expiry the user may be back, and an interrupted job may run again.
        elif command.rerun_interrupted and entry.expires_at > time.time():
            pass
        elif _since(self._orphaned, job_id) >= self._missing and self._claims.inherit(job_id):
            return f"{decision.agent} ended while it ran, and did not come back"
        return ""

    def forget(self, job_id: str) -> None:
        """Forget a job that has ended."""
        for waits in (self._undecided, self._running, self._orphaned):
            waits.pop(job_id, None)

    def known(self) -> set[str]:
        """Return the jobs that are, or were, waited for."""
        return {*self._undecided, *self._running, *self._orphaned}


def _since(waits: dict[str, float], job_id: str) -> float:
    """Return for how many seconds a job has been waited for, from now on if it was not."""
    now = time.monotonic()
    return now - waits.setdefault(job_id, now)
