"""Folds the stream's entries into the history's tables: the same tables, however it is cut up.

A job's state on a workstation depends on the set of its reports alone
(`schemas.reports.report.furthest`). Only departures count by their place in the stream.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from pydantic import TypeAdapter
from sqlalchemy import (
    Connection,
    Select,
    Table,
    bindparam,
    delete,
    exists,
    literal,
    select,
    tuple_,
    union,
    update,
)

from broker.history.projection import check_ins as presence
from broker.history.projection import rejected as forgeries
from broker.history.projection.upserts import RANK, put, upsert
from broker.history.schema import (
    agents,
    jobs,
    memberships,
    outcomes,
    records,
    reports,
    results,
    workstations,
)
from broker.stream.entry import Forged, StreamEntry
from schemas import (
    Cancellation,
    CheckIn,
    Job,
    RejectedRecord,
    Report,
    Result,
    State,
    WorkstationForgotten,
)
from schemas.orders.job import id_time
from schemas.reports.report import ANSWERS, Rank, first_line, furthest, order
from schemas.times import Moment, latest

if TYPE_CHECKING:
    from broker.stream.entry import Record

QUEUED = "queued"
UNREACHABLE = "unreachable"

_QUEUED_RANK = 0
# After all that was accepted and before a start: one that is read later counts over a departure.
_GONE_RANK, _GONE_RANK_AT = Rank.ACCEPTED, 1e300
_CHUNK = 500  # pairs of job and workstation in a query


def _names(table: Table) -> list[str]:
    return [column.name for column in table.columns]


_OUTCOME = tuple(name for name in _names(outcomes) if name not in outcomes.primary_key.columns)
_JOB = tuple(name for name in _names(jobs) if name != "id" and not name.startswith("cancel"))
_SEEN = (
    update(workstations)
    .where(workstations.c.name == bindparam("its_name"))
    .where(workstations.c.seen_offset < bindparam("its_offset"))
    .values(seen_at=bindparam("its_at"), seen_offset=bindparam("its_offset"))
)
_NOT_KEPT = {Report, CheckIn, Job, RejectedRecord}
_RESULT = TypeAdapter(Result)
_LONGEST_LINE = 200
_NO_ENDING: dict[str, object] = {
    **dict.fromkeys(("exit_code", "signal", "duration", "restart_required")),
    "line": "",
}

Row = dict[str, Any]
_WAITS: Row = {"state": QUEUED, "rank": _QUEUED_RANK, "rank_at": 0.0, "rank_offset": 0}


class _Answer(NamedTuple):
    """A report of what a user was asked or answered, as it is stored."""

    job_id: str
    workstation: str
    id: str
    agent: str
    state: str
    timestamp: float
    reason: str
    until: float | None
    offset: int


_ANSWER = (
    *(reports.c[name] for name in ("job_id", "workstation", "id", "agent", "state", "at")),
    *(reports.c[name] for name in ("reason", "until", "offset")),
)


class Fold:
    """Takes entries in their order; `flush` writes what is not written yet."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._dialect = connection.dialect.name
        self._jobs: list[Row] = []
        self._expected: list[Row] = []
        self._best: dict[tuple[str, str], Row] = {}
        self._answered: set[tuple[str, str]] = set()
        self._reports: list[Row] = []
        self._results: dict[tuple[str, str], Row] = {}
        self._seen: dict[str, Row] = {}
        self._check_ins: list[tuple[CheckIn, int]] = []
        self._stubs: dict[str, Row] = {}
        self._writers: dict[type[Record], Callable[[Any, int], None]] = {
            Report: self._report,
            CheckIn: self._check_in,
            WorkstationForgotten: self._departure,
            Cancellation: self._cancellation,
            RejectedRecord: self._told_forgery,
        }

    def add(self, entries: Iterable[StreamEntry]) -> None:
        """Take in entries."""
        for entry in entries:
            try:
                found = entry.read()
            except Forged as forged:
                forgeries.note(self._connection, entry, str(forged))
                continue
            for record in found:
                kind = type(record)
                if isinstance(record, Job):
                    self._job(record, entry)
                elif writer := self._writers.get(kind):
                    writer(record, entry.offset)
                if kind not in _NOT_KEPT:
                    self._keep(record, entry)

    def flush(self) -> None:
        """Write all that was taken in."""
        presence.write(self._connection, self._check_ins)
        self._upsert(jobs, self._jobs, _JOB)
        self._upsert(outcomes, self._expected)
        self._upsert(jobs, list(self._stubs.values()))
        self._upsert(reports, self._reports)
        self._upsert(results, list(self._results.values()))
        self._upsert(outcomes, list(self._best.values()), _OUTCOME)
        self._upsert(outcomes, self._answers(), _OUTCOME)
        if self._seen:
            self._connection.execute(_SEEN, list(self._seen.values()))
        for taken in (
            self._check_ins, self._jobs, self._expected,
            self._stubs, self._reports, self._results, self._best, self._answered, self._seen,
        ):  # fmt: skip
            taken.clear()

    # Reports

    def _report(self, report: Report, offset: int) -> None:
        job_id, workstation, state = report.job_id, report.workstation, report.state
        key = (job_id, workstation)
        at = report.at.timestamp()
        row = {
            "job_id": job_id,
            "workstation": workstation,
            "agent": report.agent,
            "state": state.value,
            "at": at,
            "reason": report.reason,
            "until": report.until.timestamp() if report.until else None,
        }
        self._reports.append({**row, "id": report.id, "offset": offset})
        self._seen[workstation] = {"its_name": workstation, "its_at": at, "its_offset": offset}
        if job_id not in self._stubs:
            self._stubs[job_id] = _stub(report, offset)
        if state is State.CONFLICT:
            return
        if state in ANSWERS:  # which counts, depends on those of other agents
            self._answered.add(key)
            return
        place = order(report)
        known = self._best.get(key)
        if known is None or tuple(known[name] for name in RANK) < place:
            ending = _ending(report) if report.result or state.final else _NO_ENDING
            self._best[key] = {**row, **dict(zip(RANK, place, strict=True)), **ending}
        if report.result is not None and state.final and key not in self._results:
            body = _body(report.result)
            self._results[key] = {"job_id": job_id, "workstation": workstation, "body": body}

    def _answers(self) -> list[Row]:
        """Return the outcomes of jobs that users were asked about, from all that they answered."""
        keys = [
            key
            for key in self._answered
            if key not in self._best or self._best[key]["rank"] < Rank.ANSWERED
        ]
        found: dict[tuple[str, str], list[_Answer]] = defaultdict(list)
        for start in range(0, len(keys), _CHUNK):
            of_jobs = tuple_(reports.c.job_id, reports.c.workstation)
            query = select(*_ANSWER).where(
                of_jobs.in_(keys[start : start + _CHUNK]), reports.c.state.in_(ANSWERS)
            )
            for row in self._connection.execute(query):
                answer = _Answer(*row)
                found[answer.job_id, answer.workstation].append(answer)
        return [_outcome(answers) for answers in found.values()]

    # What administrators ask

    def _job(self, job: Job, entry: StreamEntry) -> None:
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
            "expires_at": _seconds(job.expires_at),
            "rerun_of": job.rerun_of,
            "rollout": job.rollout,
            "schedule": job.schedule,
            # What is signed is a message's very bytes; such a message holds one job.
            "body": entry.body if signed else job.body(),
            "signatures": entry.signatures if signed else "",
        }
        self._jobs.append(row)
        named = [
            {"job_id": job.id, "workstation": target.name, **_WAITS}
            for target in job.targets
            if target.scope == "workstation"
        ]
        if len(named) == len(job.targets) and not job.excluded:
            self._expected += named  # whoever is known
            return
        self.flush()
        self._leave_out(job)
        self._upsert(outcomes, named)
        if len(named) < len(job.targets):
            self._expect(job)

    def _expect(self, job: Job) -> None:
        """Note the workstations that a job is for, as they are known now."""
        columns = ["job_id", "workstation", *_WAITS]
        found = addressed(job).subquery()
        values = select(literal(job.id), found.c.name, *map(literal, _WAITS.values())).where(
            literal(value=True)  # SQLite takes the ON of ON CONFLICT for a join's without it
        )
        statement = upsert(self._dialect, outcomes, ())
        self._connection.execute(statement.from_select(columns, values))

    def _leave_out(self, job: Job) -> None:
        """Note those to whom it comes, and who will say that it is not for them."""
        if not job.excluded:
            return
        named = {str(target.name) for target in job.targets if target.scope == "workstation"}
        reached = named | set(self._connection.scalars(addressed(job)))
        for target in job.excluded:
            of = job.model_copy(update={"targets": (target,)})
            known = set(self._connection.scalars(addressed(of)))
            told = {"state": str(State.NOT_APPLICABLE), "reason": f"left out: {target}"}
            self._upsert(
                outcomes,
                [
                    {"job_id": job.id, "workstation": name, **_WAITS, **told}
                    for name in reached & (known | {str(target.name)})
                ],
            )

    def _cancellation(self, cancellation: Cancellation, offset: int) -> None:
        if cancellation.workstations:
            return  # those it names say so themselves
        self.flush()
        if cancellation.unsent:
            self._forget(cancellation.job_id)
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

    def _forget(self, job_id: str) -> None:
        """Drop a job that reached nobody, unless somebody has reported of it."""
        silent = ~exists().where(reports.c.job_id == job_id)
        self._connection.execute(delete(jobs).where(jobs.c.id == job_id, silent))
        self._connection.execute(delete(outcomes).where(outcomes.c.job_id == job_id, silent))

    def _keep(self, record: "Record", entry: StreamEntry) -> None:
        row = {
            "offset": entry.offset,
            "kind": entry.kind,
            "subject": _subject(record),
            "at": getattr(record, "created_at").timestamp(),  # noqa: B009 - all of these have it
            "body": entry.body,
            "signatures": entry.signatures,
        }
        self._upsert(records, [row])

    def _told_forgery(self, forgery: RejectedRecord, _offset: int) -> None:
        forgeries.was_told(self._connection, [forgery.digest])

    # Who is there

    def _check_in(self, check_in: CheckIn, offset: int) -> None:
        self._check_ins.append((check_in, offset))

    def _departure(self, departure: WorkstationForgotten, offset: int) -> None:
        """Forget a workstation; what waited in its queues will never reach it."""
        self.flush()
        name = departure.workstation
        for column in (workstations.c.name, memberships.c.workstation, agents.c.workstation):
            self._connection.execute(delete(column.table).where(column == name))
        self._connection.execute(
            update(outcomes)
            .where(outcomes.c.workstation == name, outcomes.c.rank <= Rank.STARTED)
            .values(
                state=UNREACHABLE,
                rank=_GONE_RANK,
                rank_at=_GONE_RANK_AT,
                rank_offset=offset,
                at=departure.created_at.timestamp(),
                reason=f"{departure.sender} had the workstation forgotten",
            )
        )

    def _upsert(self, table: Table, rows: Sequence[Row], changed: tuple[str, ...] = ()) -> None:
        put(self._connection, table, rows, changed)


