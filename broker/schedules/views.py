"""`pcm schedule list`, `show` and `next`: what repeats, what was sent of it, and what comes."""

import argparse
import json
import sys
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from broker.cli.command_line import DONE, Parser, Wrong
from broker.cli.session import history, name
from broker.cli.terminal import Column, print_table, printable
from broker.cli.time_formats import local

if TYPE_CHECKING:
    from collections.abc import Mapping

    from broker.history.history import History
    from broker.history.queries import Accounts, JobRow
    from schemas import Schedule
    from schemas.schedule import Occurrence

_SHOWN = 10  # occurrences that were sent
_COMING = 5
_MOST = 10_000
_MINUTES = "%Y-%m-%d %H:%M"
_LISTED = (
    Column("name", least=12),
    Column("repeats", rank=2, least=16),
    Column("zone", rank=5, least=12),
    Column("next"),
    Column("last sent", rank=4),
    Column("of it", rank=3, least=16),
)
_NEXT = (Column("name", least=12), Column("time"), Column("instant", least=16))


def add_to(actions: "argparse._SubParsersAction[Parser]") -> None:
    """Add the views to the actions of `pcm schedule`."""
    every = actions.add_parser(
        "list",
        help="all schedules",
        description="Lists the schedules: when they repeat, the next occurrence, the last one"
        " that was sent, and on how many workstations it is in which state.",
    )
    every.set_defaults(run=_list)
    show = actions.add_parser(
        "show",
        help="all of a schedule",
        description=f"Tells all of a schedule, with its last {_SHOWN} occurrences that were sent,"
        f" and the next {_COMING}.",
    )
    show.add_argument("schedule", metavar="NAME", type=name)
    show.set_defaults(run=_show)
    coming = actions.add_parser(
        "next",
        help="the occurrences to come",
        description="Lists the occurrences to come, of all schedules or one.",
    )
    coming.add_argument("schedule", metavar="NAME", nargs="?", type=name)
    coming.add_argument(
        "--count", metavar="N", type=_count, default=_COMING, help=f"how many (default: {_COMING})"
    )
    coming.set_defaults(run=_next)
    for parser in (every, show, coming):
        parser.add_argument("--json", action="store_true", help="print JSON")


def _count(text: str) -> int:
    if not (text.isascii() and text.isdecimal() and 1 <= int(text[:9]) <= _MOST):
        raise argparse.ArgumentTypeError(f"{text!r}: write a number from 1 to {_MOST}")
    return int(text)


def clock(occurrence: "Occurrence") -> str:
    """Return when an occurrence is, on the clock that it goes by."""
    return _clock(occurrence.instant or occurrence.local, occurrence.schedule.zone)


def _clock(time: datetime, zone: str | None) -> str:
    from zoneinfo import ZoneInfo

    if time.tzinfo is None:
        return f"{time:{_MINUTES}} local"
    return f"{time.astimezone(ZoneInfo(zone or 'UTC')):{_MINUTES}} {zone or 'UTC'}"


def added(schedule: "Schedule") -> tuple[dict[str, Any], str]:
    """Return what to tell of a schedule that is added: as JSON, and for people."""
    from broker.schedules.queries import next_occurrences

    first = next(iter(next_occurrences(schedule, now=schedule.created_at)), None)
    when = f"first on {clock(first)}" if first else "never"
    text = f"{schedule.name}: {schedule.explain()}, {_whose(schedule)}; {when}"
    return {**_json(schedule), "next": first and _json_of(first)}, text


def _whose(schedule: "Schedule") -> str:
    return schedule.zone or "by each workstation's clock"


def _list(arguments: argparse.Namespace) -> int:
    from broker.history.history import asked
    from broker.history.position import is_collected
    from broker.schedules.queries import list_schedules, next_occurrences

    with history() as engine, asked(engine) as known:
        found = [
            (schedule, next(iter(next_occurrences(schedule)), None), _sent(known, schedule, 1))
            for schedule in list_schedules(known).values()
        ]
        sends = is_collected(engine)
    if found and not sends:
        print(
            "pcm: no pcm collect is at work; they are sent while that, or pcm schedule run, is",
            file=sys.stderr,
        )
    if arguments.json:
        rows = [
            {
                **_json(schedule),
                "next": first and _json_of(first),
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
                clock(first) if first else "never",
                *((last[0]["time"], _tally(last[0]["counts"])) if last else ("-", "-")),
            )
            for schedule, first, last in found
        ]
        print_table(_LISTED, cells)
    return DONE


