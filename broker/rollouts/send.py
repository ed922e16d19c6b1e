"""`pcm send --waves`: send a job in waves."""

import argparse
from typing import TYPE_CHECKING

from broker.cli.command_line import CommandError, UsageError
from broker.cli.hints import print_offer_hint
from broker.cli.session import history_engine, history_errors, with_dispatcher
from broker.cli.targets import known_suggestions
from broker.history.queries.workstations import query_fleet
from broker.rollouts import views
from broker.rollouts.command import run_and_print
from broker.rollouts.control import bound_workstations, plan_rollout, run_rollout
from broker.rollouts.options import OPTIONS
from broker.rollouts.waves import WrongWaves
from schemas.text import listed

if TYPE_CHECKING:
    from collections.abc import Sequence

    from broker.client.dispatcher import Dispatcher
    from schemas import Job, Rollout

_SHOWN = 10


def send_in_waves(jobs: "Sequence[Job]", arguments: argparse.Namespace) -> int:
    """Send a job in waves, as the options of `pcm send` say; return the exit status.

    Raises:
        UsageError: there are several jobs.
    """
    if len(jobs) > 1:
        raise UsageError(f"--waves: a rollout has one job, but the file has {len(jobs)}")
    (job,) = jobs
    with history_engine() as engine, query_fleet(engine) as known:
        names = known.reached(job)
        revoked = known.revoked(job)
        near = known_suggestions(job.targets, engine)
    if not names:
        targets = ", ".join(map(str, job.targets))
        but = f" but the revoked {listed(revoked, _SHOWN)}" if revoked else ""
        raise CommandError(f"no known workstation{but} is in {targets}; nothing was sent{near}")

    async def work(dispatcher: "Dispatcher") -> int:
        bound, unbound = await bound_workstations(dispatcher, job, names)
        views.print_unbound(unbound)
        plan = _plan(job, bound, arguments)
        await dispatcher.record(plan)
        views.print_plan(plan, as_json=arguments.json)
        print_offer_hint(jobs, "--mandatory-at T")
        print_state = views.StatePrinter(plan, as_json=arguments.json)
        return await run_and_print(run_rollout(dispatcher, plan, print_state), plan, arguments)

    with history_errors():
        return with_dispatcher(work)


def _plan(job: "Job", names: list[str], arguments: argparse.Namespace) -> "Rollout":
    given = {
        option: value for option in OPTIONS[1:] if (value := getattr(arguments, option)) is not None
    }
    try:
        return plan_rollout(job, names, arguments.waves, **given)
    except WrongWaves as error:
        raise UsageError(f"--waves: {error}") from error
