"""Decides jobs by their claims: one agent of the workstation starts or ends each job."""

import time

from agents.claims.claim_file import UNKNOWN, ClaimRecord
from agents.claims.claims import Claims
from agents.claims.standings import Standings
from agents.identity import Identity
from agents.jobs.open_jobs import OpenJobs
from agents.jobs.takeover import Takeover
from agents.settings import AgentSettings
from agents.store.threads import ThreadPool
from agents.store.transaction import JobRecord
from broker.amqp.topology import AgentKind
from schemas import Context, State

_NOT_STARTED = frozenset(
    state
    for state in State
    if state.final
    and state not in (State.SUCCEEDED, State.FAILED, State.TIMED_OUT, State.INTERRUPTED)
)
_RETRY = 1.0
_GIVE_WAY = 10.0  # seconds; the other agent may be frozen
_THREADS = 4


class JobClaims:
    """Takes and decides claims; background jobs need none, only the service agent has them."""

    def __init__(
        self,
        settings: AgentSettings,
        identity: Identity,
        claims: Claims,
        open_jobs: OpenJobs,
        standings: Standings,
    ) -> None:
        self._settings = settings
        self._identity = identity
        self._claims = claims
        self._open_jobs = open_jobs
        self._standings = standings
        self._gave_way: dict[str, float] = {}  # monotonic time of the first time, by job id
        self._takeover = Takeover(settings, claims)
        self._threads = ThreadPool(_THREADS, "claims")  # a claim is a file; the disk may be slow
        self._retry_at: dict[str, float] = {}  # monotonic time by job id

    def holds(self, job_id: str) -> bool:
        """Whether this agent holds the job's claim."""
        return self._claims.holds(job_id)

    def take(self, job_id: str) -> bool:
        """Take the job's claim, if it is free and not to be left to another user's agent."""
        return not self._prefers_other(job_id) and self._claims.take(job_id)

    def give_way(self, record: JobRecord) -> bool:
        """Release a claim that another user's agent is to have; return whether it is released."""
        job_id = record.job.id
        if not self._claims.holds(job_id) or not self._prefers_other(job_id):
            return False
        self._claims.release(job_id)
        self._retry(record, _RETRY)
        return True

    def _prefers_other(self, job_id: str) -> bool:
        """Whether the job is due in another session that comes first; for some seconds only."""
        if not self._standings.prefers_other(job_id, time.time()):
            return False
        now = time.monotonic()
        return now - self._gave_way.setdefault(job_id, now) < _GIVE_WAY

    def is_decided(self, record: JobRecord) -> bool:
        """Whether an agent has decided the job."""
        return self._claims.decision(record.job.id) is not None

    def is_decided_elsewhere(self, record: JobRecord) -> bool:
        """Whether another agent has decided the job."""
        decision = self._claims.decision(record.job.id)
        return decision is not None and decision.agent != self._identity.name

    def wait(self, job_id: str) -> float:
        """Return the seconds until the next attempt; 0 or less if it is due."""
        return self._retry_at.get(job_id, 0.0) - time.monotonic()

    async def decide(self, record: JobRecord, state: State) -> bool:
        """Decide a job; return False if another agent holds its claim or has decided it."""
        if record.job.context is Context.BACKGROUND:
            return True
        job_id = record.job.id
        if state is State.STARTED:
            if self._prefers_other(job_id):
                self._claims.release(job_id)
                return False
            if self._identity.kind is AgentKind.SERVICE and await self._threads.submit(
                lambda: self._is_left_to_user(job_id)
            ):
                return False
        if await self._threads.submit(lambda: self._claims.decide(job_id, state)):
            return True
        if self._identity.kind is not AgentKind.SERVICE:
            return False
        return await self._threads.submit(lambda: self._takeover.force(job_id, state))

    def _is_left_to_user(self, job_id: str) -> bool:
        """Whether the service agent leaves a free claim to a user's agent, for some seconds."""
        others = self._standings.others(job_id)
        accepted = any(other.accepted for _, other in others)
        return bool(others) and self._takeover.awaits_handover(job_id, accepted=accepted)

    def yield_to_holder(self, record: JobRecord) -> None:
        """Leave a job to the agent that holds or decided its claim, or end it for that agent."""
        decision = self._claims.decision(record.job.id)
        if decision is None:
            self._retry(record, _RETRY)
        elif decision.agent == self._identity.name or self._ends_unreadable(decision):
            # This agent decided, and ended before its ledger stored the decision.
            state = State(decision.state) if decision.state in _NOT_STARTED else State.INTERRUPTED
            reason = "the agent ended while it decided"
            if decision.agent == UNKNOWN:
                reason = "its claim cannot be read: another agent may have started it"
            self._open_jobs.end(record, state, reason)
        elif decision.running and self._identity.kind is AgentKind.SERVICE:
            if reason := self._takeover.conclude(record, decision):
                self._open_jobs.end(record, State.INTERRUPTED, reason)
            else:
                self._retry(record, self._takeover.pause)
        else:
            self._open_jobs.change(record, open=False)

    async def forget(self, before: float) -> None:
        """Remove the claims of jobs that ended before a time in seconds since the epoch."""
        await self._threads.submit(lambda: self._claims.forget(before))
        for job_id in self._retry_at.keys() | self._gave_way.keys() | self._takeover.known():
            if self._open_jobs.get(job_id) is None:
                self._retry_at.pop(job_id, None)
                self._gave_way.pop(job_id, None)
                self._takeover.forget(job_id)

    def close(self) -> None:
        """End the threads, and withdraw the standings."""
        self._threads.close()
        self._standings.close()

    def _ends_unreadable(self, decision: ClaimRecord) -> bool:
        """Whether a claim is unreadable and this agent, the service agent, ends its job."""
        return decision.agent == UNKNOWN and self._identity.kind is AgentKind.SERVICE

    def _retry(self, record: JobRecord, after: float) -> None:
        self._retry_at[record.job.id] = time.monotonic() + after
        self._open_jobs.wake(record.job.id, time.time() + after)
