"""`pcm pause`, `pcm resume` and `pcm forget`: what is asked of workstations as such."""

import argparse
import json
from typing import TYPE_CHECKING

from broker.cli.command_line import DONE, FAILED, CommandError, Parser
from broker.cli.confirm import confirm, require_terminal
from broker.cli.session import history, name, with_dispatcher
from schemas.text import listed

if TYPE_CHECKING:
    from broker.client.dispatcher import Dispatcher

_SHOWN = 10


def add_to(commands: "argparse._SubParsersAction[Parser]") -> None:
    """Add the commands to a program's commands."""
    pause = commands.add_parser(
        "pause",
        help="let workstations start nothing more",
        description="Tells workstations to start nothing more, until pcm resume; what runs, runs"
        " on. One that is off is told when it comes back. pcm workstations shows who has heard"
        " it. Where one of the names is not known, none is told.",
    )
    pause.add_argument("--reason", metavar="TEXT", default="", help="told to the workstations")
    pause.set_defaults(run=_pause)
    resume = commands.add_parser(
        "resume",
        help="let paused workstations go on",
        description="Tells workstations that were paused to go on; others are told in vain.",
    )
    resume.set_defaults(run=_pause)
    forget = commands.add_parser(
        "forget",
        help="let a workstation be gone for good",
        description="Deletes the queues of workstations that are gone for good, with what waits"
        " there, and has the history forget them: jobs that waited become unreachable. Where an"
        " agent of one is up, it is not forgotten: its agent is to be stopped first. The queues"
        " of interactive agents are found by the users that have checked in; those of other"
        " users cannot be listed, and go by themselves when nobody used them for as long as"
        " PCM_QUEUE_EXPIRES said there. Logins stay: of an enrolled one, pcm revoke takes them.",
    )
    forget.add_argument("--yes", action="store_true", help="do not ask back")
    forget.set_defaults(run=_forget)
    for command in (pause, resume, forget):
        command.add_argument("workstation", metavar="WORKSTATION", nargs="+", type=name)
        command.add_argument("--json", action="store_true", help="print JSON")


def _pause(arguments: argparse.Namespace) -> int:
    names, paused = list(dict.fromkeys(arguments.workstation)), arguments.command == "pause"

    async def work(dispatcher: "Dispatcher") -> int:
        if paused:
            await dispatcher.pause(names, arguments.reason)
        else:
            await dispatcher.resume(names)
        return DONE

    with_dispatcher(work)
    if arguments.json:
        print(json.dumps({"workstations": names, "paused": paused}))
    else:
        what = "pause" if paused else "go on"
        print(f"{listed(names, _SHOWN)}: told to {what}; pcm workstations shows who has heard it")
    return DONE


def _forget(arguments: argparse.Namespace) -> int:
    from broker.client.fleet_orders import NotForgettable
    from broker.history.workstations import fleet

    names = list(dict.fromkeys(arguments.workstation))
    if not arguments.yes:
        require_terminal("forget")
    with history() as engine, fleet(engine) as found:
        known = found.workstations(names)

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
            if not confirm(
                f"forget {listed(names, _SHOWN)}, and the {waiting} jobs that wait there?"
            ):
                return FAILED
        with_dispatcher(work)
    except NotForgettable as error:
        raise CommandError(str(error)) from error
    if arguments.json:
        print(json.dumps({"workstations": names, "forgotten": True}))
    else:
        print(f"{listed(names, _SHOWN)}: forgotten")
    return DONE
