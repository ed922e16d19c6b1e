"""`pcm schedule`: jobs that repeat are added, listed and removed, and sent as they come due."""

import argparse
import json
import sys
from typing import TYPE_CHECKING, Any

from broker.cli.command_line import DONE, Parser, WrongUse
from broker.cli.options import as_option
from broker.cli.session import (
    history,
    history_errors,
    name,
    run_until_stopped,
    with_dispatcher,
)
from broker.jobs import send
from broker.schedules import views as schedule_views

if TYPE_CHECKING:
    from broker.client.dispatcher import Dispatcher
    from schemas import Schedule
    from schemas.schedule import Occurrence


def add_to(commands: "argparse._SubParsersAction[Parser]") -> None:
    """Add the command to a program's commands."""
    actions = commands.add_parser(
        "schedule",
        help="jobs that repeat",
        description="A schedule is a job that repeats: each occurrence is sent as a job of its"
        " own. They are sent by pcm schedule run, or by pcm collect.",
    ).add_subparsers(dest="action", required=True, metavar="add|list|show|next|remove|run")
    _add_adding(actions)
    schedule_views.add_to(actions)
    remove = actions.add_parser(
        "remove",
        help="end a schedule",
        description="Ends a schedule: nothing more of it is sent. What was sent goes on.",
    )
    remove.add_argument("schedule", metavar="NAME", type=name)
    remove.add_argument("--json", action="store_true", help="print JSON")
    remove.set_defaults(run=_remove)
    run = actions.add_parser(
        "run",
        help="send what comes due, as a service",
        description="Sends the occurrences of all schedules as they come due, until it is told to"
        " stop (SIGTERM). pcm collect does so, too. Several of them do no harm: nothing is sent"
        " as two jobs.",
    )
    run.set_defaults(run=_run)


def _add_adding(actions: "argparse._SubParsersAction[Parser]") -> None:
    parser = actions.add_parser(
        "add",
        help="add a schedule, or replace one",
        description="Adds a schedule. Its first occurrence is the first after now; where it"
        " replaces one of its name, that one's occurrences end now. Jobs bear the schedule's name,"
        " unless --name says otherwise. A job with --mandatory-after is mandatory, else optional."
        " Durations D are such as 30s, 5m, 1h30m. Without --zone, times are those of each"
        " workstation's own clock on the wall, as cron's would be there: such jobs are sent 15 h"
        " before, so that the first time zone has them in time, and the first occurrence is one"
        " that is at least so far ahead.",
        usage="pcm schedule add NAME --repeat R [OPTION]... -- COMMAND [ARG]...",
    )
    add = parser.add_argument
    add("schedule", metavar="NAME", type=name)
    add(
        "--repeat",
        metavar="R",
        required=True,
        help="cron's five fields, MINUTE HOUR DAY MONTH WEEKDAY: '0 2 * * 0' is 02:00 on Sundays",
    )
    zone = parser.add_mutually_exclusive_group()
    zone.add_argument("--zone", metavar="Z", help="times are those of a zone, as Europe/Berlin")
    zone.add_argument(
        "--workstation-clock",
        action="store_true",
        help="times are those of each workstation's own clock (default)",
    )
    add(
        "--missed",
        choices=["once", "skip"],
        default="once",
        help="of occurrences that came due over 5 min ago, while nobody was there to send them,"
        " send the last one late (default), or none",
    )
    add("--mandatory-after", metavar="D", help="runs so long after its time, wanted or not; 0s: at")
    add("--expires-after", metavar="D", help="never started so long after its time")
    add("--replace", action="store_true", help="replace the schedule of this name")
    add("--json", action="store_true", help="print JSON")
    send.add_options(parser)
    parser.set_defaults(
        run=_add, takes_command=True, file=None, offer_at=None, mandatory_at=None, expires_at=None
    )


def _add(arguments: argparse.Namespace) -> int:
    from broker.history.history import asked
    from broker.schedules.queries import (
        ScheduleExists,
        check_new_schedule,
        list_schedules,
        occurrences_under_way,
    )

    schedule = _read(arguments)
    with history() as engine, asked(engine) as known:
        try:
            if not arguments.replace:
                check_new_schedule(known, schedule.name)
        except ScheduleExists as error:
            raise WrongUse(f"{error}; --replace replaces it") from error
        former = list_schedules(known).get(schedule.name)
        under_way = occurrences_under_way(known, former) if former else []

    async def work(dispatcher: "Dispatcher") -> int:
        if lost := await dispatcher.add_schedule(schedule):
            names = ", ".join(map(str, lost))
            print(
                f"pcm: no workstation is bound to {names} yet: until one is, nothing is sent",
                file=sys.stderr,
            )
        _tell(*schedule_views.added(schedule), under_way, as_json=arguments.json)
        return DONE

    return with_dispatcher(work)


def _read(arguments: argparse.Namespace) -> "Schedule":
    from pydantic import ValidationError

    from schemas import Schedule, explain

    if not arguments.argv:
        raise WrongUse("schedule add: give a command after --")
    given = {key: getattr(arguments, key) for key in ("mandatory_after", "expires_after")}
    try:
        return Schedule.model_validate(
            {
                "name": arguments.schedule,
                "repeat": arguments.repeat,
                "zone": arguments.zone,
                "missed": arguments.missed,
                "job": send.read_job(arguments),
                **{key: value for key, value in given.items() if value is not None},
            }
        )
    except ValidationError as error:
        raise WrongUse(as_option(explain(error))) from error


def _remove(arguments: argparse.Namespace) -> int:
    from broker.history.history import asked
    from broker.schedules.queries import occurrences_under_way

    with history() as engine, asked(engine) as known:
        former = schedule_views.found_schedule(known, arguments.schedule)
        under_way = occurrences_under_way(known, former)

    async def work(dispatcher: "Dispatcher") -> int:
        await dispatcher.remove_schedule(former.name)
        data = {"schedule": former.name, "removed": True}
        _tell(data, f"{former.name}: removed", under_way, as_json=arguments.json)
        return DONE

    return with_dispatcher(work)


def _tell(data: dict[str, Any], text: str, under_way: "list[Occurrence]", *, as_json: bool) -> None:
    """Print what was done, and which occurrences go on though it was."""
    if as_json:
        print(json.dumps({**data, "under_way": [found.id for found in under_way]}))
        return
    print(text)
    for found in under_way:
        when = schedule_views.clock(found)
        print(
            f"pcm: {found.id} of {when} was sent already: pcm cancel withdraws it",
            file=sys.stderr,
        )


def _run(_arguments: argparse.Namespace) -> int:
    from broker import log
    from broker.schedules.scheduler import run_scheduler

    log.configure(program="schedule")
    with history_errors():
        run_until_stopped(run_scheduler())
    return DONE
