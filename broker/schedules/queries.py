"""Which schedules are in force, and which of their occurrences were sent."""

from collections.abc import Callable, Collection, Iterator
from typing import NamedTuple

from sqlalchemy import Engine, select

from broker.history.position import place_in
from broker.history.schema import jobs, records, told
from broker.stream.entry import StreamEntry, read_records
from schemas import Schedule, ScheduleRemoval

_KINDS = ("schedule", "schedule_removal")


class Said(NamedTuple):
    """What was said of a schedule, and the entry of the stream in which it stands."""

    record: Schedule | ScheduleRemoval
    entry: StreamEntry


def _all(_: Said) -> bool:
    return True


def in_force(engine: Engine, heeds: Callable[[Said], bool] = _all) -> dict[str, Schedule]:
    """Return the schedules that are in force, by name: of each name the newest not removed.

    `heeds` says what counts of what was said.

    Raises:
        HistoryError: the database cannot be used.
    """
    return {
        name: said.record
        for name, said in _in_force(engine, heeds).items()
        if isinstance(said.record, Schedule)
    }


def in_force_from_before(engine: Engine, offset: int) -> list[Said]:
    """Return those in force that stood before an offset of the stream, or in a former one.

    Raises:
        HistoryError: the database cannot be used.
    """
    with told(engine), engine.connect() as connection:
        before = place_in(connection).base + offset
    return [said for said in _in_force(engine, _all).values() if said.entry.offset < before]


def next_offset(engine: Engine) -> int:
    """Return the offset from which on nothing was read into the history.

    Raises:
        HistoryError: the database cannot be used.
    """
    with told(engine), engine.connect() as connection:
        place = place_in(connection)
    return place.base + place.next_offset


def said_since(engine: Engine, offset: int, known: Collection[Schedule]) -> list[Said]:
    """Return what was last said of some schedules from an offset on, besides that they are.

    Raises:
        HistoryError: the database cannot be used.
    """
    names = {schedule.name for schedule in known}
    found = {
        said.record.name: said
        for said in _said(engine)
        if said.entry.offset >= offset and said.record.name in names and said.record not in known
    }
    return list(found.values())


def _in_force(engine: Engine, heeds: Callable[[Said], bool]) -> dict[str, Said]:
    found: dict[str, Said] = {}
    for said in filter(heeds, _said(engine)):
        if isinstance(said.record, Schedule):
            found[said.record.name] = said
        else:
            found.pop(said.record.name, None)
    return dict(sorted(found.items()))


def _said(engine: Engine) -> Iterator[Said]:
    """Yield all that was said of schedules, in its order."""
    query = (
        select(records.c.offset, records.c.kind, records.c.body, records.c.signatures)
        .where(records.c.kind.in_(_KINDS))
        .order_by(records.c.offset)
    )
    with told(engine), engine.connect() as connection:
        rows = connection.execute(query).all()
    for row in rows:
        entry = StreamEntry(row.offset, row.kind, "", row.body, signatures=row.signatures)
        for record in read_records(row.kind, row.body):
            if isinstance(record, Schedule | ScheduleRemoval):
                yield Said(record, entry)


def sent(engine: Engine, job_ids: Collection[str]) -> set[str]:
    """Return those of some jobs that were sent, as far as the history goes.

    Raises:
        HistoryError: the database cannot be used.
    """
    # A job of which there are reports alone has reached somebody, but perhaps not all.
    query = select(jobs.c.id).where(jobs.c.id.in_(job_ids), jobs.c.body.is_not(None))
    with told(engine), engine.connect() as connection:
        return set(connection.scalars(query))
