"""`pcm rerun`: send a job's command again where it failed."""

import argparse
import json
import sys
from typing import TYPE_CHECKING

from broker.cli.command_line import DONE, CommandError, Parser, UsageError
from broker.cli.session import history_engine, name, with_dispatcher
from broker.cli.targets import known_suggestions, workstation_targets
from broker.history.queries.jobs import query_jobs
from broker.history.queries.rows import STATES, UnknownId
from broker.jobs.rerun_jobs import NothingToRerun, NotItsWorkstation, failures, rerun
from broker.rollouts import views as rollout_views
from broker.signing.resign_policy import SigningRefused
from broker.watch import command as watch
from schemas import State
from schemas.text import counted

if TYPE_CHECKING:
    from sqlalchemy import Engine

    from broker.client.dispatcher import Dispatcher
    from schemas import Job


def add_to(commands: "argparse._SubParsersAction[Parser]") -> None:
    """Add the command to a program's commands."""
    rerun = commands.add_parser(
        "rerun",
        description="Sends a job's command again, as a new job for the selected workstations, and"
        " prints the new job's id. A mandatory time that has passed becomes now. An expiry that"
        " has passed becomes as long from now as it was from the job's sending.",
        parents=[watch.options()],
    )
    rerun.add_argument("job", metavar="JOB", type=name, help="the job's id, or its beginning")
    rerun.add_argument(
        "--failed",
        action="store_true",
        help="where it failed, timed out, was interrupted or expired (default)",
    )
    rerun.add_argument("--expired", action="store_true", help="where it expired")
    rerun.add_argument(
        "--state",
        metavar="S",
        action="append",
        default=[],
        help="where it is in this state, such as cancelled or refused; repeat for more",
    )
    rerun.add_argument(
        "--workstation",
        metavar="W",
        action="append",
        type=name,
        default=[],
        help="there, in any state but refused; with the other options: only there; repeat for more",
    )
    rerun.add_argument("--wait", action="store_true", help="watch it, as pcm watch does")
    rerun.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> int:
    watch.check_options(arguments)
    states = _states(arguments)
    with history_engine() as engine:
        new = _new_job(engine, arguments, states)
    return with_dispatcher(lambda dispatcher: _send(dispatcher, new, arguments))


def _states(arguments: argparse.Namespace) -> tuple[str, ...]:
    """Return the states that options select; none: the defaults of `rerun`."""
    if unknown := [state for state in arguments.state if state not in STATES]:
        raise UsageError(
            f"--state: {unknown[0]!r} is not a state: use {', '.join(map(str, STATES))}"
        )
    states = [*arguments.state, *(failures() if arguments.failed else ())]
    states += [State.EXPIRED] if arguments.expired else []
    return tuple(states)


def _new_job(engine: "Engine", arguments: argparse.Namespace, states: tuple[str, ...]) -> "Job":
    try:
        with query_jobs(engine) as queries:
            new, left_out = rerun(queries, arguments.job, states, arguments.workstation)
            refused = queries.find(arguments.job).counts[State.REFUSED]
    except NotItsWorkstation as error:
        near = known_suggestions(workstation_targets(error.names), engine)
        raise CommandError(f"--workstation: {error}{near}") from error
    except NothingToRerun as error:
        options = " ".join(f"--state {state}" for state in error.others)
        hint = f": {options} sends it there" if options else ""
        raise CommandError(f"{error}{hint}") from error
    except (SigningRefused, UnknownId) as error:
        raise CommandError(str(error)) from error
    if left_out:
        names = rollout_views.some(left_out)
        print(f"pcm: left out: its secrets are not sealed for {names}", file=sys.stderr)
    if refused and State.REFUSED not in states and not arguments.workstation:
        where = counted(refused, "workstation")
        print(f"pcm: left out: {where} refused it; --state refused sends it there", file=sys.stderr)
    return new


async def _send(dispatcher: "Dispatcher", new: "Job", arguments: argparse.Namespace) -> int:
    new, unbound = await dispatcher.only_bound(new)
    rollout_views.print_unbound([str(target.name) for target in unbound])
    await dispatcher.dispatch(new, partly=True)  # unbound targets were removed just now
    _print_sent(new, as_json=arguments.json)
    if not arguments.wait:
        return DONE
    return await watch.watch(
        dispatcher, new.id, as_json=arguments.json, limit=arguments.give_up_after
    )


def _print_sent(job: "Job", *, as_json: bool) -> None:
    if as_json:
        fields = {"job": job.id, "rerun_of": job.rerun_of, "workstations": len(job.targets)}
        print(json.dumps(fields), flush=True)
    else:
        print(job.id, flush=True)
        count = len(job.targets)
        print(f"again on {counted(count, 'workstation')}", flush=True)
