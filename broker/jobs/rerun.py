"""`pcm rerun`: a job's command once more, where it failed."""

import argparse
import sys
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from broker.cli.command_line import DONE, Parser, Wrong, WrongUse
from broker.cli.session import check_vouched, history, name, with_dispatcher
from broker.results.query_session import words
from broker.rollouts import views as standing
from broker.watch import command as watch
from schemas.text import counted

if TYPE_CHECKING:
    from sqlalchemy import Engine

    from broker.client.dispatcher import Dispatcher
    from schemas import Job


def add_to(commands: "argparse._SubParsersAction[Parser]") -> None:
    """Add the command to a program's commands."""
    rerun = commands.add_parser(
        "rerun",
        help="send a job's command again where it failed",
        description="Sends a job's command again, as a new job for the workstations that are"
        " chosen, and prints the new job's id. A mandatory time that has passed is now; an expiry"
        " that has passed is as far from now as it was from the job's sending.",
        parents=[watch.options()],
    )
    rerun.add_argument("job", metavar="JOB", type=name, help="the job's id, or how it begins")
    rerun.add_argument(
        "--failed",
        action="store_true",
        help="where it failed, timed out, was interrupted or refused, or expired (default)",
    )
    rerun.add_argument("--expired", action="store_true", help="where it expired")
    rerun.add_argument(
        "--state",
        metavar="S",
        action="append",
        default=[],
        help="where it is in this state, such as cancelled; again for more",
    )
    rerun.add_argument(
        "--workstation",
        metavar="W",
        action="append",
        type=name,
        default=[],
        help="there, in whatever state; with the others: only there; again for more",
    )
    rerun.add_argument("--wait", action="store_true", help="watch it, as pcm watch does")
    rerun.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> int:
    watch.check_options(arguments)
    states = _states(arguments)
    with history() as engine:
        job, names = _choose(engine, arguments, states)
    return with_dispatcher(lambda dispatcher: _send(dispatcher, job, names, arguments))


def _states(arguments: argparse.Namespace) -> tuple[str, ...] | None:
    """Return the states that are asked for; None: whatever it is."""
    from broker.history.queries import FAILURES, STATES
    from schemas import State

    if wrong := [state for state in arguments.state if state not in STATES]:
        raise WrongUse(f"--state: {wrong[0]!r} is no state: use {', '.join(map(str, STATES))}")
    states = [*arguments.state, *(FAILURES if arguments.failed else ())]
    states += [State.EXPIRED] if arguments.expired else []
    if not states and arguments.workstation:
        return None
    return tuple(states or FAILURES)


def _choose(
    engine: "Engine", arguments: argparse.Namespace, states: tuple[str, ...] | None
) -> tuple["Job", list[str]]:
    """Return the job that is to be sent again, and where."""
    from broker.history.queries import UnknownId, accounts

    with accounts(engine) as found:
        try:
            job_id = found.find(arguments.job).id
        except UnknownId as error:
            raise Wrong(str(error)) from error
        job = found.body(job_id)
        if job is not None:
            check_vouched(job, *found.recorded(job_id))
        at = {pair.workstation: pair.state for pair in found.pairs(job_id)}
    if job is None:
        raise Wrong(f"{job_id}: the history has reports of it, but not the job itself")
    if strange := [name for name in arguments.workstation if name not in at]:
        raise Wrong(
            f"--workstation: {standing.some(strange)}: {job_id} was not for it; nothing was sent"
        )
    among = arguments.workstation or sorted(at)
    names = [name for name in dict.fromkeys(among) if states is None or at[name] in states]
    if not names:
        raise Wrong(_nothing(job_id, list(at.values()), states or ()))
    return job, _able(job, names)


def _able(job: "Job", names: list[str]) -> list[str]:
    """Return those that can open a job's secrets, and tell of the others."""
    if job.command.secrets is None:
        return names
    able = job.command.secrets.workstations()
    left_out = [name for name in names if name not in able]
    text = f"its secrets are not sealed for {standing.some(left_out)}"
    if len(left_out) == len(names):
        raise Wrong(f"{job.id}: {text}; send it anew, by pcm send --secret")
    if left_out:
        print(f"pcm: left out: {text}", file=sys.stderr)
    return [name for name in names if name in able]


def _nothing(job_id: str, found: list[str], states: tuple[str, ...]) -> str:
    """Return that there is nowhere to send a job again, and what might have been meant."""
    from broker.history.queries import FAILURES
    from schemas import State

    asked = "failed" if states == FAILURES else f"is {' or '.join(map(words, states))}"
    text = f"{job_id}: it {asked} on no workstation; nothing was sent"
    cancelled = found.count(State.CANCELLED)
    if cancelled and State.CANCELLED not in states:
        text += f"; it was cancelled on {cancelled:,}: --state cancelled sends it there"
    return text


async def _send(
    dispatcher: "Dispatcher", job: "Job", names: list[str], arguments: argparse.Namespace
) -> int:
    from broker.jobs.rerun_jobs import again

    new = again(job, names, datetime.now(UTC))
    # One that is gone would keep the others from it.
    if lost := set(await dispatcher.unbound(new)):
        left = tuple(target for target in new.targets if target not in lost)
        gone = standing.some(sorted(str(target.name) for target in lost))
        if not left:
            raise Wrong(f"no workstation is bound to {gone}; nothing was sent")
        print(f"pcm: left out, since no queue is bound for them: {gone}", file=sys.stderr)
        new = new.model_copy(update={"targets": left})
    await dispatcher.dispatch(new, partly=True)  # who is there was asked just now
    _tell(new, as_json=arguments.json)
    if not arguments.wait:
        return DONE
    return await watch.watch(
        dispatcher, new.id, as_json=arguments.json, limit=arguments.give_up_after
    )


def _tell(job: "Job", *, as_json: bool) -> None:
    import json

    if as_json:
        told = {"job": job.id, "rerun_of": job.rerun_of, "workstations": len(job.targets)}
        print(json.dumps(told), flush=True)
    else:
        print(job.id, flush=True)
        count = len(job.targets)
        print(f"again on {counted(count, 'workstation')}", flush=True)
