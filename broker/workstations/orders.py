"""`pcm pause`, `pcm resume` and `pcm forget`: orders for workstations."""

import argparse
import json
from typing import TYPE_CHECKING

from broker.cli.command_line import DONE, FAILED, CommandError, Parser
from broker.cli.confirm import confirm, require_terminal
from broker.cli.session import history_engine, with_dispatcher
from broker.cli.targets import (
    read_workstations,
    suggest_for_unroutable,
    suggestions,
    workstation_targets,
)
from broker.client.fleet_orders import NotForgettable
from broker.history.queries.workstations import query_fleet
from schemas.text import listed

if TYPE_CHECKING:
    from broker.client.dispatcher import Dispatcher

_SHOWN = 10


def add_to(commands: "argparse._SubParsersAction[Parser]") -> None:
    """Add the commands to a program's commands."""
    pause = commands.add_parser(
        "pause",
        description="Pauses workstations: they start no job until pcm resume; running jobs"
        " continue. A workstation that is off pauses when it is on again. pcm workstations shows"
        " which workstations are paused. If a name is unknown, nothing is sent.",
    )
    pause.add_argument("--reason", metavar="TEXT", default="", help="shown on the workstations")
    pause.set_defaults(run=_pause)
    resume = commands.add_parser(
        "resume",
        description="Resumes paused workstations; others ignore it.",
    )
    resume.set_defaults(run=_pause)
    forget = commands.add_parser(
        "forget",
        description="Deletes the queues of removed workstations with the queued jobs, and removes"
        " the workstations from the history: queued jobs become unreachable. A workstation whose"
        " agent is up is not forgotten: stop its agents first. The queues of interactive agents"
        " are found by the users that have checked in; others expire when they are unused"
        " (PCM_QUEUE_EXPIRES of the agent). Logins stay: pcm revoke deletes those of enrolled"
        " agents.",
    )
    forget.add_argument("--yes", action="store_true", help="do not ask for confirmation")
    forget.set_defaults(run=_forget)
    for command in (pause, resume, forget):
        command.add_argument(
            "workstation",
            metavar="WORKSTATION",
            nargs="+",
            help="a name, a list such as A,B, a file of names as @FILE, group:NAME, or a glob such"
            " as 'lab-*'",
        )
        command.add_argument("--json", action="store_true", help="print JSON")


def _pause(arguments: argparse.Namespace) -> int:
    names = read_workstations(arguments.command, arguments.workstation)
    paused = arguments.command == "pause"

    async def work(dispatcher: "Dispatcher") -> int:
        if paused:
            await dispatcher.pause(names, arguments.reason)
        else:
            await dispatcher.resume(names)
        return DONE

    with suggest_for_unroutable(workstation_targets(names)):
        with_dispatcher(work)
    if arguments.json:
        print(json.dumps({"workstations": names, "paused": paused}))
    else:
        order = "pause" if paused else "resume"
        print(f"{listed(names, _SHOWN)}: {order} was sent; pcm workstations shows their status")
    return DONE


def _forget(arguments: argparse.Namespace) -> int:
    names = read_workstations("forget", arguments.workstation)
    if not arguments.yes:
        require_terminal("forget")
    with history_engine() as engine, query_fleet(engine) as known_fleet:
        known = known_fleet.workstations(names)

    async def check(dispatcher: "Dispatcher") -> int:
        await dispatcher.check_forgettable(names, known)
        return DONE

    async def work(dispatcher: "Dispatcher") -> int:
        await dispatcher.forget(names, known)
        return DONE

    try:
        if not arguments.yes:
            with_dispatcher(check)
            waiting = sum(row.waiting for row in known)
            if not confirm(f"forget {listed(names, _SHOWN)}, and the {waiting} queued jobs?"):
                return FAILED
        with_dispatcher(work)
    except NotForgettable as error:
        raise CommandError(f"{error}{suggestions(workstation_targets(names))}") from error
    if arguments.json:
        print(json.dumps({"workstations": names, "forgotten": True}))
    else:
        print(f"{listed(names, _SHOWN)}: forgotten")
    return DONE
