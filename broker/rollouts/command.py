"""`pcm rollout`: how rollouts go, and what becomes of them."""

import argparse
import sys
from typing import TYPE_CHECKING

from broker.cli.command_line import DONE, FAILED, Parser, Wrong, argument_errors
from broker.cli.session import history, name, with_dispatcher
from broker.rollouts import views as standing

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from sqlalchemy import Engine

    from broker.client.dispatcher import Dispatcher
    from broker.rollouts.progress import RolloutProgress
    from broker.rollouts.runner import Driver
    from broker.rollouts.state import RolloutState
    from schemas import Rollout, RolloutOrder

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
    from broker.amqp.timeouts import timeout
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
    from broker.history.history import asked
    from broker.rollouts.progress import list_rollouts

    with history() as engine, asked(engine) as known:
        courses = list_rollouts(known)
    standing.tell_all(courses, as_json=arguments.json)
    return DONE


def _show(arguments: argparse.Namespace) -> int:
    with history() as engine:
        standing.tell_one(_found(engine, arguments.id), as_json=arguments.json)
    return DONE


def _found(engine: "Engine", rollout_id: str) -> "RolloutProgress":
    """Return how the rollout goes that is named."""
    from broker.history.history import asked
    from broker.rollouts.progress import UnknownRollout, find_rollout

    try:
        with asked(engine) as known:
            return find_rollout(known, rollout_id)
    except UnknownRollout as error:
        raise Wrong(str(error)) from error


def _ordered(
    engine: "Engine",
    plan: "Rollout",
    order: "RolloutOrder",
    arguments: argparse.Namespace,
    work: "Callable[[Driver], Awaitable[int]]",
) -> int:
    """Record an order for a rollout, and work on it."""

    async def working(dispatcher: "Dispatcher") -> int:
        driver = driver_of(dispatcher, engine, plan, as_json=arguments.json)
        await driver.order(order)
        return await work(driver)

    return with_dispatcher(working)


def _status(found: "RolloutState") -> int:
    ran = found.counts["succeeded"] or found.failures  # somewhere, and as it is borne
    return DONE if found.state == "finished" and not found.exceeded and ran else FAILED


def _resume(arguments: argparse.Namespace) -> int:
    from broker.rollouts.control import RolloutError, check_plan_vouched, resume_order
    from broker.signing.resign_policy import SigningRefused

    with history() as engine:
        found = _found(engine, arguments.id)
        plan = found.plan
        try:
            check_plan_vouched(engine, plan)
            if found.standing.state == "finished":
                standing.Teller(plan, as_json=arguments.json)(found.standing)
                return _status(found.standing)
            order = resume_order(found, arguments.max_failures)
        except (RolloutError, SigningRefused) as error:
            raise Wrong(str(error)) from error
        return _ordered(
            engine, plan, order, arguments, lambda driver: drive(driver, plan, arguments)
        )


def _order(arguments: argparse.Namespace) -> int:
    """Pause or abort a rollout, and look until it is so."""
    from broker.rollouts.control import RolloutError, stop_order

    async def work(driver: "Driver") -> int:
        if arguments.what == "abort":
            await driver.drive()
        elif arguments.json:
            standing.tell_json({"rollout": plan.id, "state": "paused"})
        else:
            print(f"{plan.id}: paused; pcm rollout resume {plan.id} drives it on")
        return DONE

    with history() as engine:
        found = _found(engine, arguments.id)
        plan = found.plan
        try:
            order = stop_order(found, arguments.what, arguments.reason)
        except RolloutError as error:
            raise Wrong(str(error)) from error
        return _ordered(engine, plan, order, arguments, work)


def limit(text: str) -> str:
    """Read how many failures are borne."""
    from schemas.rollout import check_limit

    with argument_errors():
        return check_limit(text)
