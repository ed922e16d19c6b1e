"""`pcm schedule list`, `show` and `next`: show schedules and their past and next occurrences."""

import argparse
import json
import sys
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any
from zoneinfo import ZoneInfo

from broker.cli.command_line import DONE, CommandError, Parser
from broker.cli.session import history_engine, name
from broker.cli.terminal import Column, print_table, printable
from broker.cli.time_formats import local
from broker.history.history import query_history
from broker.history.position import is_collected
from broker.results.query_session import counts_text
from broker.schedules.queries import (
    UnknownSchedule,
    find_schedule,
    list_schedules,
    next_occurrences,
    occurrences_sent,
)
from schemas import WallClock
from schemas.times import duration_text

if TYPE_CHECKING:
    from broker.history.history import History
    from broker.history.queries.jobs import JobQueries
    from broker.history.queries.rows import JobRow
    from schemas import Schedule
    from schemas.orders.schedule import Occurrence

_MAX_SENT = 10
_MAX_NEXT = 5
_MAX_COUNT = 10_000
_MINUTES = "%Y-%m-%d %H:%M"
LIST_COLUMNS = (
    Column("schedule", least=12),
    Column("description", rank=2, least=16),
    Column("zone", rank=5, least=12),
    Column("overlap", rank=6),
    Column("next"),
    Column("last", rank=4),
    Column("counts", rank=3, least=16),
)
_OVERLAPS = {
    "skip": "not sent while an earlier occurrence runs",
    "queue": "sent when the earlier occurrence has ended",
    "allow": "sent while an earlier occurrence runs",
}
NEXT_COLUMNS = (Column("schedule", least=12), Column("local"), Column("instant", least=16))


def add_to(actions: "argparse._SubParsersAction[Parser]") -> None:
    """Add the views to the actions of `pcm schedule`."""
    list_ = actions.add_parser(
        "list",
        help="list all schedules",
        description="Lists the schedules: when they repeat, the next occurrence, the last one"
        " that was sent, and the number of its workstations in each state.",
    )
    list_.set_defaults(run=_list)
    show = actions.add_parser(
        "show",
        help="show a schedule",
        description=f"Shows a schedule, its last {_MAX_SENT} occurrences that were sent, and the"
        f" next {_MAX_NEXT}.",
    )
    show.add_argument("schedule", metavar="NAME", type=name)
    show.set_defaults(run=_show)
    next_ = actions.add_parser(
        "next",
        help="list the next occurrences",
        description="Lists the next occurrences of all schedules or one.",
    )
    next_.add_argument("schedule", metavar="NAME", nargs="?", type=name)
    next_.add_argument(
        "--count",
        metavar="N",
        type=_count,
        default=_MAX_NEXT,
        help=f"number of occurrences (default: {_MAX_NEXT})",
    )
    next_.set_defaults(run=_next)
    for parser in (list_, show, next_):
        parser.add_argument("--json", action="store_true", help="print JSON")


def _count(text: str) -> int:
    if not (text.isascii() and text.isdecimal() and 1 <= int(text[:9]) <= _MAX_COUNT):
        raise argparse.ArgumentTypeError(f"{text!r}: write a number from 1 to {_MAX_COUNT}")
    return int(text)


def local_time(occurrence: "Occurrence") -> str:
    """Format an occurrence's time in its schedule's zone, or as a workstation's local time."""
    return _local_time(occurrence.instant or occurrence.local, occurrence.schedule.zone)


def _local_time(time: datetime, zone: str | None) -> str:
    if time.tzinfo is None:
        return f"{time:{_MINUTES}} local"
    return f"{time.astimezone(ZoneInfo(zone or 'UTC')):{_MINUTES}} {zone or 'UTC'}"


def added(schedule: "Schedule") -> tuple[dict[str, Any], str]:
    """Describe a schedule that was added: as JSON fields, and as text."""
    first = next(iter(next_occurrences(schedule, now=schedule.created_at)), None)
    when = f"first on {local_time(first)}" if first else "never"
    text = f"{schedule.name}: {schedule.explain()}, {_zone_text(schedule)}; {when}"
    return {**_fields(schedule), "next": first and occurrence_fields(first)}, text


def _zone_text(schedule: "Schedule") -> str:
    return schedule.zone or "by each workstation's clock"


def _list(arguments: argparse.Namespace) -> int:
    with history_engine() as engine, query_history(engine) as history:
        found = [
            (schedule, next(iter(next_occurrences(schedule)), None), _sent(history, schedule, 1))
            for schedule in list_schedules(history).values()
        ]
        collected = is_collected(engine)
    if found and not collected:
        print(
            "pcm: pcm collect does not run; occurrences are sent by it or by pcm schedule run",
            file=sys.stderr,
        )
    if arguments.json:
        rows = [
            {
                **_fields(schedule),
                "next": first and occurrence_fields(first),
                "last": last[0] if last else None,
            }
            for schedule, first, last in found
        ]
        print(json.dumps(rows, indent=2))
    elif not found:
        print("no schedules")
    else:
        cells = [
            (
                schedule.name,
                schedule.explain(),
                schedule.zone or "each workstation's",
                schedule.overlap,
                local_time(first) if first else "never",
                *((last[0]["time"], counts_text(last[0]["counts"])) if last else ("-", "-")),
            )
            for schedule, first, last in found
        ]
        print_table(LIST_COLUMNS, cells)
    return DONE


