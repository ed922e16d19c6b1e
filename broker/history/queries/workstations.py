"""Workstations with their agents and groups, by their last check-ins."""

import json
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from typing import Any

from sqlalchemy import Connection, Engine, Select, func, or_, select

from broker.history.engine import map_database_errors, snapshot
from broker.history.projection.projection import QUEUED, addressed, addressed_but_revoked
from broker.history.queries.jobs import REPORT_ALLOWANCE
from broker.history.queries.machines import MachineRow, current, former_names, read_machines
from broker.history.queries.rows import RUNNING, WAITING
from broker.history.schema import POLICY, agents, jobs, memberships, outcomes, workstations
from schemas import Job
from schemas.reports.check_in import MISSING_AFTER

MISSED_INTERVALS = 2.5
"""Intervals without a check-in after which an agent is missing."""


@dataclass(frozen=True)
class AgentRow:
    """An agent by its last check-in. Times are seconds since the epoch.

    Attributes:
        zone: its time zone; empty if unknown.
        countdown: before a mandatory job runs, in seconds; None if unknown.
        takeover_grace: before the service takes a job over, in seconds; None if unknown.
        accept_offers: whether it runs optional jobs without asking.
        revoked_at: when its login was deleted.
        queue_new_at: when its queue was last made anew; None if unknown.
        woke_at: when its machine last woke from sleep; None if unknown.
        missing_after: before the service ends a job of a missing user's agent, in seconds.
    """

    workstation: str
    agent: str
    up: bool
    paused: bool
    at: float
    interval: float
    program: str
    waiting: int
    running: int
    windows: str = ""
    paused_at: float | None = None
    paused_by: str = ""
    pause_reason: str = ""
    signed_only: bool = False
    sealing_key: str = ""
    revoked_at: float | None = None
    queue_new_at: float | None = None
    woke_at: float | None = None
    zone: str = ""
    countdown: float | None = None
    takeover_grace: float | None = None
    accept_offers: bool = False
    missing_after: float = MISSING_AFTER.total_seconds()

    def status(self, now: float) -> str:
        """Return `up`, `paused`, `stopped`, `missing` (check-ins are overdue), or `revoked`."""
        if self.revoked_at is not None:
            return "revoked"
        if not self.up:
            return "stopped"
        if now - self.at > MISSED_INTERVALS * self.interval:
            return "missing"
        return "paused" if self.paused else "up"


@dataclass(frozen=True)
class WorkstationRow:
    """A workstation. Times are seconds since the epoch, by the workstation's clock.

    Attributes:
        waiting: the number of its jobs that have not started.
        running: the number of its jobs that are running.
        machines: the machine of each agent, and others that have its name.
        former_names: the names that the machine had before, which are not forgotten yet.
    """

    name: str
    first_seen: float
    seen_at: float
    os: str
    arch: str
    release: str
    python: str
    memory: int
    groups: tuple[str, ...] = ()
    agents: tuple[AgentRow, ...] = ()
    waiting: int = field(default=0, compare=False)
    running: int = field(default=0, compare=False)
    machines: tuple[MachineRow, ...] = field(default=(), compare=False)
    former_names: tuple[str, ...] = field(default=(), compare=False)

    @property
    def platforms(self) -> frozenset[str]:
        """Its platforms, in the words of commands; empty if it has not reported its system."""
        system, machine = self.os.lower(), self.arch.lower()
        return frozenset({system, f"{system}/{machine}"}) if system else frozenset()

    @property
    def service(self) -> AgentRow | None:
        """The service agent; None until it has checked in."""
        return next((row for row in self.agents if row.agent == "service"), None)

    def status(self, now: float) -> str:
        """Return the service agent's status; `missing` if it never checked in."""
        return self.service.status(now) if self.service else "missing"


_COLUMNS = tuple(
    workstations.c[column.name]
    for column in fields(WorkstationRow)
    if column.name not in {"groups", "agents", "waiting", "running", "machines", "former_names"}
)


_AGENT_COLUMNS = (
    *(agents.c[column.name] for column in fields(AgentRow) if column.name not in POLICY),
    agents.c.policy,
)


def _agent_row(columns: dict[str, Any]) -> AgentRow:
    """Return an agent from its columns; `policy` is JSON."""
    policy: dict[str, Any] = json.loads(columns.pop("policy"), strict=False)
    return AgentRow(**columns, **{name: policy[name] for name in POLICY & policy.keys()})


