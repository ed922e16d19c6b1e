"""Recovers a damaged or lost ledger from the stream.

The stream holds every sent job and every report. A service agent whose ledger was damaged reads
the stream before it continues: jobs that ended here are not run again, accepted jobs are opened.
A service agent with a new ledger looks up jobs that are older than the ledger. Interactive agents
do not read the stream, since it has background jobs; the claims record the decisions about
foreground jobs. Enrolled agents may not read the stream: their service agent refuses background
jobs that may have run.
"""

import json
import time
from collections import Counter
from collections.abc import Collection
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from aio_pika.abc import AbstractConnection

from agents.identity import Identity
from agents.inbox.trust import Trust
from agents.jobs.admission import Admission
from agents.jobs.host import targets
from agents.settings import AgentSettings
from agents.store.ledger import Ledger
from agents.store.transaction import JobRecord, LedgerMetadata, Transaction
from broker.amqp import topology
from broker.amqp.connection import Refused
from broker.amqp.publisher import Publisher
from broker.amqp.topology import AgentKind
from broker.log import get_logger
from broker.stream import stream
from broker.stream.entry import StreamEntry
from schemas import Cancellation, Context, Job, Report, State, workstation
from schemas.reports.reporters import Reporters

if TYPE_CHECKING:
    from broker.stream.entry import Record

_log = get_logger()
_CLOCK_SKEW = 600.0


@dataclass
class _JobHistory:
    """The stream's records of one job on this workstation."""

    job: Job | None = None
    cancelled: str | None = None
    reports: list[Report] = field(default_factory=list)

    def final(self, job: Job) -> Report | None:
        """Return the final report of an agent that can have the job."""
        reporters = Reporters.of(job)
        return next(
            (
                report
                for report in self.reports
                if report.state.final and not reporters.objection(report.workstation, report.agent)
            ),
            None,
        )

    def has_report(self, agent: str, state: State | None = None) -> bool:
        """Whether an agent reported the job, in a given state or in any."""
        return any(
            report.agent == agent and state in (None, report.state) for report in self.reports
        )


