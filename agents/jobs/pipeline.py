"""The components through which a job goes, from the ledger to its report."""

import asyncio
from pathlib import Path

from agents.changes import Changes
from agents.claims.claims import Claims
from agents.claims.standings import Standings
from agents.execution.sealing import Sealing
from agents.identity import Identity
from agents.jobs.admission import Admission
from agents.jobs.cancellation import Cancellations
from agents.jobs.clock import Clock
from agents.jobs.executor import Executor
from agents.jobs.job_claims import JobClaims
from agents.jobs.open_jobs import OpenJobs
from agents.jobs.pause import PauseState
from agents.jobs.scheduler import Scheduler
from agents.jobs.workers import Workers
from agents.outbox import Outbox
from agents.settings import AgentSettings
from agents.store.ledger import Ledger
from agents.tasks import BackgroundTasks
from schemas.policy import Rules


class JobPipeline:
    """Admission, schedule, claims and execution of an agent's jobs."""

    def __init__(
        self,
        settings: AgentSettings,
        identity: Identity,
        rules: Rules,
        directory: Path,
        ledger: Ledger,
        outbox: Outbox,
        sealing: Sealing,
        changes: Changes,
        tasks: BackgroundTasks,
        caught_up: asyncio.Event,
    ) -> None:
        self.claims = Claims(settings.state_dir, identity.name)
        self.standings = Standings(settings.state_dir, identity)
        self.open_jobs = OpenJobs(identity, ledger, self.claims, outbox, changes, Clock())
        self.job_claims = JobClaims(settings, identity, self.claims, self.open_jobs, self.standings)
        self.pause = PauseState(self.open_jobs, changes)
        self.executor = Executor(
            settings, identity, self.open_jobs, outbox, directory / "runs", sealing
        )
        self.scheduler = Scheduler(
            settings,
            identity,
            rules,
            self.open_jobs,
            self.job_claims,
            self.pause,
            sealing,
            self.executor,
            changes,
            tasks,
            caught_up,
        )
        self.workers = Workers(self.scheduler, self.open_jobs, self.job_claims, self.executor)
        self.cancellations = Cancellations(self.open_jobs, self.executor)
        self.admission = Admission(
            settings,
            identity,
            self.open_jobs,
            self.claims,
            self.scheduler,
            self.executor,
            self.cancellations,
            tasks,
        )

    def close(self) -> None:
        """Close the executor and the claims of this agent's jobs."""
        self.executor.close()
        self.job_claims.close()
