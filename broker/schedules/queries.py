"""Read from the history the schedules in force and the occurrences that were sent."""

from collections.abc import Callable, Collection
from datetime import UTC, datetime, timedelta
from itertools import islice
from typing import NamedTuple

from sqlalchemy import Connection, Engine, and_, func, or_, select

from broker.history.engine import map_database_errors
from broker.history.history import History
from broker.history.position import read_position
from broker.history.queries.rows import JobRow
from broker.history.schema import jobs, outcomes, records
from broker.stream.entry import StreamEntry, read_records
from schemas import Schedule, ScheduleRemoval, State
from schemas.errors import PcmError
from schemas.orders.schedule import LEAD, Occurrence
from schemas.text import did_you_mean, nearest

_END_ALLOWANCE = 3600.0  # seconds, for the report of an end
_KINDS = ("schedule", "schedule_removal")


class ScheduleRecord(NamedTuple):
    """A schedule or its removal, and its entry in the stream."""

    record: Schedule | ScheduleRemoval
    entry: StreamEntry


Accepts = Callable[[ScheduleRecord, ScheduleRecord | None], bool]


def _accept_all(_: ScheduleRecord, _replaced: ScheduleRecord | None) -> bool:
    return True


class UnknownSchedule(PcmError):
    """No schedule of this name is in force."""


class ScheduleExists(PcmError):
    """A schedule of this name is active already."""


def list_schedules(history: History) -> dict[str, Schedule]:
    """Return the schedules in force, by name: the newest of each name that is not removed."""
    return _schedules(_in_force(history.connection, _accept_all))


def find_schedule(history: History, name: str) -> Schedule:
    """Return the schedule of a name.

    Raises:
        UnknownSchedule: no schedule of this name is in force.
    """
    schedules = list_schedules(history)
    if (schedule := schedules.get(name)) is None:
        near = did_you_mean(nearest(name, schedules))
        raise UnknownSchedule(f"{name}: there is no such schedule{near}")
    return schedule


def check_new_schedule(history: History, name: str) -> None:
    """Check that no schedule of this name is active: `add_schedule` would replace it.

    Raises:
        ScheduleExists: one is active.
    """
    if name in list_schedules(history):
        raise ScheduleExists(f"{name}: exists already")


def next_occurrences(
    schedule: Schedule, count: int = 1, now: datetime | None = None
) -> list[Occurrence]:
    """Return the next occurrences in the local time zone, also those already sent.

    Args:
        schedule: the schedule; it need not have been added.
        count: the number of occurrences; fewer are returned if the schedule ends.
        now: the time, with a time zone, after which they are; default: now.
    """
    now = now or datetime.now(UTC)
    start = max(schedule.created_at, now - (timedelta(0) if schedule.zone else LEAD))
    coming = (occurrence for occurrence in schedule.coming(start) if occurrence.here > now)
    return list(islice(coming, count))


def occurrences_under_way(history: History, schedule: Schedule) -> list[Occurrence]:
    """Return the future occurrences that were already sent.

    They continue after their schedule is replaced or removed; `Dispatcher.cancel` cancels them.
    """
    now = datetime.now(UTC)
    future = {
        occurrence.id: occurrence
        for occurrence in schedule.times(max(schedule.created_at, now - LEAD), now)
        if occurrence.here > now
    }
    return [future[job_id] for job_id in sorted(_sent(history.connection, future.keys()))]


def occurrences_sent(history: History, name: str, most: int | None = None) -> list[JobRow]:
    """Return the jobs sent for the schedules of a name, the newest first."""
    return history.jobs.rows(jobs.c.schedule == name, most=most)


def in_force(engine: Engine, accepts: Accepts = _accept_all) -> dict[str, ScheduleRecord]:
    """Return the schedules in force, by name: the newest of each name that is not removed.

    Records that `accepts` rejects are ignored. It gets each with the schedule that it replaces.

    Raises:
        HistoryError: the database cannot be used.
    """
    with map_database_errors(engine), engine.connect() as connection:
        return _in_force(connection, accepts)


