"""Cancels open jobs: by an order, or because a newer job supersedes them."""

from agents.jobs.executor import Executor
from agents.jobs.open_jobs import OpenJobs
from agents.store.transaction import JobRecord, superseded_by
from broker.log import get_logger
from schemas import Cancellation

_log = get_logger()


class Cancellations:
    """Cancels an agent's open jobs."""

    def __init__(self, open_jobs: OpenJobs, executor: Executor) -> None:
        self._open_jobs = open_jobs
        self._executor = executor

    def supersede(self, newer: JobRecord) -> None:
        """Cancel the older jobs with the same key that have not started."""
        key, age = newer.job.supersedes, (newer.job.created_at, newer.job.id)
        if key is None or newer.cancelled is not None:
            return
        for record in self._open_jobs.all():
            job = record.job
            if job.supersedes == key and (job.created_at, job.id) < age and not record.starts:
                self._cancel(record, superseded_by(newer.job.id))

    def cancel(self, cancellation: Cancellation) -> None:
        """Cancel a job, and stop its command if it runs."""
        if record := self._open_jobs.get(cancellation.job_id):
            self._cancel(record, cancellation.reason)
            self._executor.cancel(record.job.id, cancellation.reason)

    def _cancel(self, record: JobRecord, reason: str) -> None:
        if record.cancelled is None and not self._executor.has(record.job.id):
            _log.info("job.cancelled", job=record.job.id, reason=reason)
            self._open_jobs.change(record, cancelled=reason)