class Fleet:
    """Query workstations in the history, as of one instant."""

    def __init__(self, connection: Connection, now: float | None = None) -> None:
        self._connection = connection
        self.now = time.time() if now is None else now

    def workstations(
        self, names: Sequence[str] | None = None, group: str | None = None
    ) -> list[WorkstationRow]:
        """Return workstations in order of name: all, those of the names, those of the group."""
        query = select(*_COLUMNS).order_by(workstations.c.name)
        if names is not None:
            query = query.where(workstations.c.name.in_(names))
        if group is not None:
            members = select(memberships.c.workstation).where(memberships.c.group == group)
            query = query.where(workstations.c.name.in_(members))
        rows = self._connection.execute(query).all()
        groups, agents_of, open_jobs = self._groups(), self._agents(), self._open_jobs()
        machines = read_machines(self._connection)
        renamed = former_names(row for found in machines.values() for row in found)
        return [
            WorkstationRow(
                **row._mapping,  # noqa: SLF001 - public in SQLAlchemy
                groups=tuple(groups.get(row.name, ())),
                agents=tuple(agents_of.get(row.name, ())),
                waiting=open_jobs[row.name, False],
                running=open_jobs[row.name, True],
                machines=tuple(current(machines.get(row.name, ()), self.now, MISSED_INTERVALS)),
                former_names=tuple(renamed.get(row.name, ())),
            )
            for row in rows
        ]

    def groups(self) -> dict[str, list[str]]:
        """Return the workstations' names of each group."""
        query = select(memberships.c.group, memberships.c.workstation).order_by(
            memberships.c.group, memberships.c.workstation
        )
        members: dict[str, list[str]] = {}
        for group, name in self._connection.execute(query):
            members.setdefault(group, []).append(name)
        return members

    def all_names(self) -> set[str]:
        """Return the names of all known workstations."""
        return set(self._connection.scalars(select(workstations.c.name)))

    def reached(self, job: Job) -> list[str]:
        """Return the names of the known workstations that a job would reach."""
        return self._without_excluded(job, addressed)

    def revoked(self, job: Job) -> list[str]:
        """Return the names of the workstations that a job would reach, were they not revoked."""
        return self._without_excluded(job, addressed_but_revoked)

    def _without_excluded(self, job: Job, query: Callable[[Job], Select[str]]) -> list[str]:
        names = set(self._connection.scalars(query(job)))
        if job.excluded:
            excluded = job.model_copy(update={"targets": job.excluded})
            names -= set(self._connection.scalars(query(excluded)))
        return sorted(names)

    def _groups(self) -> dict[str, list[str]]:
        groups: dict[str, list[str]] = {}
        for group, members in self.groups().items():
            for name in members:
                groups.setdefault(name, []).append(group)
        return groups

    def _agents(self) -> dict[str, list[AgentRow]]:
        query = select(*_AGENT_COLUMNS)
        rows: dict[str, list[AgentRow]] = {}
        # The service first: each workstation has one.
        for row in self._connection.execute(
            query.order_by(agents.c.workstation, agents.c.agent != "service", agents.c.agent)
        ):
            rows.setdefault(row.workstation, []).append(_agent_row(row._asdict()))
        return rows

    def _open_jobs(self) -> Counter[tuple[str, bool]]:
        """Count the open jobs by workstation and by whether they run."""
        # Outcomes without a report stay queued, even if the job is cancelled or expired.
        over = or_(jobs.c.cancelled_at.is_not(None), jobs.c.expires_at <= self.now)
        concluded = jobs.c.expires_at + REPORT_ALLOWANCE <= self.now
        query = (
            select(outcomes.c.workstation, outcomes.c.state, func.count())
            .join(jobs, jobs.c.id == outcomes.c.job_id)
            .where(outcomes.c.state.in_((*WAITING, *RUNNING)))
            .where(or_(outcomes.c.state != QUEUED, over.is_not(True)))
            .where(or_(outcomes.c.state.in_((QUEUED, *RUNNING)), concluded.is_not(True)))
            .group_by(outcomes.c.workstation, outcomes.c.state)
        )
        counts: Counter[tuple[str, bool]] = Counter()
        for name, state, count in self._connection.execute(query):
            counts[name, state in RUNNING] += count
        return counts


@contextmanager
def query_fleet(engine: Engine, now: float | None = None) -> Iterator[Fleet]:
    """Query a history's workstations.

    Raises:
        HistoryError: the database cannot be used.
    """
    with map_database_errors(engine), snapshot(engine) as connection:
        yield Fleet(connection, now)
