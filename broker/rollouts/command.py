"""`pcm rollout`: how rollouts go, and what becomes of them."""

import argparse
import sys
from typing import TYPE_CHECKING, Any

from broker.amqp.timeouts import timeout
from broker.cli.command_line import DONE, FAILED, Parser, Wrong, argument_errors
from broker.cli.session import check_vouched, history, name, with_dispatcher
from broker.rollouts import views as standing

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from sqlalchemy import Engine

    from broker.client.dispatcher import Dispatcher
    from broker.rollouts.runner import Driver
    from broker.rollouts.state import Standing
    from schemas import Rollout

LIMIT_HELP = "failures borne: a count, or a part such as 5%% of the workstations sent to so far"


def add_to(commands: "argparse._SubParsersAction[Parser]") -> None:
    """Add the command to a program's commands."""
    actions = commands.add_parser(
        "rollout",
        help="how rollouts go, and what becomes of them",
        description="A rollout is a job that pcm send --waves sends in waves. It can be driven on"
        " from anywhere, whatever became of the program that began it; by two at once as well.",
    ).add_subparsers(dest="what", required=True, metavar="list|show|pause|resume|abort")
    listing = actions.add_parser("list", help="a row a rollout", description="Lists rollouts.")
    listing.set_defaults(run=_list)
    show = actions.add_parser("show", help="all of one", description="Shows a rollout's waves.")
    pause = actions.add_parser(
        "pause",
        help="no further wave until it is resumed",
        description="Holds a rollout: what was sent goes on, no further wave is sent, and whoever"
        " drives it ends.",
    )
    resume = actions.add_parser(
        "resume",
        help="drive it on",
        description="Drives a rollout on: one that was paused, that failures stopped, or whose"
        " driver ended. What was sent is not sent again.",
    )
    resume.add_argument("--max-failures", metavar="N", type=limit, help=f"{LIMIT_HELP}, now on")
    abort = actions.add_parser(
        "abort",
        help="no further wave, ever",
        description="Ends a rollout: no further wave is sent, and its jobs are cancelled where"
        " they have not ended.",
    )
    for one in (pause, abort):
        one.add_argument("--reason", metavar="TEXT", default="", help="for those who look")
    runs = {show: _show, pause: _order, resume: _resume, abort: _order}
    for action, run in runs.items():
        action.add_argument("id", metavar="ID", type=name, help="its id, or how it begins")
        action.set_defaults(run=run)
    for action in (listing, *runs):
        action.add_argument("--json", action="store_true", help="print JSON")


def driver_of(
    dispatcher: "Dispatcher", engine: "Engine", plan: "Rollout", *, as_json: bool
) -> "Driver":
    """Return what drives a rollout, and prints how it goes."""
    from broker.rollouts.runner import Driver
    from broker.settings import HistorySettings, load

    told = standing.Teller(plan, as_json=as_json)
    return Driver(dispatcher, load(HistorySettings), engine, plan, told)


async def drive(driver: "Driver", plan: "Rollout", arguments: argparse.Namespace) -> int:
    """Drive a rollout on; return the exit status."""
    import asyncio

    from broker.amqp.connection import BrokerError
    from broker.history.schema import HistoryError

    try:
        async with timeout(getattr(arguments, "give_up_after", None)):
            found = await driver.drive()
    except TimeoutError:
        _tell_left(plan)
        return FAILED
    except (asyncio.CancelledError, BrokerError, HistoryError):
        _tell_left(plan)
        raise
    if not arguments.json and (hint := standing.hint(plan, found)):
        print(hint, flush=True)
    return _status(found)


def _tell_left(plan: "Rollout") -> None:
    text = f"pcm: nobody drives it now: pcm rollout resume {plan.id} goes on"
    print(text, file=sys.stderr, flush=True)


def _list(arguments: argparse.Namespace) -> int:
    from broker.rollouts.progress import course, plans

    with history() as engine:
        courses = [course(engine, plan) for plan in plans(engine)]
    standing.tell_all(courses, as_json=arguments.json)
    return DONE


def _show(arguments: argparse.Namespace) -> int:
    def work(engine: "Engine", plan: "Rollout") -> int:
        from broker.rollouts.progress import course

        standing.tell_one(course(engine, plan), as_json=arguments.json)
        return DONE

    return _found(arguments, work)


def _found(arguments: argparse.Namespace, work: "Callable[[Engine, Rollout], int]") -> int:
    """Find the rollout that is named, and work on it."""
    from broker.rollouts.progress import UnknownRollout, find

    with history() as engine:
        try:
            plan = find(engine, arguments.id)
        except UnknownRollout as error:
            raise Wrong(str(error)) from error
        return work(engine, plan)


def _driven(
    arguments: argparse.Namespace,
    order: "Callable[[Standing], dict[str, Any]]",
    work: "Callable[[Driver, Rollout], Awaitable[int]]",
) -> int:
    """Record an order for the rollout that is named, and work on it."""

    def ordered(engine: "Engine", plan: "Rollout") -> int:
        from broker.rollouts.progress import course, recorded
        from schemas import RolloutOrder

        if arguments.what == "resume":
            body, signatures = recorded(engine, plan)
            check_vouched(plan, body, signatures)
        found = course(engine, plan).standing
        if arguments.what == "resume" and found.state == "finished":
            standing.Teller(plan, as_json=arguments.json)(found)
            return _status(found)
        asked: RolloutOrder = RolloutOrder(rollout_id=plan.id, **order(found))

        async def working(dispatcher: "Dispatcher") -> int:
            driver = driver_of(dispatcher, engine, plan, as_json=arguments.json)
            await driver.order(asked)
            return await work(driver, plan)

        return with_dispatcher(working)

    return _found(arguments, ordered)


def _status(found: "Standing") -> int:
    ran = found.counts["succeeded"] or found.failures  # somewhere, and as it is borne
    return DONE if found.state == "finished" and not found.exceeded and ran else FAILED


def _resume(arguments: argparse.Namespace) -> int:
    def order(found: "Standing") -> dict[str, Any]:
        if found.state in {"aborted", "expired"}:
            raise Wrong(f"it is {found.state}: there is nothing to resume")
        if found.state == "stopped" and arguments.max_failures is None:
            raise Wrong(f"{found.reason}: say how many are borne, by --max-failures")
        return {"action": "resume", "max_failures": arguments.max_failures}

    async def work(driver: "Driver", plan: "Rollout") -> int:
        return await drive(driver, plan, arguments)

    return _driven(arguments, order, work)


def _order(arguments: argparse.Namespace) -> int:
    """Pause or abort a rollout, and look until it is so."""

    def order(found: "Standing") -> dict[str, Any]:
        aborts_open = arguments.what == "abort" and (found.cancel or found.open)
        if found.state in {"aborted", "finished"} and not aborts_open:
            raise Wrong(f"it is {found.state} already")
        return {"action": arguments.what, "reason": arguments.reason}

    async def work(driver: "Driver", plan: "Rollout") -> int:
        if arguments.what == "abort":
            await driver.drive()
        elif arguments.json:
            standing.tell_json({"rollout": plan.id, "state": "paused"})
        else:
            print(f"{plan.id}: paused; pcm rollout resume {plan.id} drives it on")
        return DONE

    return _driven(arguments, order, work)


def limit(text: str) -> str:
    """Read how many failures are borne."""
    from schemas.rollout import check_limit

    with argument_errors():
        return check_limit(text)