def addressed(job: Job) -> Select[str]:
    """Return the query for the known workstations that a job's targets reach."""
    scopes = {target.scope for target in job.targets}
    if "all" in scopes:
        return select(workstations.c.name)
    groups = [target.name for target in job.targets if target.scope == "group"]
    names = [target.name for target in job.targets if target.scope == "workstation"]
    found = union(
        select(memberships.c.workstation.label("name")).where(memberships.c.group.in_(groups)),
        select(workstations.c.name).where(workstations.c.name.in_(names)),
    ).subquery()
    return select(found.c.name)


def _outcome(answers: Sequence[_Answer]) -> Row:
    """Return the outcome that all answers about a job on a workstation give."""
    last = furthest(answers)
    assert last is not None  # noqa: S101 - there is one, and none is a conflict
    return {
        "job_id": last.job_id,
        "workstation": last.workstation,
        "agent": last.agent,
        "state": last.state,
        "at": last.timestamp,
        "reason": last.reason,
        "until": last.until,
        # It grows with each answer, so that what all of them give replaces what fewer gave.
        "rank": Rank.ANSWERED,
        "rank_at": max(answer.timestamp for answer in answers),
        "rank_offset": max(answer.offset for answer in answers),
        **_NO_ENDING,
    }


def _ending(report: Report) -> Row:
    result = report.result
    return {
        "exit_code": result.exit_code if result else None,
        "signal": result.signal if result else None,
        "duration": result.duration.total_seconds() if result else None,
        "restart_required": result.restart_required if result else None,
        "line": first_line(report)[:_LONGEST_LINE] if report.state.final else "",
    }


def _body(result: Result) -> bytes:
    # Named because the comparison with a default takes longer than all the rest.
    silent = {name for name in ("stdout", "stderr") if getattr(result, name).silent}
    return _RESULT.dump_json(result, exclude=silent, exclude_defaults=True)


def _stub(report: Report, offset: int) -> Row:
    """Return what is known of a job of which there is a report alone."""
    made = id_time(report.job_id) or report.at
    return {"id": report.job_id, "offset": offset, "created_at": made.timestamp()}


def _seconds(moment: Moment | None) -> float | None:
    """Return a time; of one on the clocks on the wall, when the last of them shows it."""
    return None if moment is None else latest(moment).timestamp()


def _subject(record: "Record") -> str:
    """Return whom or what a record is about: a job, a workstation, a rollout, a schedule."""
    for name in ("job_id", "workstation", "rollout_id", "name", "id"):
        if (value := getattr(record, name, None)) is not None:
            return str(value)
    raise AssertionError(record)
