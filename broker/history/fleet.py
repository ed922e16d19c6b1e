"""Who is there: workstations, their agents and groups, as they last checked in."""

import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, fields

from sqlalchemy import Connection, Engine, func, select

from broker.history.accounts import WAITING
from broker.history.fold import addressed
from broker.history.tables import agents, memberships, outcomes, told, workstations
from schemas import Job

_MISSED = 2.5  # intervals without a check-in after which an agent is missing


@dataclass(frozen=True)
class AgentRow:
    """An agent as it last checked in. Times are seconds since the epoch."""

    workstation: str
    agent: str
    up: bool
    paused: bool
    at: float
    interval: float
    program: str
    windows: str
    waiting: int
    running: int

    def status(self, now: float) -> str:
        """Return whether it is `up`, `paused`, `stopped`, or `missing` without a word."""
        if not self.up:
            return "stopped"
        if now - self.at > _MISSED * self.interval:
            return "missing"
        return "paused" if self.paused else "up"


@dataclass(frozen=True)
class WorkstationRow:
    """A workstation. Times are seconds since the epoch, by its own clock.

    Attributes:
        waiting: the jobs that are for it and have not started there.
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


_COLUMNS = tuple(
    workstations.c[column.name]
    for column in fields(WorkstationRow)
    if column.name not in {"groups", "agents", "waiting"}
)


class Fleet:
    """Answers from the history about workstations, as of one instant."""

    def __init__(self, connection: Connection, now: float | None = None) -> None:
        self._connection = connection
        self.now = time.time() if now is None else now

    def workstations(
        self, names: Sequence[str] | None = None, group: str | None = None
    ) -> list[WorkstationRow]:
        """Return workstations by name: all, those that are named, those of a group."""
        query = select(*_COLUMNS).order_by(workstations.c.name)
        if names is not None:
            query = query.where(workstations.c.name.in_(names))
        if group is not None:
            members = select(memberships.c.workstation).where(memberships.c.group == group)
            query = query.where(workstations.c.name.in_(members))
        rows = self._connection.execute(query).all()
        groups, running, waiting = self._groups(), self._agents(), self._waiting()
        return [
            WorkstationRow(
                **row._mapping,  # noqa: SLF001 - its name for a dict
                groups=tuple(groups.get(row.name, ())),
                agents=tuple(running.get(row.name, ())),
                waiting=waiting[row.name],
            )
            for row in rows
        ]

    def groups(self) -> dict[str, list[str]]:
        """Return the names of the workstations of each group."""
        query = select(memberships.c.group, memberships.c.workstation).order_by(
            memberships.c.group, memberships.c.workstation
        )
        found: dict[str, list[str]] = {}
        for group, name in self._connection.execute(query):
            found.setdefault(group, []).append(name)
        return found

    def reached(self, job: Job) -> list[str]:
        """Return the names of the known workstations that a job would reach, less the excluded."""
        names = set(self._connection.scalars(addressed(job)))
        if job.excluded:
            excluded = job.model_copy(update={"targets": job.excluded})
            names -= set(self._connection.scalars(addressed(excluded)))
        return sorted(names)

    def _groups(self) -> dict[str, list[str]]:
        found: dict[str, list[str]] = {}
        for group, members in self.groups().items():
            for name in members:
                found.setdefault(name, []).append(group)
        return found

    def _agents(self) -> dict[str, list[AgentRow]]:
        query = select(*(agents.c[column.name] for column in fields(AgentRow)))
        found: dict[str, list[AgentRow]] = {}
        # The service first: it is the one that each workstation has.
        for row in self._connection.execute(
            query.order_by(agents.c.workstation, agents.c.agent.desc())
        ):
            found.setdefault(row.workstation, []).append(AgentRow(*row))
        return found

    def _waiting(self) -> Counter[str]:
        query = (
            select(outcomes.c.workstation, func.count())
            .where(outcomes.c.state.in_(WAITING))
            .group_by(outcomes.c.workstation)
        )
        found: Counter[str] = Counter()
        for name, count in self._connection.execute(query):
            found[name] = count
        return found


@contextmanager
def fleet(engine: Engine, now: float | None = None) -> Iterator[Fleet]:
    """Ask a history about workstations.

    Raises:
        HistoryError: the database cannot be used.
    """
    with told(engine), engine.connect() as connection:
        yield Fleet(connection, now)
