"""Project the stream's entries onto the history's tables.

The tables do not depend on how the entries are divided into batches. A job's state on a workstation
depends only on the set of its reports (`schemas.reports.report.furthest`), not on their order. Only
for forgotten workstations, the offset in the stream matters.
"""

from collections.abc import Callable, Iterable, Sequence
from itertools import islice
from typing import TYPE_CHECKING, Any

from sqlalchemy import (
    Connection,
    Select,
    Table,
    bindparam,
    delete,
    exists,
    literal,
    select,
    union,
    update,
)

from broker.amqp.topology import agent_word
from broker.history.chunks import chunks
from broker.history.projection import check_ins, rejected
from broker.history.projection.early import early_row, take_back
from broker.history.projection.reports import ReportWriter
from broker.history.projection.upserts import EARLIER, put, upsert
from broker.history.schema import (
    agents,
    contents,
    early,
    jobs,
    machines,
    memberships,
    outcomes,
    packages,
    records,
    reports,
    workstations,
)
from broker.stream.entry import EntryRejected, StreamEntry
from schemas import (
    AgentsRevoked,
    Cancellation,
    CheckIn,
    Job,
    RejectedRecord,
    Report,
    State,
    WorkstationForgotten,
)
from schemas.orders.job import id_time
from schemas.reports.report import (
    SERVICE,
    Rank,
)
from schemas.reports.reporters import Reporters
from schemas.times import Moment, latest

if TYPE_CHECKING:
    from broker.stream.entry import Record

QUEUED = "queued"
UNREACHABLE = "unreachable"

_QUEUED_RANK = 0
# Higher than any report before a start: only later reports of a start replace it.
_FORGOTTEN_RANK, _FORGOTTEN_RANK_AT = Rank.ACCEPTED, 1e300
_ENTRIES = 200  # whose jobs are looked up together


def _names(table: Table) -> list[str]:
    return [column.name for column in table.columns]


_JOB = tuple(name for name in _names(jobs) if name != "id" and not name.startswith("cancel"))
_SEEN = (
    update(workstations)
    .where(workstations.c.name == bindparam("its_name"))
    .where(workstations.c.seen_offset < bindparam("its_offset"))
    .values(seen_at=bindparam("its_at"), seen_offset=bindparam("its_offset"))
)
_NOT_IN_RECORDS = {Report, CheckIn, Job, RejectedRecord}
Row = dict[str, Any]
_QUEUED_OUTCOME: Row = {"state": QUEUED, "rank": _QUEUED_RANK, "rank_at": 0.0, "rank_offset": 0}