def _schedules(found: dict[str, ScheduleRecord]) -> dict[str, Schedule]:
    return {name: record for name, (record, _) in found.items() if isinstance(record, Schedule)}


def in_force_from_before(engine: Engine, offset: int) -> list[ScheduleRecord]:
    """Return the records in force before an offset of the stream, or from an earlier stream.

    Raises:
        HistoryError: the database cannot be used.
    """
    with map_database_errors(engine), engine.connect() as connection:
        before = read_position(connection).base + offset
        found = _in_force(connection, _accept_all)
    return [each for each in found.values() if each.entry.offset < before]


def next_offset(engine: Engine) -> int:
    """Return the first offset that the history has not read.

    Raises:
        HistoryError: the database cannot be used.
    """
    with map_database_errors(engine), engine.connect() as connection:
        place = read_position(connection)
    return place.base + place.next_offset


def changed_since(engine: Engine, offset: int, known: Collection[Schedule]) -> list[ScheduleRecord]:
    """Return the last change of each known schedule from an offset on; ignore equal schedules.

    Raises:
        HistoryError: the database cannot be used.
    """
    names = {schedule.name for schedule in known}
    with map_database_errors(engine), engine.connect() as connection:
        found = {
            each.record.name: each
            for each in _schedule_records(connection)
            if each.entry.offset >= offset
            and each.record.name in names
            and each.record not in known
        }
    return list(found.values())


def _in_force(connection: Connection, accepts: Accepts) -> dict[str, ScheduleRecord]:
    found: dict[str, ScheduleRecord] = {}
    for each in _schedule_records(connection):
        replaced = found.get(each.record.name)
        if not accepts(each, replaced):
            continue
        if isinstance(each.record, Schedule):
            found[each.record.name] = each
        else:
            found.pop(each.record.name, None)
    return dict(sorted(found.items()))


def _schedule_records(connection: Connection) -> list[ScheduleRecord]:
    """Return all schedules and removals, in the order of the stream."""
    query = (
        select(records.c.offset, records.c.kind, records.c.body, records.c.signatures)
        .where(records.c.kind.in_(_KINDS))
        .order_by(records.c.offset)
    )
    return [
        ScheduleRecord(
            record, StreamEntry(row.offset, row.kind, "", row.body, signatures=row.signatures)
        )
        for row in connection.execute(query)
        for record in read_records(row.kind, row.body)
        if isinstance(record, Schedule | ScheduleRemoval)
    ]


def running_before(engine: Engine, occurrence: Occurrence, at: float) -> str | None:
    """Return the job of an earlier occurrence that ran on some workstation at a time, or None.

    A start without an end counts until the command's timeout is long over: its agent may be gone.

    Raises:
        HistoryError: the database cannot be used.
    """
    schedule = occurrence.schedule
    longest = schedule.job.command.timeout.total_seconds() + _END_ALLOWANCE
    started = outcomes.c.at - func.coalesce(outcomes.c.duration, 0.0)
    still_runs = and_(outcomes.c.state == str(State.STARTED), started + longest > at)
    ended_later = and_(outcomes.c.duration.is_not(None), outcomes.c.at > at)
    query = (
        select(jobs.c.id)
        .join(outcomes, outcomes.c.job_id == jobs.c.id)
        .where(jobs.c.schedule == schedule.name, jobs.c.id != occurrence.id)
        .where(started <= at, or_(still_runs, ended_later))
        .limit(1)
    )
    with map_database_errors(engine), engine.connect() as connection:
        return connection.scalar(query)


def sent(engine: Engine, job_ids: Collection[str]) -> set[str]:
    """Return the given job ids that were sent, according to the history.

    Raises:
        HistoryError: the database cannot be used.
    """
    with map_database_errors(engine), engine.connect() as connection:
        return _sent(connection, job_ids)


def _sent(connection: Connection, job_ids: Collection[str]) -> set[str]:
    # A job with reports only has reached a workstation, but perhaps not all of them.
    query = select(jobs.c.id).where(jobs.c.id.in_(job_ids), jobs.c.body.is_not(None))
    return set(connection.scalars(query))
