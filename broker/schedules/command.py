"""`pcm schedule`: add, list and remove repeating jobs, and send them when they are due."""

import argparse
import asyncio
import json
import sys
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from broker import log
from broker.cli.command_line import DONE, Parser, UsageError
from broker.cli.hints import print_offer_hint
from broker.cli.options import as_option
from broker.cli.session import (
    history_engine,
    history_errors,
    name,
    run_until_stopped,
    with_dispatcher,
)
from broker.cli.targets import print_suggestions
from broker.history.history import query_history
from broker.jobs import send
from broker.schedules import views as schedule_views
from broker.schedules.queries import (
    ScheduleExists,
    check_new_schedule,
    list_schedules,
    occurrences_under_way,
)
from broker.schedules.scheduler import run_scheduler
from schemas import Schedule, explain

if TYPE_CHECKING:
    from broker.client.dispatcher import Dispatcher
    from schemas import Job
    from schemas.orders.schedule import Occurrence


def add_to(commands: "argparse._SubParsersAction[Parser]") -> None:
    """Add the command to a program's commands."""
    actions = commands.add_parser(
        "schedule",
        description="A schedule is a job that repeats. Each occurrence is sent as a job of its own,"
        " by pcm schedule run or by pcm collect.",
    ).add_subparsers(dest="action", required=True, metavar="add|list|show|next|remove|run")
    _add_add_command(actions)
    schedule_views.add_to(actions)
    remove = actions.add_parser(
        "remove",
        help="remove a schedule",
        description="Removes a schedule: no further occurrence is sent. Sent jobs continue.",
    )
    remove.add_argument("schedule", metavar="NAME", type=name)
    remove.add_argument("--json", action="store_true", help="print JSON")
    remove.set_defaults(run=_remove)
    run = actions.add_parser(
        "run",
        help="send occurrences when they are due, as a service",
        description="Sends the occurrences of all schedules when they are due, until SIGTERM. pcm"
        " collect does so, too. Several may run at the same time: each occurrence is one job.",
    )
    run.set_defaults(run=_run)


def _add_add_command(actions: "argparse._SubParsersAction[Parser]") -> None:
    parser = actions.add_parser(
        "add",
        help="add a schedule, or replace one",
        description="Adds a schedule. Its first occurrence is the first one after now. A schedule"
        " that it replaces ends now. Jobs are named after the schedule, unless --name is given. A"
        " job with --mandatory-after is mandatory, otherwise optional. A duration D is such as 30s,"
        " 5m, 1h30m. Without --zone, times are those of each workstation's clock, as cron's would"
        " be there. Such jobs are sent 15 h ahead, to reach the earliest time zone in time; their"
        " first occurrence is at least 15 h ahead.",
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
    zone.add_argument("--zone", metavar="Z", help="time zone, such as Europe/Berlin")
    zone.add_argument(
        "--workstation-clock",
        action="store_true",
        help="times are those of each workstation's clock (default)",
    )
    add(
        "--missed",
        choices=["once", "skip"],
        default="once",
        help="if occurrences were due more than 5 min ago and were not sent, send the last one late"
        " (default), or none",
    )
    add(
        "--overlap",
        choices=["skip", "queue", "allow"],
        default="skip",
        help="if an occurrence is due while an earlier one still runs on some workstation: skip it"
        " (default), send it when that has ended (of several, the last), or send it",
    )
    add("--mandatory-after", metavar="D", help="runs D after its time without consent; 0s: at it")
    add("--expires-after", metavar="D", help="never starts later than D after its time")
    add("--replace", action="store_true", help="replace the schedule of this name")
    add("--json", action="store_true", help="print JSON")
    send.add_options(parser)
    parser.set_defaults(
        run=_add, takes_command=True, file=None, offer_at=None, mandatory_at=None, expires_at=None
    )


def _add(arguments: argparse.Namespace) -> int:
    schedule = _read(arguments)
    with history_engine() as engine, query_history(engine) as history:
        try:
            if not arguments.replace:
                check_new_schedule(history, schedule.name)
        except ScheduleExists as error:
            raise UsageError(f"{error}; --replace replaces it") from error
        previous = list_schedules(history).get(schedule.name)
        under_way = occurrences_under_way(history, previous) if previous else []

    async def work(dispatcher: "Dispatcher") -> int:
        if unbound := await dispatcher.add_schedule(schedule):
            names = ", ".join(map(str, unbound))
            print(
                f"pcm: no workstation is bound to {names} yet: nothing is sent until one is",
                file=sys.stderr,
            )
            await asyncio.to_thread(print_suggestions, unbound)
        _print_done(*schedule_views.added(schedule), under_way, as_json=arguments.json)
        if schedule.mandatory_after is None:
            print_offer_hint([schedule.job], "--mandatory-after D")
        return DONE

    return with_dispatcher(work)


def _read(arguments: argparse.Namespace) -> "Schedule":
    if not (arguments.argv or arguments.package or arguments.script):
        raise UsageError("schedule add: give a command after --, or --script or --package")
    times = {key: getattr(arguments, key) for key in ("mandatory_after", "expires_after")}
    try:
        return Schedule.model_validate(
            {
                "name": arguments.schedule,
                "repeat": arguments.repeat,
                "zone": arguments.zone,
                "missed": arguments.missed,
                "overlap": arguments.overlap,
                "job": _template(arguments),
                **{key: value for key, value in times.items() if value is not None},
            }
        )
    except ValidationError as error:
        raise UsageError(as_option(explain(error))) from error


def _template(arguments: argparse.Namespace) -> "Job":
    """Return the job of the occurrences; of a package, they all have the version found now."""
    job = send.read_job(arguments, resolve=False)
    if job.package is None:
        return job
    # The channel moves on, and agents refuse what an older list of it named.
    pinned = job.package.model_copy(update={"channel": None, "channel_serial": None})
    return job.model_copy(update={"package": pinned})


def _remove(arguments: argparse.Namespace) -> int:
    with history_engine() as engine, query_history(engine) as history:
        schedule = schedule_views.find(history, arguments.schedule)
        under_way = occurrences_under_way(history, schedule)

    async def work(dispatcher: "Dispatcher") -> int:
        await dispatcher.remove_schedule(schedule.name)
        fields = {"schedule": schedule.name, "removed": True}
        _print_done(fields, f"{schedule.name}: removed", under_way, as_json=arguments.json)
        return DONE

    return with_dispatcher(work)


def _print_done(
    fields: dict[str, Any], text: str, under_way: "list[Occurrence]", *, as_json: bool
) -> None:
    """Print what was done, and the occurrences that were already sent and continue."""
    if as_json:
        print(json.dumps({**fields, "under_way": [occurrence.id for occurrence in under_way]}))
        return
    print(text)
    for occurrence in under_way:
        when = schedule_views.local_time(occurrence)
        print(
            f"pcm: {occurrence.id} of {when} was sent already: pcm cancel cancels it",
            file=sys.stderr,
        )


def _run(_arguments: argparse.Namespace) -> int:
    log.configure(program="schedule")
    with history_errors():
        run_until_stopped(run_scheduler())
    return DONE
