"""Which schedules are in force, and which of their occurrences were sent."""

from collections.abc import Callable, Collection
from datetime import UTC, datetime, timedelta
from itertools import islice
from typing import NamedTuple

from sqlalchemy import Connection, Engine, select

from broker.history.history import History
from broker.history.position import read_position
from broker.history.queries import JobRow
from broker.history.schema import jobs, records, told
from broker.stream.entry import StreamEntry, read_records
from schemas import Schedule, ScheduleRemoval
from schemas.errors import PcmError
from schemas.schedule import LEAD, Occurrence

_KINDS = ("schedule", "schedule_removal")


class Said(NamedTuple):
    """What was said of a schedule, and the entry of the stream in which it stands."""

    record: Schedule | ScheduleRemoval
    entry: StreamEntry


def _all(_: Said) -> bool:
    return True


class UnknownSchedule(PcmError):
    """No schedule of this name is in force."""


class ScheduleExists(PcmError):
    """A schedule of this name is active already."""


def list_schedules(history: History) -> dict[str, Schedule]:
    """Return the schedules that are in force, by name: of each name the newest not removed."""
    return _schedules(_in_force(history.connection, _all))


def find_schedule(history: History, name: str) -> Schedule:
    """Return the schedule of a name.

    Raises:
        UnknownSchedule: none of this name is in force.
    """
    if (found := list_schedules(history).get(name)) is None:
        raise UnknownSchedule(f"{name}: there is no such schedule")
    return found


def check_new_schedule(history: History, name: str) -> None:
    """Check that no schedule of this name is active: `add_schedule` would replace it.

    Raises:
        ScheduleExists: one is active.
    """
    if name in list_schedules(history):
        raise ScheduleExists(f"{name}: there is such a schedule")


def next_occurrences(
    schedule: Schedule, count: int = 1, now: datetime | None = None
) -> list[Occurrence]:
    """Return the next occurrences by the clock here, though they may have been sent.

    Args:
        schedule: of which schedule; it need not have been added.
        count: so many at most; there are fewer where it ends.
        now: after when, with a time zone; default: now.
    """
    now = now or datetime.now(UTC)
    start = max(schedule.created_at, now - (timedelta(0) if schedule.zone else LEAD))
    coming = (found for found in schedule.coming(start) if found.here > now)
    return list(islice(coming, count))


def occurrences_under_way(history: History, schedule: Schedule) -> list[Occurrence]:
    """Return the occurrences that were sent already, and whose time is yet to come.

    They go on where their schedule is replaced or removed: `Dispatcher.cancel` withdraws them.
    """
    now = datetime.now(UTC)
    found = {
        occurrence.id: occurrence
        for occurrence in schedule.times(max(schedule.created_at, now - LEAD), now)
        if occurrence.here > now
    }
    return [found[job_id] for job_id in sorted(_sent(history.connection, found.keys()))]


def occurrences_sent(history: History, name: str, most: int | None = None) -> list[JobRow]:
    """Return the jobs that were sent of the schedules of a name, the newest first."""
    return history.accounts.jobs(jobs.c.schedule == name, most=most)


def in_force(engine: Engine, heeds: Callable[[Said], bool] = _all) -> dict[str, Schedule]:
    """Return the schedules that are in force, by name: of each name the newest not removed.

    `heeds` says what counts of what was said.

    Raises:
        HistoryError: the database cannot be used.
    """
    with told(engine), engine.connect() as connection:
        return _schedules(_in_force(connection, heeds))


def _schedules(found: dict[str, Said]) -> dict[str, Schedule]:
    return {name: said.record for name, said in found.items() if isinstance(said.record, Schedule)}


def in_force_from_before(engine: Engine, offset: int) -> list[Said]:
    """Return those in force that stood before an offset of the stream, or in a former one.

    Raises:
        HistoryError: the database cannot be used.
    """
    with told(engine), engine.connect() as connection:
        before = read_position(connection).base + offset
        found = _in_force(connection, _all)
    return [said for said in found.values() if said.entry.offset < before]


def next_offset(engine: Engine) -> int:
    """Return the offset from which on nothing was read into the history.

    Raises:
        HistoryError: the database cannot be used.
    """
    with told(engine), engine.connect() as connection:
        place = read_position(connection)
    return place.base + place.next_offset


def said_since(engine: Engine, offset: int, known: Collection[Schedule]) -> list[Said]:
    """Return what was last said of some schedules from an offset on, besides that they are.

    Raises:
        HistoryError: the database cannot be used.
    """
    names = {schedule.name for schedule in known}
    with told(engine), engine.connect() as connection:
        all_said = _said(connection)
    found = {
        said.record.name: said
        for said in all_said
        if said.entry.offset >= offset and said.record.name in names and said.record not in known
    }
    return list(found.values())


def _in_force(connection: Connection, heeds: Callable[[Said], bool]) -> dict[str, Said]:
    found: dict[str, Said] = {}
    for said in filter(heeds, _said(connection)):
        if isinstance(said.record, Schedule):
            found[said.record.name] = said
        else:
            found.pop(said.record.name, None)
    return dict(sorted(found.items()))


def _said(connection: Connection) -> list[Said]:
    """Return all that was said of schedules, in its order."""
    query = (
        select(records.c.offset, records.c.kind, records.c.body, records.c.signatures)
        .where(records.c.kind.in_(_KINDS))
        .order_by(records.c.offset)
    )
    return [
        Said(record, StreamEntry(row.offset, row.kind, "", row.body, signatures=row.signatures))
        for row in connection.execute(query)
        for record in read_records(row.kind, row.body)
        if isinstance(record, Schedule | ScheduleRemoval)
    ]


def sent(engine: Engine, job_ids: Collection[str]) -> set[str]:
    """Return those of some jobs that were sent, as far as the history goes.

    Raises:
        HistoryError: the database cannot be used.
    """
    with told(engine), engine.connect() as connection:
        return _sent(connection, job_ids)


def _sent(connection: Connection, job_ids: Collection[str]) -> set[str]:
    # A job of which there are reports alone has reached somebody, but perhaps not all.
    query = select(jobs.c.id).where(jobs.c.id.in_(job_ids), jobs.c.body.is_not(None))
    return set(connection.scalars(query))