def _show(arguments: argparse.Namespace) -> int:
    with history_engine() as engine, query_history(engine) as history:
        schedule = load_schedule(history, arguments.schedule)
        sent = _sent(history, schedule, _MAX_SENT)
    following = next_occurrences(schedule, _MAX_NEXT)
    if arguments.json:
        fields = json.loads(schedule.body()) | {"description": schedule.explain(), "sent": sent}
        fields["next"] = list(map(occurrence_fields, following))
        print(json.dumps(fields, indent=2))
        return DONE
    for label, value in _labelled(schedule).items():
        if value:
            print(printable(f"{label:<17}{value}"))
    for number, row in enumerate(sent):
        label = "" if number else "sent"
        print(f"{label:<17}{row['time']}  {row['job']}  {counts_text(row['counts'])}")
    for number, occurrence in enumerate(following):
        print(f"{'' if number else 'next':<17}{local_time(occurrence)}  {occurrence.id}")
    return DONE


def _labelled(schedule: "Schedule") -> dict[str, str]:
    def after(value: timedelta | None) -> str:
        return "never" if value is None else f"{duration_text(value)} after its time"

    job = schedule.job
    return {
        "name": schedule.name,
        "repeat": f"{schedule.repeat}: {schedule.explain()}, {_zone_text(schedule)}",
        "missed": "the last is sent late" if schedule.missed == "once" else "not sent",
        "overlap": _OVERLAPS[schedule.overlap],
        "command": str(job.command),
        "targets": " ".join(map(str, job.targets)),
        "excluded": " ".join(map(str, job.excluded)),
        "context": str(job.context),
        "mandatory after": after(schedule.mandatory_after),
        "expires after": after(schedule.expires_after),
        "created at": local(schedule.created_at.timestamp(), seconds=False),
        "sender": schedule.sender,
    }


def _next(arguments: argparse.Namespace) -> int:
    with history_engine() as engine, query_history(engine) as history:
        schedules = (
            list(list_schedules(history).values())
            if arguments.schedule is None
            else [load_schedule(history, arguments.schedule)]
        )
    following = [
        occurrence
        for schedule in schedules
        for occurrence in next_occurrences(schedule, arguments.count)
    ]
    following = sorted(following, key=lambda occurrence: occurrence.here)[: arguments.count]
    if arguments.json:
        print(json.dumps(list(map(occurrence_fields, following)), indent=2))
    elif not following:
        print("no occurrences")
    else:
        print_table(
            NEXT_COLUMNS,
            [(each.schedule.name, local_time(each), _instant(each)) for each in following],
        )
    return DONE


def _instant(occurrence: "Occurrence") -> str:
    if occurrence.instant is None:
        return f"by each clock; sent {local(occurrence.send_at.timestamp(), seconds=False)}"
    return local(occurrence.instant.timestamp(), seconds=False)


def load_schedule(history: "History", schedule: str) -> "Schedule":
    """Return the schedule of a name.

    Raises:
        CommandError: there is no such schedule.
    """
    try:
        return find_schedule(history, schedule)
    except UnknownSchedule as error:
        raise CommandError(str(error)) from error


def _sent(history: "History", schedule: "Schedule", most: int) -> list[dict[str, Any]]:
    """Return the last occurrences that were sent."""
    return [
        {
            "job": row.id,
            "time": _sent_time(history.jobs, row, schedule.zone),
            "counts": dict(row.counts),
        }
        for row in occurrences_sent(history, schedule.name, most)
    ]


def _sent_time(queries: "JobQueries", row: "JobRow", zone: str | None) -> str:
    """Format the time of an occurrence that was sent."""
    job = queries.body(row.id)
    at = None if job is None else job.offer_at
    if isinstance(at, WallClock):
        return _local_time(at.local, None)
    return _local_time(at or datetime.fromtimestamp(row.created_at, UTC), zone)


def _fields(schedule: "Schedule") -> dict[str, Any]:
    return {
        "schedule": schedule.name,
        "repeat": schedule.repeat,
        "description": schedule.explain(),
        "zone": schedule.zone,
        "missed": schedule.missed,
        "overlap": schedule.overlap,
    }


def occurrence_fields(occurrence: "Occurrence") -> dict[str, Any]:
    """Return the JSON fields of an occurrence."""
    instant = occurrence.instant
    return {
        "schedule": occurrence.schedule.name,
        "local": occurrence.local.isoformat(),
        "zone": occurrence.schedule.zone,
        "instant": instant and instant.isoformat(),
        "send_at": occurrence.send_at.isoformat(),
        "job": occurrence.id,
    }
