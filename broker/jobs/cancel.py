"""`pcm cancel`: cancel a job, everywhere or on some workstations; check that it can be."""

import argparse
import json
from collections.abc import Sequence
from typing import TYPE_CHECKING

from broker.cli.command_line import DONE, CommandError, Parser
from broker.cli.session import name, optional_history_engine, with_dispatcher
from broker.cli.targets import known_suggestions, workstation_targets
from broker.history.queries.jobs import query_jobs
from broker.history.queries.rows import RUNNING, WAITING, UnknownId
from broker.rollouts.command import abort
from schemas.errors import PcmError

if TYPE_CHECKING:
    from broker.client.dispatcher import Dispatcher
    from broker.history.queries.jobs import JobQueries
    from broker.history.queries.rows import JobRow


class NotCancellable(PcmError):
    """A job has ended, or is not for a workstation; the message says which.

    Attributes:
        not_addressed: the workstations that the job is not for.
    """

    def __init__(self, text: str, not_addressed: Sequence[str] = ()) -> None:
        super().__init__(text)
        self.not_addressed = tuple(not_addressed)


def check_cancellable(queries: "JobQueries", job_id: str, workstations: Sequence[str] = ()) -> str:
    """Return the complete id of a job that has not ended everywhere.

    Args:
        queries: the history's queries of jobs (`history.jobs`).
        job_id: the job's id, or its beginning.
        workstations: check only these; default: all.

    Raises:
        UnknownId: no job has this id, or several ids begin so.
        NotCancellable: the job has ended there, or is not for one of the workstations.
    """
    job_id = queries.find(job_id).id
    outcomes = queries.outcomes(job_id, names=workstations or None)
    if not_addressed := sorted(set(workstations) - {outcome.workstation for outcome in outcomes}):
        text = f"{job_id}: is not for {', '.join(not_addressed)}; nothing was sent"
        raise NotCancellable(text, not_addressed)
    if outcomes and not any(outcome.state in (*WAITING, *RUNNING) for outcome in outcomes):
        where = ", ".join(workstations) or "everywhere"
        raise NotCancellable(f"{job_id}: has ended {where}; there is nothing to cancel")
    return job_id


def add_to(commands: "argparse._SubParsersAction[Parser]") -> None:
    """Add the command to a program's commands."""
    cancel = commands.add_parser(
        "cancel",
        description="Cancels a job. Where it has not started, it never starts. Where it runs, its"
        " command is ended. The id of a rollout aborts it, as pcm rollout abort does.",
    )
    cancel.add_argument("job", metavar="JOB", type=name, help="the job's id, or its beginning")
    cancel.add_argument(
        "--workstation",
        metavar="W",
        action="append",
        type=name,
        default=[],
        help="only there; repeat for more (default: everywhere)",
    )
    cancel.add_argument("--reason", metavar="TEXT", default="", help="shown on the workstations")
    cancel.add_argument("--json", action="store_true", help="print JSON")
    cancel.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> int:
    found = _cancellable(arguments)
    if isinstance(found, str):
        return abort(found, arguments.reason, as_json=arguments.json)

    async def work(dispatcher: "Dispatcher") -> int:
        for job, workstations in found.items():
            await dispatcher.cancel(job, arguments.reason, workstations)
            _print_cancelled(job, workstations, as_json=arguments.json)
        return DONE

    return with_dispatcher(work)


def _print_cancelled(job: str, workstations: "list[str]", *, as_json: bool) -> None:
    if as_json:
        where = {"workstations": workstations} if workstations else {}
        print(json.dumps({"job": job, "cancelled": True, **where}))
    else:
        where_text = " on " + ", ".join(workstations) if workstations else ""
        print(f"{job}: cancelled{where_text}; pcm watch {job} shows where it has ended")


def _cancellable(arguments: argparse.Namespace) -> str | dict[str, list[str]]:
    """Return the id of the rollout to abort, or the jobs to cancel, each with its workstations.

    Raises:
        CommandError: it has ended, or is not for one of the workstations, by the history.
    """
    job, workstations = arguments.job, arguments.workstation
    with optional_history_engine() as engine:
        if engine is None:
            return {job: workstations}
        try:
            with query_jobs(engine) as queries:
                row = queries.find(job)
                if not row.is_rollout:
                    return {check_cancellable(queries, job, workstations): workstations}
                return _in_waves(queries, row, workstations) if workstations else row.id
        except NotCancellable as error:
            near = known_suggestions(workstation_targets(error.not_addressed), engine)
            raise CommandError(f"{error}{near}") from error
        except UnknownId as error:
            if error.several:
                raise CommandError(str(error)) from error
            return {job: workstations}  # the stream may have it


def _in_waves(
    queries: "JobQueries", rollout: "JobRow", workstations: "list[str]"
) -> dict[str, list[str]]:
    """Return the jobs of a rollout's waves that workstations are in, each with those of them."""
    waves: dict[str, list[str]] = {}
    for one in workstations:
        if (wave := queries.wave(rollout.id, one)) is None:
            text = f"{rollout.id}: no wave with {one} was sent; nothing was sent"
            raise NotCancellable(text, [one])
        waves.setdefault(wave.id, []).append(one)
    for job, names in waves.items():
        check_cancellable(queries, job, names)
    return waves
