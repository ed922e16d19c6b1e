"""Jobs that are not wanted any more: cancelled, or replaced by newer ones."""

from agents.jobs.executor import Executor
from agents.jobs.open_jobs import OpenJobs
from agents.store.transaction import JobRecord, superseded_by
from broker.log import get_logger
from schemas import Cancellation

_log = get_logger()


class Cancellations:
    """Withdraws an agent's open jobs."""

    def __init__(self, open_jobs: OpenJobs, executor: Executor) -> None:
        self._open_jobs = open_jobs
        self._executor = executor

    def supersede(self, newer: JobRecord) -> None:
        """Withdraw the older jobs of the same key that have not started."""
        key, age = newer.job.supersedes, (newer.job.created_at, newer.job.id)
        if key is None or newer.cancelled is not None:
            return
        for entry in self._open_jobs.all():
            job = entry.job
            if job.supersedes == key and (job.created_at, job.id) < age and not entry.starts:
                self._withdraw(entry, superseded_by(newer.job.id))

    def cancel(self, cancellation: Cancellation) -> None:
        """Withdraw a job that was cancelled; where it runs, its command is ended."""
        if entry := self._open_jobs.get(cancellation.job_id):
            self._withdraw(entry, cancellation.reason)
            self._executor.cancel(entry.job.id, cancellation.reason)

    def _withdraw(self, entry: JobRecord, reason: str) -> None:
        if entry.cancelled is None and not self._executor.has(entry.job.id):
            _log.info("job.cancelled", job=entry.job.id, reason=reason)
            self._open_jobs.change(entry, cancelled=reason)
