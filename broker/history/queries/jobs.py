"""Query jobs and their outcomes; a job has exactly one state on each of its workstations."""

import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import fields
from datetime import datetime
from typing import TYPE_CHECKING, Any

from pydantic import TypeAdapter
from sqlalchemy import (
    ColumnElement,
    Connection,
    Engine,
    Select,
    and_,
    case,
    exists,
    func,
    literal,
    or_,
    select,
)

from broker.history.chunks import chunks
from broker.history.engine import connect_snapshot, map_database_errors
from broker.history.projection.projection import QUEUED, UNREACHABLE
from broker.history.queries.rollouts import rollout_row
from broker.history.queries.rows import (
    FAILURES,
    RECEIVED,
    RUNNING,
    STATES,
    WAITING,
    Event,
    FailureGroup,
    JobRow,
    OutcomeRow,
    UnknownId,
)
from broker.history.schema import (
    gaps,
    jobs,
    memberships,
    outcomes,
    records,
    reports,
    results,
    workstations,
)
from broker.stream.entry import parse_records
from schemas import Context, Job, Result, Rollout, State
from schemas.text import listed

if TYPE_CHECKING:
    from broker.stream.entry import Record

_SORT_KEYS = {
    state: index
    for index, state in enumerate(
        dict.fromkeys((*RUNNING, *FAILURES, *WAITING, UNREACHABLE, *STATES))
    )
}

REPORT_ALLOWANCE = 86_400.0
"""Seconds after a job's expiry within which the history waits for an agent's report of its end."""

_RESULT = TypeAdapter(Result)
_ROWS_AT_ONCE = 100
_MAX_MATCHES = 10  # ids in a message
_ROLLOUT = "rollout"  # the kind of the records with plans


_COUNTED = {"counts", "restart_required"}
_JOB_COLUMNS = tuple(jobs.c[field.name] for field in fields(JobRow) if field.name not in _COUNTED)
_OUTCOME_COLUMNS = tuple(field.name for field in fields(OutcomeRow))


