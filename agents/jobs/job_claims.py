"""Which agent of the workstation starts or ends a job: this one, or one that claimed it first."""

import time

from agents.claims.claim_file import UNKNOWN, ClaimRecord
from agents.claims.claims import Claims
from agents.identity import Identity
from agents.jobs.open_jobs import OpenJobs
from agents.jobs.takeover import Takeover
from agents.settings import AgentSettings
from agents.store.threads import Threads
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
_THREADS = 4


class JobClaims:
    """Decides by the workstation's claims; a background job is the service's without one."""

    def __init__(
        self, settings: AgentSettings, identity: Identity, claims: Claims, open_jobs: OpenJobs
    ) -> None:
        self._settings = settings
        self._identity = identity
        self._claims = claims
        self._open_jobs = open_jobs
        self._takeover = Takeover(settings, claims)
        self._threads = Threads(_THREADS, "decide")  # a claim is a file, and may lie on a slow disk
        self._retry_at: dict[str, float] = {}  # by the monotonic clock

    def holds(self, job_id: str) -> bool:
        """Whether this agent holds the job's claim."""
        return self._claims.holds(job_id)

    def take(self, job_id: str) -> bool:
        """Take the job's claim, if it is free."""
        return self._claims.take(job_id)

    def is_decided(self, record: JobRecord) -> bool:
        """Whether an agent has decided what becomes of the job."""
        return self._claims.decision(record.job.id) is not None

    def is_decided_elsewhere(self, record: JobRecord) -> bool:
        """Whether another agent has decided what becomes of the job."""
        decision = self._claims.decision(record.job.id)
        return decision is not None and decision.agent != self._identity.name

    def wait(self, job_id: str) -> float:
        """Return for how many seconds the job is left alone; 0 or less: no longer."""
        return self._retry_at.get(job_id, 0.0) - time.monotonic()

    async def decide(self, record: JobRecord, state: State) -> bool:
        """Decide what becomes of a job; return False if another agent has decided it."""
        if record.job.context is Context.BACKGROUND:
            return True
        job_id = record.job.id
        if await self._threads.call(lambda: self._claims.decide(job_id, state)):
            return True
        if self._identity.kind is not AgentKind.SERVICE:
            return False
        return await self._threads.call(lambda: self._takeover.overrule(job_id, state))

    def yield_to_holder(self, record: JobRecord) -> None:
        """Leave a job to the agent that holds or has decided its claim, or speak for that agent."""
        decision = self._claims.decision(record.job.id)
        if decision is None:
            self._look_again(record, _RETRY)
        elif decision.agent == self._identity.name or self._is_unreadable_for_us(decision):
            # This agent decided, and ended before its ledger had it.
            state = State(decision.state) if decision.state in _NOT_STARTED else State.INTERRUPTED
            reason = "the agent ended while it decided"
            if decision.agent == UNKNOWN:
                reason = "its claim cannot be read: whether another agent started it is not known"
            self._open_jobs.end(record, state, reason)
        elif decision.running and self._identity.kind is AgentKind.SERVICE:
            if reason := self._takeover.conclude(record, decision):
                self._open_jobs.end(record, State.INTERRUPTED, reason)
            else:
                self._look_again(record, self._takeover.pause)
        else:
            self._open_jobs.change(record, open=False)

    async def forget(self, before: float) -> None:
        """Remove the claims of jobs that ended before a time, in seconds since the epoch."""
        await self._threads.call(lambda: self._claims.forget(before))
        for job_id in self._retry_at.keys() | self._takeover.known():
            if self._open_jobs.get(job_id) is None:
                self._retry_at.pop(job_id, None)
                self._takeover.forget(job_id)

    def close(self) -> None:
        """End the threads."""
        self._threads.close()

    def _is_unreadable_for_us(self, decision: ClaimRecord) -> bool:
        """Whether nobody can tell who decided: then the service speaks for it."""
        return decision.agent == UNKNOWN and self._identity.kind is AgentKind.SERVICE

    def _look_again(self, record: JobRecord, after: float) -> None:
        self._retry_at[record.job.id] = time.monotonic() + after
        self._open_jobs.wake(record.job.id, time.time() + after)
