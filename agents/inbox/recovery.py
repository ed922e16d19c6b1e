"""What the broker's record can tell that a damaged or lost ledger cannot.

The stream holds every job as sent and every report. A service agent whose ledger was damaged
reads it before it goes on: what ended here is not run again, what was accepted is taken up. One
whose ledger is new asks it about jobs that are older than the ledger. Interactive agents do not
read it, since it tells of background jobs; the claims tell them what was decided. Nor do enrolled
agents: for their service, a background job that may have run is refused.
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

if TYPE_CHECKING:
    from broker.stream.entry import Record

_log = get_logger()
_CLOCK_SKEW = 600.0


@dataclass
class _Story:
    """What the stream tells of one job, as far as this workstation goes."""

    job: Job | None = None
    cancelled: str | None = None
    reports: list[Report] = field(default_factory=list)

    @property
    def final(self) -> Report | None:
        return next((report for report in self.reports if report.state.final), None)

    def by(self, agent: str, state: State | None = None) -> bool:
        """Whether an agent reported anything, or a state."""
        return any(
            report.agent == agent and state in (None, report.state) for report in self.reports
        )


class Recovery:
    """Makes a ledger good from the stream."""

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

    async def make_good(self, connection: AbstractConnection, publisher: Publisher) -> None:
        """Report a damage, and take up the jobs of the damaged ledger."""
        life = await self._ledger.commit(Transaction.life)
        if not life.damage:
            return
        await self._tell(publisher, life)
        keep = self._settings.keep.total_seconds()
        stories = await self._stories(connection, publisher, time.time() - keep)
        mended = await self._ledger.commit(lambda tables: self._mend(tables, life, stories))
        _log.info("ledger.mended", open=len(mended), jobs_in_stream=len(stories))
        for entry in mended:
            self._admission.open(entry)

    async def ended_here(
        self, connection: AbstractConnection, publisher: Publisher, jobs: Collection[Job]
    ) -> dict[str, JobRecord]:
        """Return entries for those jobs that were run here, or begun, before this ledger was."""
        since = min(job.created_at.timestamp() for job in jobs) - _CLOCK_SKEW
        stories = await self._stories(connection, publisher, since)
        found = {}
        for job in jobs:
            if (story := stories.get(job.id)) and (entry := self._past(job, story)):
                found[job.id] = entry
        return found

    async def _tell(self, publisher: Publisher, life: LedgerMetadata) -> None:
        """Tell the administrators, where they look for what could not be read."""
        identity = self._identity
        await stream.append(
            publisher,
            topology.report_key("dead", identity.workstation, identity.name),
            json.dumps({"damage": life.damage, "ledger": str(self._ledger.path)}).encode(),
            kind="ledger",
            headers={
                "reason": f"the ledger was damaged: {life.damage}",
                "workstation": identity.workstation,
                "agent": identity.name,
            },
        )

    async def _stories(
        self, connection: AbstractConnection, publisher: Publisher, since: float
    ) -> dict[str, _Story]:
        stories: dict[str, _Story] = {}
        untrusted: Counter[str] = Counter()
        if self._identity.kind is not AgentKind.SERVICE or self._settings.enrolled:
            return stories
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
                            _tell_on(stories, record, here)
        except Refused as error:
            _log.warning("stream.unreadable", reason=str(error))
        for reason, count in untrusted.items():
            _log.warning("stream.untrusted", records=count, reason=reason)
        return stories

    def _objection(self, record: "Record", entry: StreamEntry) -> str:
        """Return why a record is not believed: whoever may publish can write into the stream."""
        if self._trust is None or not isinstance(record, Job | Cancellation):
            return ""
        reason = self._trust.objection(record, entry.body, entry.signatures)
        if not reason and isinstance(record, Job):
            # Sent again by somebody: what is too old for the queue is too old for a lost ledger.
            reason = self._trust.stale(record, datetime.now(UTC))
        return reason

    def _mend(
        self, tables: Transaction, life: LedgerMetadata, stories: dict[str, _Story]
    ) -> list[JobRecord]:
        """Bring the ledger in step with the stream; return the entries that are open then."""
        now = time.time()
        known = {entry.job.id: entry for entry in tables.open()}
        for job_id, story in stories.items():
            job = story.job
            if entry := known.get(job_id):
                if past := self._past(entry.job, story):
                    tables.save(replace(past, received_at=entry.received_at, starts=past.starts))
            elif (
                job is not None
                and not tables.knows(job_id)
                and self._was_accepted(job, story, life)
            ):
                tables.insert(self._past(job, story) or JobRecord(job, now, changed_at=now))
            if story.cancelled is not None:
                tables.remember_cancellation(job_id, story.cancelled, now)
        if self._settings.enrolled and self._identity.kind is AgentKind.SERVICE:
            self._distrust(tables, now)
            tables.mended(now)
        else:
            tables.mended()
        found = []
        for entry in tables.open():
            told = stories.get(entry.job.id)
            cancelled = entry.cancelled if told is None else told.cancelled or entry.cancelled
            found.append(replace(entry, cancelled=cancelled))
        return found

    def _distrust(self, tables: Transaction, now: float) -> None:
        """Refuse what a damaged ledger says is still to be run: it may have been, since.

        Users' jobs are not among it: the claims tell what was decided.
        """
        reason = "the ledger was damaged: whether it ran here is not known; send it as a new job"
        for entry in tables.open():
            if entry.job.context is Context.BACKGROUND and entry.state is not State.STARTED:
                final = self._identity.report(entry.job.id, State.REFUSED, reason)
                tables.report(final)
                tables.save(
                    replace(entry, state=final.state, open=False, changed_at=now, final=final)
                )

    def _past(self, job: Job, story: _Story) -> JobRecord | None:
        """Return the entry of a job that was ended or begun here; None if it was neither."""
        now = time.time()
        if final := story.final:
            return JobRecord(
                job, now, final.state, open=False, changed_at=now, final=final, starts=1
            )
        if story.by(self._identity.name, State.STARTED):
            return JobRecord(job, now, State.STARTED, changed_at=now, starts=1)
        return None

    def _was_accepted(self, job: Job, story: _Story, life: LedgerMetadata) -> bool:
        """Whether the damaged ledger must have held a job."""
        mine = workstation(self._identity.workstation)
        if targets(self._settings).isdisjoint(job.targets):
            return False
        return (
            story.by(self._identity.name)
            or mine in job.targets
            or job.created_at.timestamp() >= life.made_at
        )


def _tell_on(stories: dict[str, _Story], record: "Record", here: str) -> None:
    if isinstance(record, Report):
        if record.workstation == here:
            stories.setdefault(record.job_id, _Story()).reports.append(record)
    elif isinstance(record, Job):
        stories.setdefault(record.id, _Story()).job = record
    elif isinstance(record, Cancellation) and record.concerns(here):
        stories.setdefault(record.job_id, _Story()).cancelled = record.reason