class Projection:
    """Project entries in the order of the stream; `flush` writes the buffered rows."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._dialect = connection.dialect.name
        self._jobs: list[Row] = []
        self._expected: list[Row] = []
        self._reports = ReportWriter(connection)
        self._seen: dict[str, Row] = {}
        self._check_ins: list[tuple[CheckIn, int]] = []
        self._reported_jobs: dict[str, Row] = {}
        self._early: list[Row] = []
        self._rejected: set[int] = set()
        self._reporters: dict[str, Reporters | None] = {}
        """Who can have a job; None while only reports of it were read."""
        self._writers: dict[type[Record], Callable[[Any, int], None]] = {
            CheckIn: self._check_in,
            WorkstationForgotten: self._workstation_forgotten,
            AgentsRevoked: self._agents_revoked,
            Cancellation: self._cancellation,
            RejectedRecord: self._rejected_record,
        }

    def add(self, entries: Iterable[StreamEntry]) -> None:
        """Project entries."""
        left = iter(entries)
        while some := list(islice(left, _ENTRIES)):
            self._add(some)

    def _add(self, entries: list[StreamEntry]) -> None:
        read: list[tuple[StreamEntry, list[Record]]] = []
        for entry in entries:
            try:
                read.append((entry, entry.read()))
            except EntryRejected as error:
                rejected.record(self._connection, entry, str(error))
        self._look_up_jobs(record for _, found in read for record in found)
        for entry, found in read:
            for record in found:
                kind = type(record)
                if isinstance(record, Job):
                    self._job(record, entry)
                elif isinstance(record, Report):
                    self._report_of(record, entry)
                elif writer := self._writers.get(kind):
                    writer(record, entry.offset)
                if kind not in _NOT_IN_RECORDS:
                    self._record(record, entry)

    def flush(self) -> None:
        """Write the buffered rows."""
        check_ins.write(self._connection, self._check_ins)
        self._upsert(jobs, self._jobs, _JOB)
        self._upsert(outcomes, self._expected)
        self._upsert(jobs, list(self._reported_jobs.values()), EARLIER)
        self._upsert(early, self._early)
        self._reports.flush()
        if self._seen:
            self._connection.execute(_SEEN, list(self._seen.values()))
        for buffer in (
            self._check_ins, self._jobs, self._expected, self._reported_jobs, self._early,
            self._seen,
        ):  # fmt: skip
            buffer.clear()

    # Reports

    def _look_up_jobs(self, read: "Iterable[Record]") -> None:
        """Read who can have the jobs that records are about, as far as the jobs are known."""
        ids = {
            record.job_id if isinstance(record, Report) else record.id
            for record in read
            if isinstance(record, Report | Job)
        }
        unknown = list(ids - self._reporters.keys())
        for some in chunks(unknown):
            query = select(jobs.c.id, jobs.c.context, jobs.c.targets, jobs.c.body.is_(None))
            query = query.where(jobs.c.id.in_(some))
            for job_id, context, targets, is_unread in self._connection.execute(query):
                self._reporters[job_id] = None if is_unread else Reporters.parse(context, targets)

    def _report_of(self, report: Report, entry: StreamEntry) -> None:
        """Take in a report if its agent can have the job, or may have it: the job is not read."""
        reporters = self._reporters.setdefault(report.job_id, None)
        if reporters is None:
            self._early.append(early_row(report, entry))
        elif reason := reporters.objection(report.workstation, report.agent):
            self._reject(report, entry, reason)
            return
        self._report(report, entry.offset)

    def _learn(self, job: Job) -> None:
        """Learn who can have a job; weigh the reports again that were read before it."""
        if self._reporters.get(job.id) is not None:
            return
        reporters = Reporters.of(job)
        was_reported = job.id in self._reporters
        self._reporters[job.id] = reporters
        if was_reported:
            self.flush()
            for report, entry in take_back(self._connection, job.id, reporters):
                self._report_of(report, entry)

    def _reject(self, report: Report, entry: StreamEntry, reason: str) -> None:
        """Note a report that does not count; of an entry with several, the first."""
        if entry.offset not in self._rejected:
            self._rejected.add(entry.offset)
            text = f"{report.state} of {report.job_id} was reported: {reason}"
            rejected.record(self._connection, entry._replace(body=report.body()), text)

    def _report(self, report: Report, offset: int) -> None:
        at = report.timestamp
        self._reports.add(report, offset, at)
        if report.agent == SERVICE:  # a user's agent does not tell when the workstation was there
            name = report.workstation
            self._seen[name] = {"its_name": name, "its_at": at, "its_offset": offset}
        known = self._reported_jobs.get(report.job_id)
        if known is None:
            self._reported_jobs[report.job_id] = _reported_job(report, offset)
        elif at < known["created_at"]:
            known["created_at"] = _made_at(report)

    # Orders of administrators

    def _job(self, job: Job, entry: StreamEntry) -> None:
        self._learn(job)
        signed = entry.signatures and len(entry.body.splitlines()) == 1
        row = {
            "id": job.id,
            "offset": entry.offset,
            "name": job.title,
            "context": str(job.context),
            "requirement": str(job.requirement),
            "sender": job.sender,
            "targets": " ".join(map(str, job.targets)),
            "command": str(job.command),
            "created_at": job.created_at.timestamp(),
            "offer_at": _seconds(job.offer_at),
            "mandatory_at": _seconds(job.mandatory_at),
            "expires_at": _seconds(job.expiry),
            "rerun_of": job.rerun_of,
            "rollout": job.rollout,
            "schedule": job.schedule,
            # The signature is of the message's exact bytes; a signed message has one job.
            "body": entry.body if signed else job.body(),
            "signatures": entry.signatures if signed else "",
        }
        self._jobs.append(row)
        named = [
            {"job_id": job.id, "workstation": target.name, **_QUEUED_OUTCOME}
            for target in job.targets
            if target.scope == "workstation"
        ]
        if len(named) == len(job.targets) and not job.excluded:
            self._expected += named  # also unknown workstations
            return
        self.flush()
        self._exclude(job)
        self._upsert(outcomes, named)
        if len(named) < len(job.targets):
            self._expect(job)

    def _expect(self, job: Job) -> None:
        """Write queued outcomes for the known workstations that a job addresses."""
        columns = ["job_id", "workstation", *_QUEUED_OUTCOME]
        found = addressed(job).subquery()
        values = select(
            literal(job.id), found.c.name, *map(literal, _QUEUED_OUTCOME.values())
        ).where(
            literal(value=True)  # without it, SQLite parses the ON of ON CONFLICT as a join's
        )
        statement = upsert(self._dialect, outcomes, ())
        self._connection.execute(statement.from_select(columns, values))

    def _exclude(self, job: Job) -> None:
        """Write the outcome of excluded workstations, whose agents will report the same."""
        if not job.excluded:
            return
        named = {str(target.name) for target in job.targets if target.scope == "workstation"}
        reached = named | set(self._connection.scalars(addressed(job)))
        for target in job.excluded:
            of = job.model_copy(update={"targets": (target,)})
            known = set(self._connection.scalars(addressed(of)))
            excluded = {"state": str(State.NOT_APPLICABLE), "reason": f"left out: {target}"}
            self._upsert(
                outcomes,
                [
                    {"job_id": job.id, "workstation": name, **_QUEUED_OUTCOME, **excluded}
                    for name in reached & (known | {str(target.name)})
                ],
            )

    def _cancellation(self, cancellation: Cancellation, offset: int) -> None:
        if cancellation.workstations:
            return  # these report it themselves
        self.flush()
        if cancellation.unsent:
            self._delete_unsent(cancellation.job_id)
            return
        self._connection.execute(
            update(jobs)
            .where(jobs.c.id == cancellation.job_id, jobs.c.cancelled_at.is_(None))
            .values(
                cancelled_at=cancellation.created_at.timestamp(),
                cancel_offset=offset,
                cancelled_by=cancellation.sender,
                cancel_reason=cancellation.reason,
            )
        )

    def _delete_unsent(self, job_id: str) -> None:
        """Delete a job that was not sent, unless it has reports."""
        unreported = ~exists().where(reports.c.job_id == job_id)
        self._connection.execute(delete(jobs).where(jobs.c.id == job_id, unreported))
        self._connection.execute(delete(outcomes).where(outcomes.c.job_id == job_id, unreported))

    def _record(self, record: "Record", entry: StreamEntry) -> None:
        row = {
            "offset": entry.offset,
            "kind": entry.kind,
            "subject": _subject(record),
            "at": getattr(record, "created_at").timestamp(),  # noqa: B009 - all of these have it
            "body": entry.body,
            "signatures": entry.signatures,
        }
        self._upsert(records, [row])

    def _rejected_record(self, record: RejectedRecord, _offset: int) -> None:
        rejected.mark_published(self._connection, [record.digest])

    # Workstations

    def _check_in(self, check_in: CheckIn, offset: int) -> None:
        self._check_ins.append((check_in, offset))

    def _workstation_forgotten(self, record: WorkstationForgotten, offset: int) -> None:
        """Delete a workstation; jobs in its queues will never reach it."""
        self.flush()
        name = record.workstation
        for column in (
            workstations.c.name,
            memberships.c.workstation,
            agents.c.workstation,
            machines.c.workstation,
            packages.c.workstation,
            contents.c.workstation,
        ):
            self._connection.execute(delete(column.table).where(column == name))
        reason = f"{record.sender} had the workstation forgotten"
        self._set_unreachable(record, offset, Rank.STARTED, reason)

    def _agents_revoked(self, record: AgentsRevoked, offset: int) -> None:
        """Mark agents as revoked; jobs in the service agent's queue will never reach it."""
        self.flush()
        words = set(map(agent_word, record.agents))
        of_workstation = agents.c.workstation == record.workstation
        known = self._connection.scalars(select(agents.c.agent).where(of_workstation))
        revoked = [agent for agent in known if agent_word(agent) in words]
        self._connection.execute(
            update(agents)
            .where(of_workstation, agents.c.agent.in_(revoked))
            .values(revoked_at=record.created_at.timestamp())
        )
        if record.is_unreachable:
            reason = f"{record.sender} had the service agent's login revoked"
            self._set_unreachable(record, offset, _QUEUED_RANK, reason)

    def _set_unreachable(
        self, record: WorkstationForgotten | AgentsRevoked, offset: int, most: int, reason: str
    ) -> None:
        """Set the outcomes up to a rank that a workstation can no longer change."""
        self._connection.execute(
            update(outcomes)
            .where(outcomes.c.workstation == record.workstation, outcomes.c.rank <= most)
            .values(
                state=UNREACHABLE,
                rank=_FORGOTTEN_RANK,
                rank_at=_FORGOTTEN_RANK_AT,
                rank_offset=offset,
                at=record.created_at.timestamp(),
                reason=reason,
            )
        )

    def _upsert(self, table: Table, rows: Sequence[Row], changed: tuple[str, ...] = ()) -> None:
        put(self._connection, table, rows, changed)


