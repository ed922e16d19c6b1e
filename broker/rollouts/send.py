"""`pcm send --waves`: send a job in waves."""

import argparse
from typing import TYPE_CHECKING, Any

from broker.cli.command_line import CommandError, Parser, UsageError, argument_errors
from broker.cli.session import history_engine, history_errors, with_dispatcher
from broker.rollouts import views
from broker.rollouts.command import LIMIT_HELP, limit, run_and_print

if TYPE_CHECKING:
    from collections.abc import Sequence

    from broker.client.dispatcher import Dispatcher
    from broker.rollouts.waves import WaveSize
    from schemas import Job, Rollout

OPTIONS = ("waves", "max_failures", "pause", "wave_limit")


def add_options(send: Parser) -> None:
    """Add the options of a rollout to `pcm send`."""
    add = send.add_argument_group("in waves").add_argument
    add(
        "--waves",
        metavar="N,N",
        type=_waves,
        help="how many workstations it has reached after each wave, as counts or percentages:"
        " 1,10%%,50%%,100%%; a wave is sent when the one before has ended; the last must be all",
    )
    add("--max-failures", metavar="N", type=limit, help=f"{LIMIT_HELP} (default: 0)")
    add("--pause", metavar="D", type=_duration, help="between a wave's end and the next wave")
    add(
        "--wave-limit",
        metavar="D",
        type=_positive_duration,
        help="a workstation that has not ended after this time has failed (default: no limit)",
    )


def check_options(arguments: argparse.Namespace) -> bool:
    """Return whether `pcm send` is to send in waves.

    Raises:
        UsageError: there are options of a rollout, but no --waves.
    """
    given = [option for option in OPTIONS if getattr(arguments, option) is not None]
    if given and arguments.waves is None:
        raise UsageError(f"--{given[0].replace('_', '-')}: is for a rollout: give --waves")
    return bool(given)


def begin(jobs: "Sequence[Job]", arguments: argparse.Namespace) -> int:
    """Send a job in waves, as the options of `pcm send` say; return the exit status.

    Raises:
        UsageError: there are several jobs.
    """
    from broker.history.workstations import query_fleet
    from broker.rollouts.control import bound_workstations, run_rollout

    if len(jobs) > 1:
        raise UsageError(f"--waves: a rollout has one job, but the file has {len(jobs)}")
    (job,) = jobs
    with history_engine() as engine, query_fleet(engine) as known:
        names = known.reached(job)
    if not names:
        targets = ", ".join(map(str, job.targets))
        raise CommandError(f"no known workstation is in {targets}; nothing was sent")

    async def work(dispatcher: "Dispatcher") -> int:
        bound, unbound = await bound_workstations(dispatcher, job, names)
        views.print_unbound(unbound)
        plan = _plan(job, bound, arguments)
        await dispatcher.record(plan)
        views.print_plan(plan, as_json=arguments.json)
        print_state = views.StatePrinter(plan, as_json=arguments.json)
        return await run_and_print(run_rollout(dispatcher, plan, print_state), plan, arguments)

    with history_errors():
        return with_dispatcher(work)


def _plan(job: "Job", names: list[str], arguments: argparse.Namespace) -> "Rollout":
    from broker.rollouts.control import plan_rollout
    from broker.rollouts.waves import WrongWaves

    given = {
        option: value for option in OPTIONS[1:] if (value := getattr(arguments, option)) is not None
    }
    try:
        return plan_rollout(job, names, arguments.waves, **given)
    except WrongWaves as error:
        raise UsageError(f"--waves: {error}") from error


def _waves(text: str) -> "tuple[WaveSize, ...]":
    from broker.rollouts.waves import read_waves

    with argument_errors():
        return read_waves(text)


def _duration(text: str) -> Any:
    from schemas.times import parse_duration

    with argument_errors():
        return parse_duration(text)


def _positive_duration(text: str) -> Any:
    if not (duration := _duration(text)):
        raise argparse.ArgumentTypeError("must be more than 0")
    return duration