class JobQueries:
    """Query jobs in the history, as of one instant."""

    def __init__(self, connection: Connection, now: float | None = None) -> None:
        self._connection = connection
        self.now = time.time() if now is None else now
        self._ids_of: dict[str, list[str]] = {}

    # Jobs

    def rows(self, *where: ColumnElement[bool], most: int | None = None) -> list[JobRow]:
        """Return jobs, the newest first; `where` are conditions on the table `jobs`."""
        query = select(*_JOB_COLUMNS).where(*where)
        rows = self._connection.execute(
            query.order_by(jobs.c.created_at.desc(), jobs.c.id.desc()).limit(most)
        ).all()
        counts = self.counts([row.id for row in rows])
        restarts = self._restarts([row.id for row in rows])
        return [
            JobRow(
                **row._mapping,  # noqa: SLF001 - public in SQLAlchemy
                counts=counts[row.id],
                restart_required=restarts[row.id],
            )
            for row in rows
        ]

    def search(
        self,
        *,
        states: Sequence[str] | None = None,
        workstation: str | None = None,
        since: datetime | float | None = None,
        sender: str = "",
        text: str = "",
        most: int | None = None,
    ) -> list[JobRow]:
        """Return the jobs that match all given conditions, the newest first.

        Args:
            states: one of these on any workstation, or on `workstation`. If they include all
                states in which a job is over: it is over on all workstations.
            workstation: the job is for this workstation.
            since: created at this time or later; a number is seconds since the epoch.
            sender: part of the sender's name; case is ignored.
            text: part of the id, name, command or targets; case is ignored.
            most: the maximum number of jobs.
        """
        where: list[ColumnElement[bool]] = []
        if states is not None:
            where.append(self._is_in(states, workstation))
        elif workstation is not None:
            where.append(self.is_for(workstation))
        if since is not None:
            at = since.timestamp() if isinstance(since, datetime) else since
            where.append(jobs.c.created_at >= at)
        if sender:
            where.append(jobs.c.sender.icontains(sender, autoescape=True))
        if text:
            among = (jobs.c.id, jobs.c.name, jobs.c.command, jobs.c.targets)
            where.append(or_(*(one.icontains(text, autoescape=True) for one in among)))
        return self.rows(*where, most=most)

    def _is_in(self, states: Sequence[str], workstation: str | None) -> ColumnElement[bool]:
        """Return the condition for `states` in `search`; over: the job waits or runs nowhere."""
        if workstation is not None:
            return self.has_state(states, workstation)
        is_open = (*WAITING, *RUNNING)
        if not set(STATES) - set(is_open) <= set(states):
            return self.has_state(states)
        others = [state for state in states if state in is_open]
        over = ~self.has_state(is_open)
        return or_(over, self.has_state(others)) if others else over

    def find(self, job_id: str) -> JobRow:
        """Return the job with an id, or with the only id with this beginning.

        A rollout is found by its id as one job, on the workstations of its sent waves.

        Raises:
            UnknownId: no job matches, or more than one.
        """
        if exact := self.rows(jobs.c.id == job_id):
            return exact[0]
        found = self._beginning(job_id)
        if job_id in found or len(found) == 1:
            found_id = job_id if job_id in found else found[0]
            if plan := self.plan(found_id):
                return rollout_row(plan, self.rows(jobs.c.rollout == plan.id))
            return self.rows(jobs.c.id == found_id)[0]
        raise UnknownId(
            f"{job_id}: matches several: {listed(found, _MAX_MATCHES)}"
            if found
            else f"{job_id}: no such job was sent, according to the history",
            several=bool(found),
        )

    def _beginning(self, text: str) -> list[str]:
        """Return the ids of jobs and rollouts with a beginning, without those rollouts' waves."""
        plans = set(
            self._connection.scalars(
                select(records.c.subject).where(
                    records.c.kind == _ROLLOUT, records.c.subject.startswith(text, autoescape=True)
                )
            )
        )
        rows = self._connection.execute(
            select(jobs.c.id, jobs.c.rollout).where(jobs.c.id.startswith(text, autoescape=True))
        )
        return sorted(plans | {row.id for row in rows if row.rollout not in plans}, reverse=True)

    def plan(self, rollout_id: str) -> Rollout | None:
        """Return the plan of a rollout; None if no rollout has this id."""
        plans = self.records(_ROLLOUT, rollout_id)
        return next((plan for plan in plans if isinstance(plan, Rollout)), None)

    def wave(self, rollout_id: str, workstation: str) -> JobRow | None:
        """Return the job of the wave with a workstation; None if it was not sent."""
        in_waves = outcomes.c.job_id.in_(self._ids(rollout_id))
        query = select(outcomes.c.job_id).where(in_waves, outcomes.c.workstation == workstation)
        return next(iter(self.rows(jobs.c.id.in_(query))), None)

    def _ids(self, job_id: str) -> list[str]:
        """Return the id of a job; of a rollout, those of its waves."""
        if job_id not in self._ids_of:
            known = exists().where(jobs.c.id == job_id)
            waves = select(jobs.c.id).where(jobs.c.rollout == job_id)
            is_job = self._connection.scalar(select(known))
            self._ids_of[job_id] = [job_id] if is_job else [*self._connection.scalars(waves)]
        return self._ids_of[job_id]

    def body(self, job_id: str) -> Job | None:
        """Return a job as it was sent; None if only its reports are known.

        Of a rollout, return the job of its plan.
        """
        body = self._connection.scalar(select(jobs.c.body).where(jobs.c.id == job_id))
        if body is None:
            plan = self.plan(job_id)
            return plan.job if plan else None
        return Job.read(body, tolerant=True)

    def recorded(self, job_id: str) -> tuple[bytes, str]:
        """Return the original bytes of a job or of a rollout's plan, and their signatures."""
        of_job = select(jobs.c.body, jobs.c.signatures).where(jobs.c.id == job_id)
        of_plan = (
            select(records.c.body, records.c.signatures)
            .where(records.c.kind == _ROLLOUT, records.c.subject == job_id)
            .order_by(records.c.offset)
        )
        for query in (of_job, of_plan):
            if row := self._connection.execute(query).first():
                return (row.body or b"", row.signatures)
        return (b"", "")

    def has_state(
        self, states: Sequence[str], workstation: str | None = None
    ) -> ColumnElement[bool]:
        """Return the condition that a job has one of the states, anywhere or on a workstation."""
        only_there = [] if workstation is None else [outcomes.c.workstation == workstation]
        of_job = (
            select(literal(1))
            .select_from(outcomes)
            .outerjoin(workstations, workstations.c.name == outcomes.c.workstation)
            .where(outcomes.c.job_id == jobs.c.id, self._state().in_(states), *only_there)
            # Concluded states are stored as waiting ones; the index finds all others.
            .where(outcomes.c.state.in_({*states, *WAITING}))
        )
        return exists(of_job.correlate(jobs))

    def is_for(self, workstation: str) -> ColumnElement[bool]:
        """Return the condition that a job is for a workstation."""
        return self.has_state(STATES, workstation)

    def knows(self, workstation: str) -> bool:
        """Whether a workstation has checked in."""
        query = select(literal(1)).where(workstations.c.name == workstation)
        return self._connection.scalar(query) is not None

    def groups(self, names: Sequence[str]) -> dict[str, list[str]]:
        """Return the groups of workstations, by their last check-ins."""
        groups: dict[str, list[str]] = {}
        for some in chunks(names):
            query = select(memberships.c.workstation, memberships.c.group).where(
                memberships.c.workstation.in_(some)
            )
            for name, group in self._connection.execute(query):
                groups.setdefault(name, []).append(group)
        return groups

    # Workstations of a job

    def states_on(self, workstation: str, job_ids: Sequence[str]) -> dict[str, str]:
        """Return the states of jobs on a workstation, by job id."""
        states = {}
        for some in chunks(job_ids):
            wanted = outcomes.c.job_id.in_(some)
            query = _joined(select(outcomes.c.job_id, self._state()))
            for row in self._connection.execute(
                query.where(wanted, outcomes.c.workstation == workstation)
            ):
                states[row[0]] = row[1]
        return states

    def _restarts(self, job_ids: Sequence[str]) -> Counter[str]:
        """Count for each job the workstations that need a restart."""
        restarts: Counter[str] = Counter()
        for some in chunks(job_ids):
            query = select(outcomes.c.job_id, func.count()).where(
                outcomes.c.job_id.in_(some),
                outcomes.c.restart_required.is_(True),
            )
            for job_id, count in self._connection.execute(query.group_by(outcomes.c.job_id)):
                restarts[job_id] = count
        return restarts

    def counts(self, job_ids: Sequence[str]) -> dict[str, Counter[str]]:
        """Count for each job the workstations in each state."""
        counts: dict[str, Counter[str]] = {job_id: Counter() for job_id in job_ids}
        for some in chunks(job_ids):
            wanted = outcomes.c.job_id.in_(some)
            reported = (
                select(outcomes.c.job_id, outcomes.c.state, func.count())
                .where(wanted, outcomes.c.state.not_in(WAITING))
                .group_by(outcomes.c.job_id, outcomes.c.state)
            )
            state = self._state()
            computed = (
                _joined(select(outcomes.c.job_id, state, func.count()))
                .where(wanted, outcomes.c.state.in_(WAITING))
                .group_by(outcomes.c.job_id, state)
            )
            for query in (reported, computed):
                for job_id, name, count in self._connection.execute(query):
                    counts[job_id][name] += count
        return counts

    def outcomes(
        self,
        job_id: str,
        states: Sequence[str] | None = None,
        names: Sequence[str] | None = None,
        most: int | None = None,
    ) -> list[OutcomeRow]:
        """Return the outcomes of a job by workstation; running, failed and waiting ones first."""
        state = self._state().label("state")
        concluded = (outcomes.c.state != state).label("concluded")
        computed: dict[str, ColumnElement[Any]] = {"state": state, "concluded": concluded}
        columns = [
            computed[name] if name in computed else outcomes.c[name] for name in _OUTCOME_COLUMNS
        ]
        sort_key = case(_SORT_KEYS, value=state, else_=99)
        query = _joined(select(*columns)).where(outcomes.c.job_id.in_(self._ids(job_id)))
        if states is not None:
            query = query.where(state.in_(states))
        if names is not None:
            query = query.where(outcomes.c.workstation.in_(names))
        rows = self._connection.execute(
            query.order_by(sort_key, outcomes.c.workstation).limit(most)
        )
        return [OutcomeRow(*row) for row in rows]

    def outcome(self, job_id: str, workstation: str) -> OutcomeRow | None:
        """Return the outcome of a job on a workstation; None if the job is not for it."""
        return next(iter(self.outcomes(job_id, names=[workstation])), None)

    def failures(self, job_id: str, most: int = 20) -> list[FailureGroup]:
        """Return the workstations on which a job failed, in groups, the largest first."""
        columns = outcomes.c
        state = self._state()
        line = case((columns.line != "", columns.line), else_=columns.reason)
        group = (state, columns.exit_code, columns.signal, line)
        count = func.count()
        query = (
            _joined(select(*group, count, func.min(columns.workstation)))
            .where(columns.job_id.in_(self._ids(job_id)), columns.state.in_((*FAILURES, *WAITING)))
            .where(state.in_(FAILURES))
            .group_by(*group)
            .order_by(count.desc(), line)
            .limit(most)
        )
        return [FailureGroup(*row) for row in self._connection.execute(query)]

    def events(self, job_id: str, workstation: str) -> list[Event]:
        """Return the reports of a job on a workstation, in the order of the stream."""
        query = (
            select(*(reports.c[field.name] for field in fields(Event)))
            .where(reports.c.job_id.in_(self._ids(job_id)), reports.c.workstation == workstation)
            .order_by(reports.c.offset, reports.c.at)
        )
        return [Event(*row) for row in self._connection.execute(query)]

    def due_before(
        self, workstation: str, mandatory_at: float
    ) -> dict[str, list[tuple[float, float]]]:
        """Return by agent the users' jobs of a workstation that are due before a time.

        For each job its mandatory time, and when the service first received it, or when a user's
        agent first offered it.
        """
        is_service = reports.c.agent == "service"
        query = (
            select(reports.c.agent, jobs.c.mandatory_at, func.min(reports.c.at))
            .select_from(outcomes)
            .join(jobs, jobs.c.id == outcomes.c.job_id)
            .join(
                reports,
                and_(
                    reports.c.job_id == outcomes.c.job_id,
                    reports.c.workstation == outcomes.c.workstation,
                ),
            )
            .where(outcomes.c.workstation == workstation)
            .where(jobs.c.context == str(Context.FOREGROUND), jobs.c.mandatory_at < mandatory_at)
            .where(
                or_(
                    and_(is_service, reports.c.state == str(State.RECEIVED)),
                    and_(~is_service, reports.c.state == str(State.OFFERED)),
                )
            )
            .group_by(reports.c.agent, jobs.c.id, jobs.c.mandatory_at)
        )
        found: dict[str, list[tuple[float, float]]] = {}
        for agent, due, came in self._connection.execute(query):
            found.setdefault(agent, []).append((due, came))
        return found

    def results(
        self, job_id: str, names: Sequence[str] | None = None
    ) -> Iterator[tuple[str, Result]]:
        """Yield the result of a job on each workstation where it started, in order of name."""
        of_job = results.c.job_id.in_(self._ids(job_id))
        query = select(results.c.workstation, results.c.body).where(of_job)
        if names is not None:
            query = query.where(results.c.workstation.in_(names))
        # In parts: the output of commands can be large.
        options = {"yield_per": _ROWS_AT_ONCE}
        rows = self._connection.execute(
            query.order_by(results.c.workstation), execution_options=options
        )
        for name, body in rows:
            yield name, _RESULT.validate_json(body)

    # Other records

    def records(self, kind: str, subject: str | None = None) -> "list[Record]":
        """Return the records of a kind, of all subjects or of one, in the order of the stream."""
        query = select(records.c.body).where(records.c.kind == kind)
        if subject is not None:
            query = query.where(records.c.subject == subject)
        return [
            record
            for body in self._connection.scalars(query.order_by(records.c.offset))
            for record in parse_records(kind, body)
        ]

    def gaps(self) -> list[str]:
        """Return what is missing from the history, one sentence each."""
        rows = self._connection.execute(select(gaps).order_by(gaps.c.first))
        return [
            f"{row.next - row.first} entries of the stream from offset {row.first} are missing:"
            f" {row.why}"
            if row.next > row.first
            else f"at offset {row.first} of the stream: {row.why}"
            for row in rows
        ]

    def _state(self) -> ColumnElement[str]:
        """Return the current state of an outcome; without a final report it can be concluded.

        What is queued has no report, and follows from the job. A job that was received and not
        started has expired if no report of its end has come long after its expiry: its agent may
        be gone. A report that comes still later counts.
        """
        return case(
            (
                and_(
                    outcomes.c.state.in_(RECEIVED),
                    jobs.c.expires_at + REPORT_ALLOWANCE <= self.now,
                ),
                str(State.EXPIRED),
            ),
            (outcomes.c.state != QUEUED, outcomes.c.state),
            (jobs.c.cancelled_at.is_not(None), str(State.CANCELLED)),
            (jobs.c.expires_at <= self.now, str(State.EXPIRED)),
            (workstations.c.name.is_(None), UNREACHABLE),
            else_=QUEUED,
        )


def _joined(query: Select[Any]) -> Select[Any]:
    """Join the tables from which states are computed."""
    return (
        query.select_from(jobs)
        .join(outcomes, outcomes.c.job_id == jobs.c.id)
        .outerjoin(workstations, workstations.c.name == outcomes.c.workstation)
    )


@contextmanager
def query_jobs(engine: Engine, now: float | None = None) -> Iterator[JobQueries]:
    """Query a history.

    Raises:
        HistoryError: the database cannot be used.
    """
    with map_database_errors(engine), connect_snapshot(engine) as connection:
        yield JobQueries(connection, now)
