"""Which schedules are in force, and which of their occurrences were sent."""

from collections.abc import Collection, Iterator

from sqlalchemy import Engine, select

from broker.entry import read_records
from broker.history.place import place_in
from broker.history.tables import jobs, records, told
from schemas import Schedule, ScheduleRemoval

_KINDS = ("schedule", "schedule_removal")


def in_force(engine: Engine) -> dict[str, Schedule]:
    """Return the schedules that are in force, by name: of each name the newest not removed.

    Raises:
        HistoryError: the database cannot be used.
    """
    return {name: schedule for name, (_, schedule) in _in_force(engine).items()}


def in_force_from_before(engine: Engine, offset: int) -> list[Schedule]:
    """Return those in force that stood before an offset of the stream, or in a former one.

    Raises:
        HistoryError: the database cannot be used.
    """
    with told(engine), engine.connect() as connection:
        before = place_in(connection).base + offset
    return [schedule for at, schedule in _in_force(engine).values() if at < before]


def next_offset(engine: Engine) -> int:
    """Return the offset from which on nothing was read into the history.

    Raises:
        HistoryError: the database cannot be used.
    """
    with told(engine), engine.connect() as connection:
        place = place_in(connection)
    return place.base + place.next_offset


def said_since(
    engine: Engine, offset: int, known: Collection[Schedule]
) -> list[Schedule | ScheduleRemoval]:
    """Return what was last said of some schedules from an offset on, besides that they are.

    Raises:
        HistoryError: the database cannot be used.
    """
    names = {schedule.name for schedule in known}
    found = {
        record.name: record
        for at, record in _said(engine)
        if at >= offset and record.name in names and record not in known
    }
    return list(found.values())


def _in_force(engine: Engine) -> dict[str, tuple[int, Schedule]]:
    found: dict[str, tuple[int, Schedule]] = {}
    for offset, record in _said(engine):
        if isinstance(record, Schedule):
            found[record.name] = (offset, record)
        else:
            found.pop(record.name, None)
    return dict(sorted(found.items()))


def _said(engine: Engine) -> Iterator[tuple[int, Schedule | ScheduleRemoval]]:
    """Yield all that was said of schedules, in its order, with its offset."""
    query = (
        select(records.c.offset, records.c.kind, records.c.body)
        .where(records.c.kind.in_(_KINDS))
        .order_by(records.c.offset)
    )
    with told(engine), engine.connect() as connection:
        rows = connection.execute(query).all()
    for row in rows:
        for record in read_records(row.kind, row.body):
            if isinstance(record, Schedule | ScheduleRemoval):
                yield row.offset, record


def sent(engine: Engine, job_ids: Collection[str]) -> set[str]:
    """Return those of some jobs that were sent, as far as the history goes.

    Raises:
        HistoryError: the database cannot be used.
    """
    # A job of which there are reports alone has reached somebody, but perhaps not all.
    query = select(jobs.c.id).where(jobs.c.id.in_(job_ids), jobs.c.body.is_not(None))
    with told(engine), engine.connect() as connection:
        return set(connection.scalars(query))
