"""Starts the scheduler's ready jobs, a limited number at a time."""

import asyncio

from agents.jobs.executor import Executor
from agents.jobs.job_claims import JobClaims
from agents.jobs.open_jobs import OpenJobs
from agents.jobs.scheduler import Scheduler
from agents.store.transaction import JobRecord
from schemas import State
from schemas.policy import Next, Step


class Workers:
    """Runs the scheduler's ready jobs until `stop`."""

    def __init__(
        self, scheduler: Scheduler, open_jobs: OpenJobs, claims: JobClaims, executor: Executor
    ) -> None:
        self._scheduler = scheduler
        self._open_jobs = open_jobs
        self._claims = claims
        self._executor = executor
        self._stopped = False

    def stop(self) -> None:
        """Start no more jobs; running commands continue."""
        self._stopped = True

    async def run(self, count: int) -> None:
        """Run up to `count` jobs at a time, until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            for _ in range(count):
                tasks.create_task(self._work())

    async def _work(self) -> None:
        while True:
            _, job_id = await self._scheduler.ready.get()
            try:
                self._open_jobs.look_at_clock()
                record = self._open_jobs.get(job_id)
                if record and self._scheduler.is_due(record) and not self._stopped:
                    await self._run(record)
            finally:
                self._open_jobs.release(job_id)

    async def _run(self, record: JobRecord) -> None:
        with self._executor.register(record) as run:
            if (obstacle := await self._executor.prepare(record, run)) is not None:
                await self._do_not_start(record, *obstacle)
            elif record.starts or await self._claims.decide(record, State.STARTED):
                await self._executor.complete(record.job.id, run)
            else:
                self._claims.yield_to_holder(record)

    async def _do_not_start(self, record: JobRecord, state: State, reason: str) -> None:
        """End a job that cannot start, or leave it to the scheduler."""
        if state is State.CANCELLED:
            self._open_jobs.change(record, cancelled=reason)
        elif state.final and state is not State.INTERRUPTED:
            await self._scheduler.close(record, Next(Step.CLOSE, 0, state, reason))