def _show(arguments: argparse.Namespace) -> int:
    from broker.history.history import asked
    from broker.schedules.queries import next_occurrences

    with history() as engine, asked(engine) as known:
        schedule = found_schedule(known, arguments.schedule)
        sent = _sent(known, schedule, _SHOWN)
    coming = next_occurrences(schedule, _COMING)
    if arguments.json:
        whole = json.loads(schedule.body()) | {"words": schedule.explain()}
        print(json.dumps({**whole, "sent": sent, "next": list(map(_json_of, coming))}, indent=2))
        return DONE
    for label, value in _facts(schedule).items():
        print(printable(f"{label:<17}{value}"))
    for number, row in enumerate(sent):
        label = "" if number else "last sent"
        print(f"{label:<17}{row['time']}  {row['job']}  {_tally(row['counts'])}")
    for number, occurrence in enumerate(coming):
        print(f"{'' if number else 'next':<17}{clock(occurrence)}  {occurrence.id}")
    return DONE


def _facts(schedule: "Schedule") -> dict[str, str]:
    from schemas.times import duration_text

    def after(value: timedelta | None) -> str:
        return "never" if value is None else f"{duration_text(value)} after its time"

    job = schedule.job
    return {
        "name": schedule.name,
        "repeats": f"{schedule.repeat}: {schedule.explain()}, {_whose(schedule)}",
        "missed": "the last is sent late" if schedule.missed == "once" else "not sent",
        "command": str(job.command),
        "for": " ".join(map(str, job.targets))
        + (f", not {' '.join(map(str, job.excluded))}" if job.excluded else ""),
        "context": str(job.context),
        "mandatory": after(schedule.mandatory_after),
        "expires": after(schedule.expires_after),
        "added": f"{local(schedule.created_at.timestamp(), seconds=False)} by {schedule.sender}",
    }


def _next(arguments: argparse.Namespace) -> int:
    from broker.history.history import asked
    from broker.schedules.queries import list_schedules, next_occurrences

    with history() as engine, asked(engine) as known:
        wanted = (
            list(list_schedules(known).values())
            if arguments.schedule is None
            else [found_schedule(known, arguments.schedule)]
        )
    found = [
        occurrence
        for schedule in wanted
        for occurrence in next_occurrences(schedule, arguments.count)
    ]
    found = sorted(found, key=lambda occurrence: occurrence.here)[: arguments.count]
    if arguments.json:
        print(json.dumps(list(map(_json_of, found)), indent=2))
    elif not found:
        print("none to come")
    else:
        rows = [(found.schedule.name, clock(found), _instant(found)) for found in found]
        print_table(_NEXT, rows)
    return DONE


def _instant(occurrence: "Occurrence") -> str:
    if occurrence.instant is None:
        return f"by each clock; sent {local(occurrence.send_at.timestamp(), seconds=False)}"
    return local(occurrence.instant.timestamp(), seconds=False)


def found_schedule(known: "History", wanted: str) -> "Schedule":
    """Return the schedule that is named.

    Raises:
        Wrong: there is none.
    """
    from broker.schedules.queries import UnknownSchedule, find_schedule

    try:
        return find_schedule(known, wanted)
    except UnknownSchedule as error:
        raise Wrong(str(error)) from error


def _sent(known: "History", schedule: "Schedule", most: int) -> list[dict[str, Any]]:
    """Return the last occurrences that were sent."""
    from broker.schedules.queries import occurrences_sent

    return [
        {
            "job": row.id,
            "time": _time(known.accounts, row, schedule.zone),
            "counts": dict(row.counts),
        }
        for row in occurrences_sent(known, schedule.name, most)
    ]


def _time(known: "Accounts", row: "JobRow", zone: str | None) -> str:
    """Return when an occurrence was, on the clock that it went by."""
    from schemas import WallClock

    job = known.body(row.id)
    at = None if job is None else job.offer_at
    if isinstance(at, WallClock):
        return _clock(at.local, None)
    return _clock(at or datetime.fromtimestamp(row.created_at, UTC), zone)


def _tally(counts: "Mapping[str, int]") -> str:
    from broker.history.queries import STATES

    known = [f"{counts[state]} {state}" for state in STATES if counts.get(state)]
    return ", ".join(known).replace("_", " ") or "no workstation yet"


def _json(schedule: "Schedule") -> dict[str, Any]:
    return {
        "schedule": schedule.name,
        "repeat": schedule.repeat,
        "words": schedule.explain(),
        "zone": schedule.zone,
        "missed": schedule.missed,
    }


def _json_of(occurrence: "Occurrence") -> dict[str, Any]:
    instant = occurrence.instant
    return {
        "schedule": occurrence.schedule.name,
        "local": occurrence.local.isoformat(),
        "zone": occurrence.schedule.zone,
        "instant": instant and instant.isoformat(),
        "send_at": occurrence.send_at.isoformat(),
        "job": occurrence.id,
    }
