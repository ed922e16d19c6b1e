"""Limits how long the service agent waits for users' agents that claimed a job.

An agent that holds a claim may be counting down or running the command. It may also be frozen, or
a user's program may hold the claim without running the job. Each wait has a limit, counted from
the moment when the service agent first found the claim.
"""

import time

from agents.claims.claim_file import ClaimRecord
from agents.claims.claims import Claims
from agents.settings import AgentSettings
from agents.store.transaction import JobRecord
from schemas import State
from schemas.policy import MAX_STARTS

_MAX_PAUSE = 60.0
_HANDOVER = 10.0  # seconds; another user's agent tries again after one
_MARGIN = 60.0  # extra seconds for processes that end slowly and for a busy machine


class Takeover:
    """The service agent's waits for other agents' claims."""

    def __init__(self, settings: AgentSettings, claims: Claims) -> None:
        self._settings = settings
        self._claims = claims
        self._undecided: dict[str, float] = {}  # monotonic time of the first wait, by job id
        self._free: dict[str, float] = {}
        self._running: dict[str, float] = {}
        self._orphaned: dict[str, float] = {}
        self._waits = (self._undecided, self._free, self._running, self._orphaned)

    @property
    def pause(self) -> float:
        """Seconds until a job that another agent runs is checked again."""
        return min(_MAX_PAUSE, self._missing_after / 2 + 1)

    @property
    def _missing_after(self) -> float:
        return self._settings.missing_after.total_seconds()

    def force(self, job_id: str, state: State) -> bool:
        """Decide a job whose claim is held undecided for longer than a countdown may take.

        Returns:
            Whether it is decided; False while the wait continues.
        """
        if self._claims.decision(job_id) is not None:
            return False
        limit = self._settings.countdown.total_seconds() + self._missing_after
        overdue = _seconds_since_first(self._undecided, job_id) >= limit
        return overdue and self._claims.force(job_id, None, state)

    def awaits_handover(self, job_id: str, *, accepted: bool) -> bool:
        """Whether a user's agent may still take a free claim.

        It was held until now and was released for that agent, or `accepted`: its user said run.
        """
        if not accepted and job_id not in self._undecided:
            return False
        if not self._claims.take(job_id):
            self._free.pop(job_id, None)
            return False
        if _seconds_since_first(self._free, job_id) >= _HANDOVER:
            return False
        self._claims.release(job_id)
        return True

    def conclude(self, record: JobRecord, decision: ClaimRecord) -> str:
        """Conclude a job that another agent started, if that agent ended or exceeded its limit.

        Returns:
            The reason for the final report; an empty text while the wait continues.
        """
        job_id, command = record.job.id, record.job.command
        waited = _seconds_since_first(self._running, job_id)
        if not self._claims.orphaned(job_id):
            self._orphaned.pop(job_id, None)
            run_limit = command.timeout + self._settings.stop_grace
            starts = MAX_STARTS if command.rerun_interrupted else 1
            limit = starts * run_limit.total_seconds() + self._missing_after + _MARGIN
            if waited >= limit and self._claims.force(job_id, decision, State.INTERRUPTED):
                return f"{decision.agent} has held it for longer than its command may run"
            return ""
        if command.rerun_interrupted and record.expires_at > time.time():
            return ""  # the user's agent may start again before the expiry, and rerun the job
        waited = _seconds_since_first(self._orphaned, job_id)
        if waited >= self._missing_after and self._claims.adopt(job_id):
            return f"{decision.agent} ended while it ran, and did not start again"
        return ""

    def forget(self, job_id: str) -> None:
        """Forget a job that has ended."""
        for waits in self._waits:
            waits.pop(job_id, None)

    def known(self) -> set[str]:
        """Return the ids of all jobs with a wait."""
        return set().union(*self._waits)


def _seconds_since_first(waits: dict[str, float], job_id: str) -> float:
    """Return the seconds since the first call for a job."""
    now = time.monotonic()
    return now - waits.setdefault(job_id, now)