_REVOKED = select(agents.c.workstation).where(
    agents.c.agent == SERVICE, agents.c.revoked_at.is_not(None)
)


def addressed(job: Job) -> Select[str]:
    """Return the query for the known workstations that a job's targets reach."""
    query = _targeted(job)
    return query.where(query.selected_columns.name.not_in(_REVOKED))


def addressed_but_revoked(job: Job) -> Select[str]:
    """Return the query for the targets that a job does not reach: their login was revoked."""
    query = _targeted(job)
    return query.where(query.selected_columns.name.in_(_REVOKED))


def _targeted(job: Job) -> Select[str]:
    if any(target.scope == "all" for target in job.targets):
        return select(workstations.c.name)
    groups = [target.name for target in job.targets if target.scope == "group"]
    names = [target.name for target in job.targets if target.scope == "workstation"]
    found = union(
        select(memberships.c.workstation.label("name")).where(memberships.c.group.in_(groups)),
        select(workstations.c.name).where(workstations.c.name.in_(names)),
    ).subquery()
    return select(found.c.name)


def _reported_job(report: Report, offset: int) -> Row:
    """Return the row of a job of which only a report is known."""
    return {"id": report.job_id, "offset": offset, "created_at": _made_at(report)}


def _made_at(report: Report) -> float:
    """Return when a job was made; if its id does not tell, the time of its report."""
    return (id_time(report.job_id) or report.at).timestamp()


def _seconds(moment: Moment | None) -> float | None:
    """Return seconds since the epoch; for a local time, the instant in the last time zone."""
    return None if moment is None else latest(moment).timestamp()


def _subject(record: "Record") -> str:
    """Return the id or name that a record is about: of a job, workstation, rollout or schedule."""
    for name in ("job_id", "workstation", "rollout_id", "name", "id"):
        if (value := getattr(record, name, None)) is not None:
            return str(value)
    raise AssertionError(record)
