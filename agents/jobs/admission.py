"""Opens jobs of the ledger: new ones, and those of a former run of the agent."""

import asyncio
import time

from agents.claims.claim_file import UNKNOWN
from agents.claims.claims import Claims
from agents.content.contents import Contents
from agents.identity import Identity
from agents.jobs.cancellation import Cancellations
from agents.jobs.executor import Executor
from agents.jobs.open_jobs import OpenJobs
from agents.jobs.scheduler import Scheduler
from agents.settings import AgentSettings
from agents.store.transaction import JobRecord
from agents.tasks import BackgroundTasks
from broker.log import get_logger
from schemas import Context, State
from schemas.policy import Next, Step

_log = get_logger()
_RETRY = 0.1  # seconds


class Admission:
    """Registers jobs as open and starts the work that they need."""

    def __init__(
        self,
        settings: AgentSettings,
        identity: Identity,
        open_jobs: OpenJobs,
        claims: Claims,
        scheduler: Scheduler,
        executor: Executor,
        cancellations: Cancellations,
        contents: Contents,
        tasks: BackgroundTasks,
    ) -> None:
        self._identity = identity
        self._open_jobs = open_jobs
        self._claims = claims
        self._scheduler = scheduler
        self._executor = executor
        self._cancellations = cancellations
        self._contents = contents
        self._tasks = tasks
        self._retention = settings.keep.total_seconds()
        self._downtime = 0.0

    def accept(self, record: JobRecord) -> None:
        """Open a newly received job."""
        _log.info("job.received", job=record.job.id, name=record.job.title)
        self.open(record)

    def restore(self, records: list[JobRecord], seen_at: float) -> None:
        """Open the jobs of a former run of this agent, which last ran at `seen_at`."""
        self._claims.conclude_all({record.job.id for record in records})
        self._downtime = time.time() - seen_at
        for record in records:
            self.open(record)

    def open(self, record: JobRecord) -> None:
        """Open a job of the ledger in any state."""
        job = record.job
        self._contents.want(record)
        self._open_jobs.add(record)
        self._scheduler.hold_back_later_jobs(record)
        if record.state is State.STARTED:
            self._open_jobs.mark_busy(job.id)
            self._tasks.start(self._resume(record))
        elif job.context is Context.FOREGROUND and self._downtime > self._retention:
            self._open_jobs.mark_busy(job.id)
            reason = "its agent was down for longer than claims are kept"
            following = Next(Step.CLOSE, 0, State.EXPIRED, reason)
            self._tasks.start(self._scheduler.close(record, following))
        self._cancellations.supersede(record)

    async def _resume(self, record: JobRecord) -> None:
        """Resume a job whose command was running when a former run of this agent ended."""
        job_id = record.job.id
        try:
            while record.job.context is Context.FOREGROUND and not self._claims.resume(job_id):
                decision = self._claims.decision(job_id)
                if decision is None or decision.agent == UNKNOWN:
                    break  # the claim was removed or damaged; the ledger decides
                if decision.agent != self._identity.name:
                    self._open_jobs.change(record, open=False)
                    return
                if not decision.running:
                    break
                await asyncio.sleep(_RETRY)  # another agent holds the lock while it tests it
            await self._executor.resume_after_restart(record)
        finally:
            self._open_jobs.release(job_id)
