"""How rollouts went, as far as the history knows."""

import time
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

from sqlalchemy import Connection, Engine, select

from broker.history.history import History
from broker.history.queries import Accounts
from broker.history.schema import jobs, records, snapshot, told
from broker.rollouts.state import RolloutState, WaveTally, standing
from schemas import Rollout, RolloutOrder, WaveEnded, WaveSent
from schemas.errors import PcmError

if TYPE_CHECKING:
    from broker.stream.entry import Record

_Kind = TypeVar("_Kind", bound="Record")
_Asked = TypeVar("_Asked", RolloutOrder, WaveSent, WaveEnded)


class UnknownRollout(PcmError):
    """No rollout has this id, or begins so; or more than one does. The text says which."""


@dataclass(frozen=True)
class RolloutProgress:
    """A rollout, what was asked of it, and its waves whose sending was begun."""

    plan: Rollout
    orders: tuple[RolloutOrder, ...]
    marks: tuple[WaveSent | WaveEnded, ...]
    tallies: Mapping[int, WaveTally]
    now: float

    @property
    def standing(self) -> RolloutState:
        """How it stands."""
        return standing(self.plan, self.orders, self.tallies, self.now)

    def has(self, record: RolloutOrder | WaveSent | WaveEnded) -> bool:
        """Whether it takes a record into account, and so all that was on record before it."""
        return record in self.orders or record in self.marks


def list_rollouts(history: History) -> list[RolloutProgress]:
    """Return how the rollouts go that were begun, the newest first."""
    now = history.accounts.now
    return [_course(history.connection, plan, now) for plan in _plans(history.connection)]


def find_rollout(history: History, rollout_id: str) -> RolloutProgress:
    """Return how a rollout goes.

    Args:
        history: what is known.
        rollout_id: its id, or the beginning.

    Raises:
        UnknownRollout: there is none, or more than one.
    """
    plan = _find(_plans(history.connection), rollout_id)
    return _course(history.connection, plan, history.accounts.now)


def plans(engine: Engine) -> list[Rollout]:
    """Return the rollouts that were begun, the newest first."""
    with told(engine), snapshot(engine) as connection:
        return _plans(connection)


def _plans(connection: Connection) -> list[Rollout]:
    found = _records(Accounts(connection), "rollout", Rollout)
    first = {plan.id: plan for plan in reversed(found)}  # the same id again changes nothing
    return sorted(first.values(), key=lambda plan: (plan.created_at, plan.id), reverse=True)


def find(engine: Engine, rollout_id: str) -> Rollout:
    """Return the rollout of an id, or the only one that begins so.

    Raises:
        UnknownRollout: there is none, or more than one.
    """
    return _find(plans(engine), rollout_id)


def _find(plans: Iterable[Rollout], rollout_id: str) -> Rollout:
    found = [plan for plan in plans if plan.id.startswith(rollout_id)]
    exact = [plan for plan in found if plan.id == rollout_id] or found
    if len(exact) == 1:
        return exact[0]
    raise UnknownRollout(
        f"{rollout_id}: more than one rollout begins so"
        if exact
        else f"{rollout_id}: no such rollout was begun, as far as the history goes"
    )


def recorded(engine: Engine, plan: Rollout) -> tuple[bytes, str]:
    """Return the message by which a rollout was begun, and its header of signatures."""
    query = (
        select(records.c.body, records.c.signatures)
        .where(records.c.kind == plan.kind, records.c.subject == plan.id)
        .order_by(records.c.offset)
        .limit(1)
    )
    with told(engine), engine.connect() as connection:
        body, signatures = connection.execute(query).one()
        return body, signatures


def course(engine: Engine, plan: Rollout, now: float | None = None) -> RolloutProgress:
    """Return how a rollout goes."""
    now = time.time() if now is None else now
    with told(engine), snapshot(engine) as connection:
        return _course(connection, plan, now)


def _course(connection: Connection, plan: Rollout, now: float) -> RolloutProgress:
    accounts = Accounts(connection, now)
    orders = _placed(connection, RolloutOrder, plan.id)
    sent = _placed(connection, WaveSent, plan.id)
    ended = _placed(connection, WaveEnded, plan.id)
    resumed = max((at for at, order in orders if order.action == "resume"), default=-1)
    marks: tuple[WaveSent | WaveEnded, ...] = (
        *(mark for _, mark in sent),
        *(mark for _, mark in ended),
    )
    tallies = _tallies(accounts, plan, marks, resumed)
    return RolloutProgress(plan, tuple(order for _, order in orders), marks, tallies, now)


def _placed(
    connection: Connection, kind: type[_Asked], rollout_id: str
) -> list[tuple[int, _Asked]]:
    """Return the records of a kind about a rollout, each with its place in the stream."""
    query = (
        select(records.c.offset, records.c.body)
        .where(records.c.kind == kind.model_fields["kind"].default)
        .where(records.c.subject == rollout_id)
        .order_by(records.c.offset)
    )
    return [(at, kind.read(body, tolerant=True)) for at, body in connection.execute(query)]


def _records(accounts: Accounts, name: str, kind: type[_Kind]) -> list[_Kind]:
    return [found for found in accounts.records(name) if isinstance(found, kind)]


def _tallies(
    accounts: Accounts,
    plan: Rollout,
    marks: Iterable[WaveSent | WaveEnded],
    resumed: int,
) -> dict[int, WaveTally]:
    known = {job.id: job for job in accounts.jobs(jobs.c.rollout == plan.id)}
    sent = {mark.number for mark in marks if isinstance(mark, WaveSent)}
    # Of several who saw it, the first.
    seen = {
        mark.number: mark.created_at.timestamp()
        for mark in reversed(tuple(marks))
        if isinstance(mark, WaveEnded)
    }
    tallies = {}
    for number in range(1, len(plan.waves) + 1):
        if job := known.get(plan.wave_id(number)):
            tallies[number] = WaveTally(
                job.created_at,
                number in sent,
                Counter(job.counts),
                seen.get(number),
                job.cancelled_at,
                job.cancelled_by,
                resumed=(job.cancel_offset or 0) < resumed,
            )
        elif number in sent:  # the history keeps records for longer than jobs
            tallies[number] = WaveTally(sent=True, seen_at=seen.get(number))
    return tallies
