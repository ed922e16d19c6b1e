"""Query the outcomes of jobs; a job has exactly one state on each of its workstations."""

import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import fields
from typing import Any

from pydantic import TypeAdapter
from sqlalchemy import (
    ColumnElement,
    Connection,
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
from broker.history.projection.projection import QUEUED
from broker.history.projection.unreachable import UNREACHABLE
from broker.history.queries.rows import (
    FAILURES,
    RECEIVED,
    RUNNING,
    STATES,
    WAITING,
    Event,
    FailureGroup,
    OutcomeRow,
)
from broker.history.schema import jobs, outcomes, reports, results, workstations
from schemas import Context, Result, State

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
_OUTCOME_COLUMNS = tuple(field.name for field in fields(OutcomeRow))


class OutcomeQueries:
    """Query the outcomes of jobs on workstations, as of one instant."""

    def __init__(self, connection: Connection, now: float | None = None) -> None:
        self._connection = connection
        self.now = time.time() if now is None else now
        self._ids_of: dict[str, list[str]] = {}

    def _ids(self, job_id: str) -> list[str]:
        """Return the id of a job; of a rollout, those of its waves."""
        if job_id not in self._ids_of:
            known = exists().where(jobs.c.id == job_id)
            waves = select(jobs.c.id).where(jobs.c.rollout == job_id)
            is_job = self._connection.scalar(select(known))
            self._ids_of[job_id] = [job_id] if is_job else [*self._connection.scalars(waves)]
        return self._ids_of[job_id]

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

    def restarts(self, job_ids: Sequence[str]) -> Counter[str]:
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
