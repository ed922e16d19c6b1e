"""How rollouts went, as far as the history knows."""

import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeVar

from sqlalchemy import Connection, Engine, func, select

from broker.entry import Record
from broker.history.accounts import RUNNING, WAITING, Accounts
from broker.history.tables import jobs, outcomes, told
from broker.plans.rollout import Standing, Tally, standing
from schemas import Rollout, RolloutOrder, WaveSent

_Kind = TypeVar("_Kind", bound=Record)


class UnknownRollout(Exception):
    """No rollout has this id, or begins so; or more than one does. The text says which."""


@dataclass(frozen=True)
class Course:
    """A rollout, what was asked of it, and its waves whose sending was begun."""

    plan: Rollout
    orders: tuple[RolloutOrder, ...]
    sent: tuple[WaveSent, ...]
    tallies: Mapping[int, Tally]
    now: float

    @property
    def standing(self) -> Standing:
        """How it stands."""
        return standing(self.plan, self.orders, self.tallies, self.now)

    def has(self, record: RolloutOrder | WaveSent) -> bool:
        """Whether it takes a record into account, and so all that was on record before it."""
        return record in self.orders or record in self.sent


def plans(engine: Engine) -> list[Rollout]:
    """Return the rollouts that were begun, the newest first."""
    with told(engine), engine.connect() as connection:
        found = _records(Accounts(connection), "rollout", Rollout)
    first = {plan.id: plan for plan in reversed(found)}  # the same id again changes nothing
    return sorted(first.values(), key=lambda plan: (plan.created_at, plan.id), reverse=True)


def find(engine: Engine, rollout_id: str) -> Rollout:
    """Return the rollout of an id, or the only one that begins so.

    Raises:
        UnknownRollout: there is none, or more than one.
    """
    found = [plan for plan in plans(engine) if plan.id.startswith(rollout_id)]
    exact = [plan for plan in found if plan.id == rollout_id] or found
    if len(exact) == 1:
        return exact[0]
    raise UnknownRollout(
        f"{rollout_id}: more than one rollout begins so"
        if exact
        else f"{rollout_id}: no such rollout was begun, as far as the history goes"
    )


def course(engine: Engine, plan: Rollout, now: float | None = None) -> Course:
    """Return how a rollout goes; a workstation's clock that is ahead is not believed."""
    now = time.time() if now is None else now
    with told(engine), engine.connect() as connection:
        accounts = Accounts(connection, now)
        sent = tuple(_records(accounts, "wave_sent", WaveSent, plan.id))
        return Course(
            plan,
            tuple(_records(accounts, "rollout_order", RolloutOrder, plan.id)),
            sent,
            _tallies(accounts, connection, plan, {mark.number for mark in sent}),
            now,
        )


def _records(
    accounts: Accounts, name: str, kind: type[_Kind], subject: str | None = None
) -> list[_Kind]:
    return [found for found in accounts.records(name, subject) if isinstance(found, kind)]


def _tallies(
    accounts: Accounts, connection: Connection, plan: Rollout, sent: set[int]
) -> dict[int, Tally]:
    known = {job.id: job for job in accounts.jobs(jobs.c.rollout == plan.id)}
    ends = _ends(connection, list(known), accounts.now)
    tallies = {}
    for number in range(1, len(plan.waves) + 1):
        if job := known.get(job_id := plan.wave_id(number)):
            tallies[number] = Tally(
                job.created_at,
                number in sent,
                Counter(job.counts),
                ends.get(job_id),
                job.cancelled_at,
                job.cancelled_by,
            )
        elif number in sent:  # the history keeps records for longer than jobs
            tallies[number] = Tally(sent=True)
    return tallies


def _ends(connection: Connection, job_ids: list[str], now: float) -> dict[str, float]:
    query = (
        select(outcomes.c.job_id, func.max(outcomes.c.at))
        .where(outcomes.c.job_id.in_(job_ids), outcomes.c.at <= now)
        .where(outcomes.c.state.not_in((*WAITING, *RUNNING)))
        .group_by(outcomes.c.job_id)
    )
    return dict(connection.execute(query).tuples().all())