class Recovery:
    """Recovers job records from the stream."""

    def __init__(
        self,
        identity: Identity,
        settings: AgentSettings,
        ledger: Ledger,
        trust: Trust | None,
        admission: Admission,
    ) -> None:
        self._trust = trust
        self._identity = identity
        self._settings = settings
        self._ledger = ledger
        self._admission = admission

    async def recover(self, connection: AbstractConnection, publisher: Publisher) -> None:
        """If the ledger was damaged: report it, repair the ledger and open its jobs."""
        metadata = await self._ledger.commit(Transaction.metadata)
        if not metadata.damage:
            return
        await self._report_damage(publisher, metadata)
        retention = self._settings.keep.total_seconds()
        histories = await self._read_histories(connection, publisher, time.time() - retention)
        repaired = await self._ledger.commit(
            lambda transaction: self._repair(transaction, metadata, histories)
        )
        _log.info("ledger.repaired", open=len(repaired), jobs_in_stream=len(histories))
        for job_record in repaired:
            self._admission.open(job_record)

    async def former_records(
        self, connection: AbstractConnection, publisher: Publisher, jobs: Collection[Job]
    ) -> dict[str, JobRecord]:
        """Return records of those jobs that were started or ended here before this ledger."""
        since = min(job.created_at.timestamp() for job in jobs) - _CLOCK_SKEW
        histories = await self._read_histories(connection, publisher, since)
        records = {}
        for job in jobs:
            if (history := histories.get(job.id)) and (former := self._former_record(job, history)):
                records[job.id] = former
        return records

    async def _report_damage(self, publisher: Publisher, metadata: LedgerMetadata) -> None:
        """Report the damage to the administrators as a dead letter."""
        identity = self._identity
        await stream.append(
            publisher,
            topology.report_key("dead", identity.workstation, identity.name),
            json.dumps({"damage": metadata.damage, "ledger": str(self._ledger.path)}).encode(),
            kind="ledger",
            headers={
                "reason": f"the ledger was damaged: {metadata.damage}",
                "workstation": identity.workstation,
                "agent": identity.name,
            },
        )

    async def _read_histories(
        self, connection: AbstractConnection, publisher: Publisher, since: float
    ) -> dict[str, _JobHistory]:
        histories: dict[str, _JobHistory] = {}
        untrusted: Counter[str] = Counter()
        if self._identity.kind is not AgentKind.SERVICE or self._settings.enrolled:
            return histories
        here = self._identity.workstation
        start = datetime.fromtimestamp(max(0.0, since), UTC)
        try:
            async with aclosing(stream.read_all(connection, publisher, start)) as entries:
                async for entry in entries:
                    if entry.kind == "report" and here.encode() not in entry.body:
                        continue
                    for record in entry.records():
                        if reason := self._objection(record, entry):
                            untrusted[reason] += 1
                        else:
                            _add_record(histories, record, here)
        except Refused as error:
            _log.warning("stream.unreadable", reason=str(error))
        for reason, count in untrusted.items():
            _log.warning("stream.untrusted", records=count, reason=reason)
        return histories

    def _objection(self, record: "Record", entry: StreamEntry) -> str:
        """Return why a record is not trusted; other publishers can write to the stream, too."""
        if self._trust is None or not isinstance(record, Job | Cancellation):
            return ""
        reason = self._trust.objection(record, entry.body, entry.signatures)
        if not reason and isinstance(record, Job):
            # The age limit of the queue also applies to old jobs that were published again.
            reason = self._trust.stale(record, datetime.now(UTC))
        return reason

    def _repair(
        self, transaction: Transaction, metadata: LedgerMetadata, histories: dict[str, _JobHistory]
    ) -> list[JobRecord]:
        """Update the ledger from the stream; return the records that are open afterwards."""
        now = time.time()
        known = {open_record.job.id: open_record for open_record in transaction.open_records()}
        for job_id, history in histories.items():
            job = history.job
            if open_record := known.get(job_id):
                if former := self._former_record(open_record.job, history):
                    transaction.save(replace(former, received_at=open_record.received_at))
            elif (
                job is not None
                and not transaction.knows(job_id)
                and self._must_have_accepted(job, history, metadata)
            ):
                transaction.insert(
                    self._former_record(job, history) or JobRecord(job, now, changed_at=now)
                )
            if history.cancelled is not None:
                transaction.remember_cancellation(job_id, history.cancelled, now)
        if self._settings.enrolled and self._identity.kind is AgentKind.SERVICE:
            self._refuse_background_jobs(transaction, now)
            transaction.mark_repaired(now)
        else:
            transaction.mark_repaired()
        records = []
        for open_record in transaction.open_records():
            cancelled = open_record.cancelled
            if job_history := histories.get(open_record.job.id):
                cancelled = job_history.cancelled or cancelled
            records.append(replace(open_record, cancelled=cancelled))
        return records

    def _refuse_background_jobs(self, transaction: Transaction, now: float) -> None:
        """Refuse the open background jobs of a damaged ledger that may have run.

        Foreground jobs stay open, since the claims record their decisions.
        """
        reason = "the ledger was damaged: whether it ran here is not known; send it as a new job"
        for record in transaction.open_records():
            if record.job.context is Context.BACKGROUND and record.state is not State.STARTED:
                final = self._identity.report(record.job.id, State.REFUSED, reason)
                transaction.add_report(final)
                transaction.save(
                    replace(record, state=final.state, open=False, changed_at=now, final=final)
                )

    def _former_record(self, job: Job, history: _JobHistory) -> JobRecord | None:
        """Return the record of a job that ended or started here; None if it did neither."""
        now = time.time()
        if final := history.final(job):
            return JobRecord(
                job, now, final.state, open=False, changed_at=now, final=final, starts=1
            )
        if history.has_report(self._identity.name, State.STARTED):
            return JobRecord(job, now, State.STARTED, changed_at=now, starts=1)
        return None

    def _must_have_accepted(self, job: Job, history: _JobHistory, metadata: LedgerMetadata) -> bool:
        """Whether the damaged ledger must have contained a job."""
        own_target = workstation(self._identity.workstation)
        if targets(self._settings).isdisjoint(job.targets):
            return False
        return (
            history.has_report(self._identity.name)
            or own_target in job.targets
            or job.created_at.timestamp() >= metadata.made_at
        )


def _add_record(histories: dict[str, _JobHistory], record: "Record", here: str) -> None:
    if isinstance(record, Report):
        if record.workstation == here:
            histories.setdefault(record.job_id, _JobHistory()).reports.append(record)
    elif isinstance(record, Job):
        histories.setdefault(record.id, _JobHistory()).job = record
    elif isinstance(record, Cancellation) and record.concerns(here):
        histories.setdefault(record.job_id, _JobHistory()).cancelled = record.reason
