"""`pcm rollout`: list, show, pause, resume and abort rollouts."""

import argparse
import asyncio
import sys
from typing import TYPE_CHECKING

from broker.amqp.connection import BrokerError
from broker.amqp.timeouts import timeout
from broker.cli.command_line import DONE, FAILED, CommandError, Parser
from broker.cli.session import history_engine, history_errors, name, with_dispatcher
from broker.history.engine import HistoryError
from broker.history.history import query_history
from broker.rollouts import views
from broker.rollouts.control import RolloutError, abort_rollout, pause_rollout, resume_rollout
from broker.rollouts.options import LIMIT_HELP, limit
from broker.rollouts.progress import UnknownRollout, find_rollout, list_rollouts
from broker.signing.resign_policy import SigningRefused

if TYPE_CHECKING:
    from collections.abc import Awaitable

    from broker.client.dispatcher import Dispatcher
    from broker.rollouts.progress import RolloutProgress
    from broker.rollouts.state import RolloutState
    from schemas import Rollout


def add_to(commands: "argparse._SubParsersAction[Parser]") -> None:
    """Add the command to a program's commands."""
    actions = commands.add_parser(
        "rollout",
        description="A rollout is a job that pcm send --waves sends in waves. Any administrator's"
        " machine can continue it; several can run it at the same time.",
    ).add_subparsers(dest="action", required=True, metavar="list|show|pause|resume|abort")
    listing = actions.add_parser("list", help="list rollouts", description="Lists rollouts.")
    listing.set_defaults(run=_list)
    show = actions.add_parser(
        "show", help="show a rollout", description="Shows a rollout with its waves."
    )
    pause = actions.add_parser(
        "pause",
        help="send no further wave until it is resumed",
        description="Pauses a rollout: jobs already sent continue, no further wave is sent, and"
        " programs that run the rollout exit.",
    )
    resume = actions.add_parser(
        "resume",
        help="continue a rollout",
        description="Continues a rollout that is paused, that failures have stopped, or that no"
        " program runs. Waves that were sent are not sent again.",
    )
    resume.add_argument("--max-failures", metavar="N", type=limit, help=f"new {LIMIT_HELP}")
    abort = actions.add_parser(
        "abort",
        help="send no further wave, and cancel its jobs",
        description="Aborts a rollout: no further wave is sent, and its jobs are cancelled where"
        " they have not ended.",
    )
    for one in (pause, abort):
        one.add_argument("--reason", metavar="TEXT", default="", help="shown with the state")
    runs = {show: _show, pause: _pause, resume: _resume, abort: _abort}
    for action, run in runs.items():
        action.add_argument("id", metavar="ID", type=name, help="its id, or the beginning of it")
        action.set_defaults(run=run)
    for action in (listing, *runs):
        action.add_argument("--json", action="store_true", help="print JSON")


async def run_and_print(
    running: "Awaitable[RolloutState]", plan: "Rollout", arguments: argparse.Namespace
) -> int:
    """Wait while a rollout runs, and print how to continue it; return the exit status."""
    try:
        async with timeout(getattr(arguments, "give_up_after", None)):
            state = await running
    except TimeoutError:
        _print_not_running(plan)
        return FAILED
    except (asyncio.CancelledError, BrokerError, HistoryError):
        _print_not_running(plan)
        raise
    if not arguments.json and (hint := views.hint(plan, state)):
        print(hint, flush=True)
    return exit_status(state)


def _print_not_running(plan: "Rollout") -> None:
    text = f"pcm: no program runs it now: pcm rollout resume {plan.id} continues it"
    print(text, file=sys.stderr, flush=True)


def _list(arguments: argparse.Namespace) -> int:
    with history_engine() as engine, query_history(engine) as history:
        rollouts = list_rollouts(history)
    views.print_list(rollouts, as_json=arguments.json)
    return DONE


def _show(arguments: argparse.Namespace) -> int:
    views.print_one(load_rollout(arguments.id), as_json=arguments.json)
    return DONE


def load_rollout(rollout_id: str) -> "RolloutProgress":
    """Return the progress of a rollout.

    Raises:
        CommandError: no rollout has this id, or several ids begin so.
    """
    try:
        with history_engine() as engine, query_history(engine) as history:
            return find_rollout(history, rollout_id)
    except UnknownRollout as error:
        raise CommandError(str(error)) from error


def exit_status(state: "RolloutState") -> int:
    """Return the exit status of a rollout that has ended or has stopped."""
    # A rollout that was not applicable anywhere has failed.
    ran = state.counts["succeeded"] or state.failures
    return DONE if state.state == "finished" and not state.exceeded and ran else FAILED


def _resume(arguments: argparse.Namespace) -> int:
    plan = load_rollout(arguments.id).plan
    print_state = views.StatePrinter(plan, as_json=arguments.json)

    async def work(dispatcher: "Dispatcher") -> int:
        async def resume() -> "RolloutState":
            state = await resume_rollout(dispatcher, plan.id, arguments.max_failures, print_state)
            print_state(state)  # a finished rollout is not resumed
            return state

        return await run_and_print(resume(), plan, arguments)

    try:
        with history_errors():
            return with_dispatcher(work)
    except (RolloutError, SigningRefused) as error:
        raise CommandError(str(error)) from error


def _pause(arguments: argparse.Namespace) -> int:
    plan = load_rollout(arguments.id).plan

    async def work(dispatcher: "Dispatcher") -> int:
        await pause_rollout(dispatcher, plan.id, arguments.reason)
        return DONE

    try:
        with history_errors():
            with_dispatcher(work)
    except RolloutError as error:
        raise CommandError(str(error)) from error
    if arguments.json:
        views.print_json({"rollout": plan.id, "state": "paused"})
    else:
        print(f"{plan.id}: paused; pcm rollout resume {plan.id} continues it")
    return DONE


def _abort(arguments: argparse.Namespace) -> int:
    return abort(arguments.id, arguments.reason, as_json=arguments.json)


def abort(rollout_id: str, reason: str, *, as_json: bool) -> int:
    """Abort a rollout, and print its state."""
    plan = load_rollout(rollout_id).plan
    print_state = views.StatePrinter(plan, as_json=as_json)

    async def work(dispatcher: "Dispatcher") -> int:
        await abort_rollout(dispatcher, plan.id, reason, print_state)
        return DONE

    try:
        with history_errors():
            return with_dispatcher(work)
    except RolloutError as error:
        raise CommandError(str(error)) from error
