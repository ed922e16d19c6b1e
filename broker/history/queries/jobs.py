"""Query jobs and rollouts."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import fields
from datetime import datetime
from typing import TYPE_CHECKING

from sqlalchemy import (
    ColumnElement,
    Engine,
    literal,
    or_,
    select,
)

from broker.history.chunks import chunks
from broker.history.engine import connect_snapshot, map_database_errors
from broker.history.queries.outcomes import OutcomeQueries
from broker.history.queries.rollouts import rollout_row
from broker.history.queries.rows import (
    RUNNING,
    STATES,
    WAITING,
    JobRow,
    UnknownId,
)
from broker.history.schema import (
    gaps,
    jobs,
    memberships,
    outcomes,
    records,
    workstations,
)
from broker.stream.entry import parse_records
from schemas import Job, Rollout
from schemas.text import listed

if TYPE_CHECKING:
    from broker.stream.entry import Record

_MAX_MATCHES = 10  # ids in a message
_ROLLOUT = "rollout"  # the kind of the records with plans


_COUNTED = {"counts", "restart_required"}
_JOB_COLUMNS = tuple(jobs.c[field.name] for field in fields(JobRow) if field.name not in _COUNTED)


class JobQueries(OutcomeQueries):
    """Query jobs in the history, as of one instant."""

    def rows(self, *where: ColumnElement[bool], most: int | None = None) -> list[JobRow]:
        """Return jobs, the newest first; `where` are conditions on the table `jobs`."""
        query = select(*_JOB_COLUMNS).where(*where)
        rows = self._connection.execute(
            query.order_by(jobs.c.created_at.desc(), jobs.c.id.desc()).limit(most)
        ).all()
        counts = self.counts([row.id for row in rows])
        restarts = self.restarts([row.id for row in rows])
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


@contextmanager
def query_jobs(engine: Engine, now: float | None = None) -> Iterator[JobQueries]:
    """Query a history.

    Raises:
        HistoryError: the database cannot be used.
    """
    with map_database_errors(engine), connect_snapshot(engine) as connection:
        yield JobQueries(connection, now)
