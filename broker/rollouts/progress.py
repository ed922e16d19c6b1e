"""Read rollouts and their progress from the history."""

import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

from sqlalchemy import Connection, Engine, select

from broker.history.engine import connect_snapshot, map_database_errors
from broker.history.history import History
from broker.history.queries.jobs import JobQueries
from broker.history.schema import jobs, records
from broker.rollouts.state import RolloutState, WaveTally, rollout_state
from broker.signing.resign_policy import Recorded
from schemas import Rollout, RolloutOrder, WaveEnded, WaveSent
from schemas.errors import PcmError
from schemas.text import listed

if TYPE_CHECKING:
    from broker.stream.entry import Record

_SHOWN = 10  # ids in a message
_Kind = TypeVar("_Kind", bound="Record")
_RolloutRecord = TypeVar("_RolloutRecord", RolloutOrder, WaveSent, WaveEnded)


class UnknownRollout(PcmError):
    """No rollout has this id, or several ids begin so; the message says which."""


@dataclass(frozen=True)
class RolloutProgress:
    """A rollout with its orders, and its waves that were sent."""

    plan: Rollout
    orders: tuple[RolloutOrder, ...]
    wave_records: tuple[WaveSent | WaveEnded, ...]
    tallies: Mapping[int, WaveTally]
    now: float

    @property
    def state(self) -> RolloutState:
        """Its state."""
        return rollout_state(self.plan, self.orders, self.tallies, self.now)

    def has(self, record: RolloutOrder | WaveSent | WaveEnded) -> bool:
        """Whether a record, and so all records before it, are included."""
        return record in self.orders or record in self.wave_records


def list_rollouts(history: History) -> list[RolloutProgress]:
    """Return the progress of all rollouts, the newest first."""
    now = history.jobs.now
    return [_load_progress(history.connection, plan, now) for plan in _plans(history.connection)]


def find_rollout(history: History, rollout_id: str) -> RolloutProgress:
    """Return the progress of a rollout.

    Args:
        history: the history.
        rollout_id: its id, or the beginning of its id.

    Raises:
        UnknownRollout: no rollout has this id, or several ids begin so.
    """
    plan = _find_plan(_plans(history.connection), rollout_id)
    return _load_progress(history.connection, plan, history.jobs.now)


def _plans(connection: Connection) -> list[Rollout]:
    plans = _records(JobQueries(connection), "rollout", Rollout)
    by_id = {plan.id: plan for plan in reversed(plans)}  # the first record of an id counts
    return sorted(by_id.values(), key=lambda plan: (plan.created_at, plan.id), reverse=True)


def find_plan(engine: Engine, rollout_id: str) -> Rollout:
    """Return the plan of a rollout.

    Raises:
        UnknownRollout: no rollout has this id, or several ids begin so.
    """
    with map_database_errors(engine), connect_snapshot(engine) as connection:
        return _find_plan(_plans(connection), rollout_id)


def _find_plan(plans: Iterable[Rollout], rollout_id: str) -> Rollout:
    matches = [plan for plan in plans if plan.id.startswith(rollout_id)]
    matches = [plan for plan in matches if plan.id == rollout_id] or matches
    if len(matches) == 1:
        return matches[0]
    raise UnknownRollout(
        f"{rollout_id}: matches several rollouts: {listed([plan.id for plan in matches], _SHOWN)}"
        if matches
        else f"{rollout_id}: no such rollout in the history"
    )


def recorded_plan(engine: Engine, plan: Rollout) -> Recorded:
    """Return the message that started a rollout."""
    query = (
        select(records.c.body, records.c.signatures)
        .where(records.c.kind == plan.kind, records.c.subject == plan.id)
        .order_by(records.c.offset)
        .limit(1)
    )
    with map_database_errors(engine), engine.connect() as connection:
        body, signatures = connection.execute(query).one()
    return Recorded(plan, body, signatures)


def load_progress(engine: Engine, plan: Rollout) -> RolloutProgress:
    """Return the progress of a rollout as of now."""
    with map_database_errors(engine), connect_snapshot(engine) as connection:
        return _load_progress(connection, plan, time.time())


def _load_progress(connection: Connection, plan: Rollout, now: float) -> RolloutProgress:
    queries = JobQueries(connection, now)
    orders = _with_offsets(connection, RolloutOrder, plan.id)
    sent = [record for _, record in _with_offsets(connection, WaveSent, plan.id)]
    ended = [record for _, record in _with_offsets(connection, WaveEnded, plan.id)]
    resumed = max((offset for offset, order in orders if order.action == "resume"), default=-1)
    tallies = _tallies(queries, plan, sent, ended, resumed)
    return RolloutProgress(plan, tuple(order for _, order in orders), (*sent, *ended), tallies, now)


def _with_offsets(
    connection: Connection, kind: type[_RolloutRecord], rollout_id: str
) -> list[tuple[int, _RolloutRecord]]:
    """Return the records of one kind of a rollout, each with its offset in the stream."""
    query = (
        select(records.c.offset, records.c.body)
        .where(records.c.kind == kind.model_fields["kind"].default)
        .where(records.c.subject == rollout_id)
        .order_by(records.c.offset)
    )
    rows = connection.execute(query)
    return [(offset, kind.read(body, tolerant=True)) for offset, body in rows]


def _records(queries: JobQueries, name: str, kind: type[_Kind]) -> list[_Kind]:
    return [record for record in queries.records(name) if isinstance(record, kind)]


def _tallies(
    queries: JobQueries,
    plan: Rollout,
    sent: Iterable[WaveSent],
    ended: Sequence[WaveEnded],
    resumed: int,
) -> dict[int, WaveTally]:
    known = {job.id: job for job in queries.rows(jobs.c.rollout == plan.id)}
    sent_waves = {record.number for record in sent}
    # The first record of a wave's end counts.
    ends = {record.number: record.created_at.timestamp() for record in reversed(ended)}
    tallies = {}
    for number in range(1, len(plan.waves) + 1):
        if job := known.get(plan.wave_id(number)):
            tallies[number] = WaveTally(
                job.created_at,
                number in sent_waves,
                Counter(job.counts),
                ends.get(number),
                job.cancelled_at,
                job.cancelled_by,
                resumed=(job.cancel_offset or 0) < resumed,
            )
        elif number in sent_waves:  # the history keeps records longer than jobs
            tallies[number] = WaveTally(sent=True, end_seen_at=ends.get(number))
    return tallies
